/* Memory before main: constants copied to RAM, the rest cleared, the stack painted to see later how far it grew. */
#include "board.h"
#include "start.h"

#include <stddef.h>

#define PAINT 0xE5D6C7B8u

extern uint32_t data_load[], data_start[], data_end[], bss_start[], bss_end[], stack_start[], stack_end[];

void memory_setup(void);

void memory_setup(void)
{
    uint32_t *from = data_load, *to;
    for (to = data_start; to != data_end; ++to) *to = *from++;
    for (to = bss_start; to != bss_end; ++to) *to = 0;
    for (to = stack_start; to < (uint32_t *)__builtin_frame_address(0) - 16; ++to) *to = PAINT;
}

uint32_t stack_used(void)
{
    const uint32_t *p = stack_start;
    while (p != stack_end && *p == PAINT) ++p;
    return (uint32_t)((uintptr_t)stack_end - (uintptr_t)p);
}

typedef struct {
    uint32_t at, clear, set, wait;
} setup_write;

__attribute__((weak)) void board_clock(void)
{
}

void board_setup(void)
{
    static const setup_write writes[] = {BOARD_SETUP{0, 0, 0, 0}};
    size_t i;
    for (i = 0; writes[i].at != 0; ++i) {
        volatile uint32_t *const r = (volatile uint32_t *)(uintptr_t)writes[i].at;
        if ((writes[i].clear | writes[i].set) != 0) *r = (*r & ~writes[i].clear) | writes[i].set;
        while ((*r & writes[i].wait) != writes[i].wait) {}
    }
}
