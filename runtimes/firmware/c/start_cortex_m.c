/* Vector table and reset of a Cortex-M. A fault stops the core where a debugger finds it. */
#include "board.h"
#include "console.h"
#include "start.h"

extern uint32_t stack_end[];
void memory_setup(void);
void reset(void);
void fault(void);

#ifndef BOARD_INTERRUPTS
#define BOARD_INTERRUPTS 0
#endif

typedef void (*handler)(void);

__attribute__((weak, alias("fault"))) void tick(void);
__attribute__((weak, alias("fault"))) void interrupt(void);

__attribute__((section(".vectors"), used)) static const handler vectors[16 + BOARD_INTERRUPTS] = {
    (handler)(uintptr_t)stack_end, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, tick,
#if BOARD_INTERRUPTS
    [16 ... 15 + BOARD_INTERRUPTS] = interrupt,
#endif
};

#define SCB_VTOR (*(volatile uint32_t *)0xE000ED08u)
#define SCB_CPACR (*(volatile uint32_t *)0xE000ED88u)
#define FPU_FULL (0xFu << 20)

void reset(void)
{
#if !defined(__ARM_ARCH_6M__)
    SCB_VTOR = (uint32_t)(uintptr_t)vectors;
#endif
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    SCB_CPACR |= FPU_FULL;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    memory_setup();
    board_setup();
    (void)main();
    for (;;) {}
}

void fault(void)
{
    console_text("FAULT: the core stopped at a hard fault\n");
    for (;;) {}
}
