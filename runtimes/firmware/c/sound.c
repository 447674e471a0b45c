#include "sound.h"

#include "edgemem_model.h"
#include "sound_model.h"

#include <string.h>

static int16_t ring[SOUND_RING]; /* a power of two */
static volatile uint32_t written, taken, dropped;
static SOUND_ROOM;
static SOUND_STREAM stream;
static uint32_t waiting;                 /* frames of the chunk that is being made */
static uint32_t frames, rows, given;     /* real frames that the model saw, rows that it made, rows that were given */

void sound_open(void)
{
    taken = written;
    dropped = 0;
    waiting = frames = rows = given = 0;
    SOUND_RESET(&stream, room);
    (void)edgemem_reset();
}

void sound_samples(const int16_t *samples, size_t count)
{
    uint32_t at = written;
    for (; count != 0 && at - taken < SOUND_RING; --count) ring[at++ & (SOUND_RING - 1u)] = *samples++;
    __sync_synchronize(); /* samples before the count of them */
    written = at;
    dropped += (uint32_t)count;
}

uint32_t sound_waiting(void)
{
    return written - taken;
}

uint32_t sound_dropped(void)
{
    return dropped;
}

/* One chunk of which `real` frames are no padding; rows of real frames go to the application, as a stream gives them. */
static void step(uint32_t real)
{
    const float *const outputs = (const float *)(void *)edgemem_outputs[0].data;
    const uint32_t warm_up = given + SOUND_AHEAD, first = warm_up > rows ? warm_up - rows : 0;
    uint32_t last, i;
#if SOUND_VALID
    const int64_t valid = real;
    memcpy(edgemem_inputs[SOUND_VALID].data, &valid, sizeof valid);
#endif
    (void)edgemem_step();
    frames += real;
    rows += SOUND_FRAMES;
    last = rows > SOUND_AHEAD ? rows - SOUND_AHEAD : 0;
    if (last > frames) last = frames;
    for (i = first; given < last; ++given, ++i) sound_given(outputs + i * SOUND_OUTPUTS, given);
}

int sound_step(void)
{
    float *const features = (float *)(void *)edgemem_inputs[0].data;
    while (taken != written) {
        const uint32_t start = taken & (SOUND_RING - 1u), there = written - taken;
        const int16_t *samples = ring + start;
        size_t count = there < SOUND_RING - start ? there : SOUND_RING - start;
        const int whole = SOUND_PUSH(&stream, &samples, &count, features + waiting * SOUND_WIDTH);
        taken += (uint32_t)(samples - (ring + start));
        if (whole && ++waiting == SOUND_FRAMES) {
            waiting = 0;
            step(SOUND_FRAMES);
            return 1;
        }
    }
    return 0;
}

void sound_end(void)
{
    unsigned char *const features = edgemem_inputs[0].data;
    while (waiting != 0 || given < frames) {
        const uint32_t real = waiting;
        memset(features + waiting * SOUND_WIDTH * sizeof(float), 0, (SOUND_FRAMES - waiting) * SOUND_WIDTH * sizeof(float));
        waiting = 0;
        step(real);
    }
}
