/* Vector table and reset of a Cortex-M. A fault stops the core where a debugger finds it.
 *
 * Interrupt N of the device calls irq_N, see start.h: define it where you need it, and enable it in the NVIC. One that
 * nobody defined is a fault.
 */
#include "board.h"
#include "console.h"
#include "start.h"

extern uint32_t stack_end[];
void memory_setup(void);
void reset(void);
void fault(void);

typedef void (*handler)(void);

#define WEAK __attribute__((weak, alias("fault"))) void
#define DECLARED(number) WEAK irq_##number(void);
#define LISTED(number) irq_##number,

WEAK service_call(void);
WEAK pending(void);
WEAK tick(void);
BOARD_EACH_INTERRUPT(DECLARED)

__attribute__((section(".vectors"), used)) static const handler vectors[16 + BOARD_INTERRUPTS] = {
    (handler)(uintptr_t)stack_end, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, service_call, fault, 0, pending,
    tick, BOARD_EACH_INTERRUPT(LISTED)};

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
    board_clock();
    board_setup();
    console_close(main());
    for (;;) {}
}

void fault(void)
{
    console_text("FAULT: the core stopped at a hard fault\n");
    console_close(1);
    for (;;) {}
}
