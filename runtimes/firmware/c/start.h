#ifndef EDGEMEM_START_H
#define EDGEMEM_START_H

#include <stdint.h>

/* Yours, where the core is to run faster than it does after a reset: wait states of the flash, PLL, then the switch. It
 * comes first. The console's divider in BOARD_SETUP is for the clock of BOARD_START_HZ; set it anew where yours differs.
 */
void board_clock(void);

/* Registers of clocks, pins and the UART, from the board's description. */
void board_setup(void);

/* Bytes of the stack that were used since the start. */
uint32_t stack_used(void);

/* Of a Cortex-M, where the application has them: the system timer, the two calls of a system of tasks, and interrupt N of
 * the device as `void irq_N(void)`, by the numbers of its manual. Of a RISC-V core `irq_N` alone, with N as in mcause: 7 is
 * the timer of a standard core and 11 its interrupt controller. The application sets mie and mstatus.
 */
void tick(void);
void service_call(void);
void pending(void);

int main(void);

#endif
