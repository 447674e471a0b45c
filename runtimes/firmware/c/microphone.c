/* An example for a board with a microphone: two buffers that a DMA fills in turn, words on the console.
 *
 *     make microphone.elf
 *
 * Yours is the driver: let microphone_start set up the clock, the PDM or I2S port and a circular DMA of 2 * HALF
 * samples into microphone_buffer (16 bits, mono, SOUND_RATE a second), and let the interrupts of its half and of its
 * end call microphone_half(0) and microphone_half(1). With a core that sleeps, wait for an interrupt where it says so.
 */
#include "console.h"
#include "edgemem_model.h"
#include "hearing.h"
#include "selftest.h"
#include "sound.h"
#include "start.h"

enum { HALF = 160 };

extern int16_t microphone_buffer[2 * HALF];
void microphone_half(uint32_t half);
void microphone_start(void);

int16_t microphone_buffer[2 * HALF];

void microphone_half(uint32_t half)
{
    sound_samples(microphone_buffer + half * HALF, HALF);
}

__attribute__((weak)) void microphone_start(void)
{
    console_text("no microphone: write microphone_start for this board, see examples/microphone.c\n");
}

void sound_given(const float *outputs, uint32_t row)
{
    hearing_row(outputs, row);
}

int main(void)
{
    uint32_t lost = 0;
    console_open();
    if (!selftest()) return 0;
    hearing_open();
    sound_open();
    microphone_start();
    for (;;) {
        while (sound_step()) {}
        if (sound_dropped() != lost) {
            lost = sound_dropped();
            console_text("too slow: samples were lost\n");
        }
        /* wait for an interrupt here */
    }
}
