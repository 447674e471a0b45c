#include "counter.h"

#if defined(__riscv)

void counter_start(void)
{
}

uint32_t counter_now(void)
{
    uint32_t count;
#if defined(__riscv_f) /* the emulated core; small ones have no such counter */
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrr %0, instret\n\t.option pop" : "=r"(count));
#else
    count = 0;
#endif
    return count;
}

uint32_t counter_since(uint32_t start)
{
    return counter_now() - start;
}

#else

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_CURRENT (*(volatile uint32_t *)0xE000E018u)
#define SYSTICK_MAX 0x00FFFFFFu
#define FROM_CORE_CLOCK 5u

void counter_start(void)
{
    SYSTICK_RELOAD = SYSTICK_MAX;
    SYSTICK_CURRENT = 0;
    SYSTICK_CONTROL = FROM_CORE_CLOCK;
}

uint32_t counter_now(void)
{
    return SYSTICK_CURRENT; /* counts down */
}

uint32_t counter_since(uint32_t start)
{
    return (start - counter_now()) & SYSTICK_MAX;
}

#endif
