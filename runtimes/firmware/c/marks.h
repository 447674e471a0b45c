/* Ticks of every kernel call of a step, in a build that counts them: the driver calls edgemem_mark after each. */
#ifndef EDGEMEM_MARKS_H
#define EDGEMEM_MARKS_H

#include <stdint.h>

#ifndef EDGEMEM_CALLS
#define EDGEMEM_CALLS 0
#endif

#if EDGEMEM_CALLS
extern uint32_t edgemem_ticks[EDGEMEM_CALLS];
void edgemem_mark_start(void);
void edgemem_mark(uint32_t call);
#endif

#endif
