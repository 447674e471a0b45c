#include "marks.h"

#include "counter.h"

#if EDGEMEM_CALLS

uint32_t edgemem_ticks[EDGEMEM_CALLS];
static uint32_t last;

void edgemem_mark_start(void)
{
    last = counter_now();
}

void edgemem_mark(uint32_t call)
{
    edgemem_ticks[call] += counter_since(last);
    last = counter_now();
}

#endif
