/* A program that watches its own questions to the system, and may be told no. Built with a driver and its kernels. */
#define _POSIX_C_SOURCE 200809L
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guarded_model.h"

#define FEATURES ((UINT64_C(1) << 17) | (UINT64_C(1) << 18)) /* the configuration of tiles, their data */

static int asked, refuses;

long syscall(long number, ...); /* in the place of the C library's */
long syscall(long number, ...)
{
    va_list arguments;
    long what, unit, result;
    va_start(arguments, number);
    what = va_arg(arguments, long);
    unit = va_arg(arguments, long);
    va_end(arguments);
    ++asked;
    if (refuses) return -1;
    __asm__ __volatile__("syscall" : "=a"(result) : "a"(number), "D"(what), "S"(unit) : "rcx", "r11", "memory");
    return result;
}

static uint64_t in_use(void) /* which registers are not as they were at the start of the process */
{
    uint32_t low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return ((uint64_t)high << 32 | low) & FEATURES;
}

static unsigned char *room(size_t bytes)
{
    void *place = NULL;
    if (posix_memalign(&place, MODEL_ALIGNMENT, bytes) != 0) exit(99);
    memset(place, 0, bytes);
    return (unsigned char *)place;
}

int main(void)
{
    unsigned char *state = room(MODEL_STATE_BYTES), *other = room(MODEL_STATE_BYTES), *arena = room(MODEL_ARENA_BYTES);
    model_inputs i;
    model_outputs o;
    int step, status;
    pid_t child;
    make_ports(&i, &o, room);
    refuses = 1;
    if (model_reset(state, MODEL_STATE_BYTES) != MODEL_ERROR_TILES) return 1;
    refuses = 0;
    if (model_reset(state, MODEL_STATE_BYTES) != MODEL_OK) return 2;
    asked = 0;
    for (step = 0; step < 5; ++step) {
        fill_inputs(&i);
        if (model_step(&i, &o, state, MODEL_STATE_BYTES, arena, MODEL_ARENA_BYTES) != MODEL_OK) return 3;
        if (in_use() != 0) return 4;
    }
    if (asked != 0) return 5; /* once for each state block, not in every step */
    /* A block of another process has another mark: where this one is not granted tiles, no step runs. */
    memcpy(other, state, MODEL_STATE_BYTES);
    memset(other + MARK, 255, 8);
    refuses = 1;
    if (model_step(&i, &o, other, MODEL_STATE_BYTES, arena, MODEL_ARENA_BYTES) != MODEL_ERROR_TILES) return 6;
    memset(other + MARK, 0, 8);
    if (memcmp(state, other, MARK) != 0 || memcmp(state + MARK + 8, other + MARK + 8, MODEL_STATE_BYTES - MARK - 8) != 0)
        return 7; /* an error changes nothing */
    refuses = 0;
    if (model_step(&i, &o, other, MODEL_STATE_BYTES, arena, MODEL_ARENA_BYTES) != MODEL_OK) return 8;
    if (asked != 2) return 9;
    child = fork(); /* which has this process's mark, and its leave */
    if (child == 0) {
        if (model_step(&i, &o, state, MODEL_STATE_BYTES, arena, MODEL_ARENA_BYTES) != MODEL_OK) _exit(1);
        _exit(asked != 2);
    }
    if (waitpid(child, &status, 0) != child || status != 0) return 10;
    return 0;
}
