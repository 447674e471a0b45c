/* Every row of outputs as bytes instead of words: what the streaming example heard, to be compared. */
#include "console.h"
#include "sound.h"
#include "sound_model.h"
#include "start.h"

extern const int16_t clip_start[], clip_end[];

void sound_given(const float *outputs, uint32_t row)
{
    (void)row;
    console_write(outputs, SOUND_OUTPUTS * sizeof *outputs);
}

int main(void)
{
    const int16_t *at = clip_start;
    console_open();
    console_text("rows\n");
    sound_open();
    while (at != clip_end) {
        const size_t left = (size_t)(clip_end - at), count = left < 333 ? left : 333;
        sound_samples(at, count);
        at += count;
        while (sound_step()) {}
    }
    sound_end();
    return 0;
}
