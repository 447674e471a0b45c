/* A counter of time that the core has; under an emulator that counts instructions, of instructions. */
#ifndef EDGEMEM_COUNTER_H
#define EDGEMEM_COUNTER_H

#include <stdint.h>

void counter_start(void);
uint32_t counter_now(void);
uint32_t counter_since(uint32_t start); /* ticks; of the SysTick at most 2^24 */

#endif
