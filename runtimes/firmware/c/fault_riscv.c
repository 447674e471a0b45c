/* Where traps of a RISC-V core end: interrupt N at irq_N, see start.h. One that nobody defined is a fault. */
#include "board.h"
#include "console.h"
#include "start.h"

void fault(void);
void interrupted(uint32_t cause);

typedef void (*handler)(void);

#define DECLARED(number) __attribute__((weak, alias("fault"))) void irq_##number(void);
#define LISTED(number) irq_##number,

BOARD_EACH_INTERRUPT(DECLARED)

static const handler handlers[] = {BOARD_EACH_INTERRUPT(LISTED) fault};

/* From start_riscv.S, with mcause: the highest bit is set, the others are the number. */
void interrupted(uint32_t cause)
{
    const uint32_t number = cause & 0x7FFFFFFFu, last = sizeof handlers / sizeof handlers[0] - 1u;
    handlers[number < last ? number : last]();
}

void fault(void)
{
    console_text("FAULT: the core stopped at a trap\n");
    console_close(1);
    for (;;) {}
}
