#ifndef EDGEMEM_START_H
#define EDGEMEM_START_H

#include <stdint.h>

/* Registers of clocks, pins and the UART, from the board's description. */
void board_setup(void);

/* Bytes of the stack that were used since the start. */
uint32_t stack_used(void);

/* Of a Cortex-M, where the application has them: the system timer, and every interrupt of the device. */
void tick(void);
void interrupt(void);

int main(void);

#endif
