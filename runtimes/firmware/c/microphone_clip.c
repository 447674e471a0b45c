/* No microphone: the recording in flash, brought by the interrupt of a timer as a DMA would bring it.
 *
 * It stands where the driver of a board goes, and shows that ring, front end and model keep up: on any Cortex-M by its
 * SysTick, on a RISC-V core by the machine timer of its privileged architecture, where the board has one.
 */
#include "microphone.h"

#include "board.h"
#include "sound_model.h"
#include "start.h"

#include <string.h>

#ifndef MICROPHONE_SPEED
#define MICROPHONE_SPEED 1u /* times real time; more than the core can do loses samples */
#endif
/* Ticks of a clock from one half of the buffer to the next. */
#define PERIOD_OF(hz) ((uint32_t)((uint64_t)(hz) * MICROPHONE_HALF / SOUND_RATE / MICROPHONE_SPEED))

extern const int16_t clip_start[], clip_end[];

static const int16_t *at = clip_start;
static uint32_t filling;
static volatile int ended;

/* The next half is full; 0 at the end of the recording. */
static int brought(void)
{
    int16_t *const half = microphone_buffer + filling * MICROPHONE_HALF;
    const size_t left = (size_t)(clip_end - at), count = left < MICROPHONE_HALF ? left : MICROPHONE_HALF;
    memset(half, 0, MICROPHONE_HALF * sizeof *half); /* silence behind its end */
    memcpy(half, at, count * sizeof *half);
    at += count;
    microphone_half(filling);
    filling ^= 1u;
    if (at == clip_end) ended = 1;
    return !ended;
}

#if defined(__riscv)

#define TIMER_INTERRUPT (1u << 7) /* in mie, and its number is 7 */
#define ALL_INTERRUPTS (1u << 3)  /* in mstatus */
#define WORD(address) (*(volatile uint32_t *)(uintptr_t)(address))

static uint64_t next;

/* When the timer interrupts: never earlier meanwhile, as the privileged architecture shows for two halves of 32 bits. */
static void compare(uint64_t time)
{
    WORD(BOARD_TIMER_COMPARE) = 0xFFFFFFFFu;
    WORD(BOARD_TIMER_COMPARE + 4u) = (uint32_t)(time >> 32);
    WORD(BOARD_TIMER_COMPARE) = (uint32_t)time;
}

static uint64_t now(void)
{
    uint32_t high, low;
    do {
        high = WORD(BOARD_TIMER_TIME + 4u);
        low = WORD(BOARD_TIMER_TIME);
    } while (high != WORD(BOARD_TIMER_TIME + 4u));
    return (uint64_t)high << 32 | low;
}

void irq_7(void);

void irq_7(void)
{
    next += PERIOD_OF(BOARD_TIMER_HZ);
    compare(brought() ? next : ~(uint64_t)0);
}

void microphone_start(void)
{
    next = now() + PERIOD_OF(BOARD_TIMER_HZ);
    compare(next);
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrs mie, %0\n\tcsrs mstatus, %1\n\t.option pop"
                     :
                     : "r"(TIMER_INTERRUPT), "r"(ALL_INTERRUPTS)
                     : "memory");
}

#else

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_CURRENT (*(volatile uint32_t *)0xE000E018u)
#define FROM_CORE_CLOCK_WITH_INTERRUPT 7u

void tick(void)
{
    if (!brought()) SYSTICK_CONTROL = 0;
}

void microphone_start(void)
{
    SYSTICK_RELOAD = PERIOD_OF(BOARD_START_HZ) - 1u;
    SYSTICK_CURRENT = 0;
    SYSTICK_CONTROL = FROM_CORE_CLOCK_WITH_INTERRUPT;
}

#endif

int microphone_ended(void)
{
    return ended;
}
