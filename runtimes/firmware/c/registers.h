/* Registers of a chip and of its core, for drivers. A test of a driver brings a file of this name with a model of both. */
#ifndef EDGEMEM_REGISTERS_H
#define EDGEMEM_REGISTERS_H

#include <stdint.h>

#define ALWAYS __attribute__((always_inline)) static inline

ALWAYS uint32_t register_get(uint32_t at)
{
    return *(volatile uint32_t *)(uintptr_t)at;
}

ALWAYS void register_put(uint32_t at, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)at = value;
}

#if defined(__riscv)

/* Interrupts held back; gives what to put back. */
ALWAYS uint32_t interrupts_off(void)
{
    uint32_t before;
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrrci %0, mstatus, 8\n\t.option pop"
                     : "=r"(before)
                     :
                     : "memory");
    return before & 8u;
}

ALWAYS void interrupts_back(uint32_t before)
{
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrs mstatus, %0\n\t.option pop" : : "r"(before) : "memory");
}

#else

ALWAYS uint32_t interrupts_off(void)
{
    uint32_t before;
    __asm__ volatile("mrs %0, primask\n\tcpsid i" : "=r"(before) : : "memory");
    return before;
}

ALWAYS void interrupts_back(uint32_t before)
{
    __asm__ volatile("msr primask, %0" : : "r"(before) : "memory");
}

/* Until what was written has arrived. */
ALWAYS void core_wait(void)
{
    __asm__ volatile("dsb" ::: "memory");
}

#if !defined(__ARM_ARCH_6M__)

#define SCB_CCR 0xE000ED14u
#define CCR_IGNORES_BUS_FAULTS (1u << 8) /* BFHFNMIGN, while FAULTMASK is set */
#define CCR_DATA_CACHE (1u << 16)
#define SCB_DCIMVAC 0xE000EF5Cu
#define CACHE_LINE 32u

/* Loads that end in a bus fault are ignored from here, and every interrupt is held back; gives what to put back. */
ALWAYS uint32_t bus_faults_ignored(void)
{
    uint32_t before;
    __asm__ volatile("mrs %0, faultmask\n\tcpsid f" : "=r"(before) : : "memory");
    register_put(SCB_CCR, register_get(SCB_CCR) | CCR_IGNORES_BUS_FAULTS);
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    return before;
}

ALWAYS void bus_faults_back(uint32_t before)
{
    __asm__ volatile("dsb" ::: "memory");
    register_put(SCB_CCR, register_get(SCB_CCR) & ~CCR_IGNORES_BUS_FAULTS);
    __asm__ volatile("msr faultmask, %0" : : "r"(before) : "memory");
}

/* What a Cortex-M7's cache still holds of such bytes is forgotten; nothing where there is none, or it is off. */
ALWAYS void data_cache_forget(uint32_t at, uint32_t bytes)
{
    uint32_t line;
    if ((register_get(SCB_CCR) & CCR_DATA_CACHE) == 0) return;
    for (line = at & ~(CACHE_LINE - 1u); line < at + bytes; line += CACHE_LINE) register_put(SCB_DCIMVAC, line);
    core_wait();
}

#endif
#endif
#endif
