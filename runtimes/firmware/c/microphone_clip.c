/* No microphone: the recording in flash, brought by the interrupt of the system timer as a DMA would bring it.
 *
 * It stands where the driver of a board goes, and shows on any Cortex-M that ring, front end and model keep up.
 */
#include "microphone.h"

#include "board.h"
#include "sound_model.h"
#include "start.h"

#include <string.h>

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_CURRENT (*(volatile uint32_t *)0xE000E018u)
#define FROM_CORE_CLOCK_WITH_INTERRUPT 7u

#ifndef MICROPHONE_SPEED
#define MICROPHONE_SPEED 1u /* times real time; more than the core can do loses samples */
#endif
#define PERIOD (BOARD_START_HZ / SOUND_RATE * MICROPHONE_HALF / MICROPHONE_SPEED)

extern const int16_t clip_start[], clip_end[];

static const int16_t *at = clip_start;
static uint32_t filling;
static volatile int ended;

void tick(void)
{
    int16_t *const half = microphone_buffer + filling * MICROPHONE_HALF;
    const size_t left = (size_t)(clip_end - at), count = left < MICROPHONE_HALF ? left : MICROPHONE_HALF;
    memset(half, 0, MICROPHONE_HALF * sizeof *half); /* silence behind its end */
    memcpy(half, at, count * sizeof *half);
    at += count;
    microphone_half(filling);
    filling ^= 1u;
    if (at == clip_end) {
        SYSTICK_CONTROL = 0;
        ended = 1;
    }
}

void microphone_start(void)
{
    SYSTICK_RELOAD = PERIOD - 1u;
    SYSTICK_CURRENT = 0;
    SYSTICK_CONTROL = FROM_CORE_CLOCK_WITH_INTERRUPT;
}

int microphone_ended(void)
{
    return ended;
}
