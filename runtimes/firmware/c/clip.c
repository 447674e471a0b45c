/* An example without a microphone: a recording in flash, in the blocks in which a DMA would bring it.
 *
 *     make clip.elf
 */
#include "console.h"
#include "counter.h"
#include "edgemem_model.h"
#include "hearing.h"
#include "selftest.h"
#include "sound.h"
#include "start.h"

extern const int16_t clip_start[], clip_end[];

enum { BLOCK = 160 };

void sound_given(const float *outputs, uint32_t row)
{
    hearing_row(outputs, row);
}

int main(void)
{
    const int16_t *at = clip_start;
    console_open();
    counter_start();
    if (!selftest()) return 1;
    hearing_open();
    sound_open();
    while (at != clip_end) {
        const size_t left = (size_t)(clip_end - at), count = left < BLOCK ? left : BLOCK;
        sound_samples(at, count);
        at += count;
        while (sound_step()) {}
    }
    sound_end();
    console_text(sound_dropped() == 0 ? "end\n" : "samples were lost\n");
    return sound_dropped() != 0;
}
