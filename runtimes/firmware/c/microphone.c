/* An example for a board with a microphone: two buffers that are filled in turn, words on the console.
 *
 *     make microphone.elf
 *
 * The interrupt copies half a buffer into the ring of sound.c; the loop here takes what is there, and sleeps. Where the
 * core is too slow for that, samples are dropped, counted and said.
 */
#include "microphone.h"

#include "console.h"
#include "edgemem_model.h"
#include "hearing.h"
#include "selftest.h"
#include "sound.h"
#include "start.h"

int16_t microphone_buffer[2 * MICROPHONE_HALF];

void microphone_half(uint32_t half)
{
    sound_samples(microphone_buffer + half * MICROPHONE_HALF, MICROPHONE_HALF);
}

__attribute__((weak)) void microphone_start(void)
{
    console_text("no microphone: write microphone_start for this board, see microphone.h\n");
}

__attribute__((weak)) int microphone_ended(void)
{
    return 0;
}

void sound_given(const float *outputs, uint32_t row)
{
    hearing_row(outputs, row);
}

/* Until an interrupt, unless there are samples: one that comes in between is held back, and still wakes the core. */
static void sleep(void)
{
#if defined(__arm__)
    __asm__ volatile("cpsid i" ::: "memory");
    if (sound_waiting() == 0 && !microphone_ended()) __asm__ volatile("wfi" ::: "memory");
    __asm__ volatile("cpsie i" ::: "memory");
#elif defined(__riscv)
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrci mstatus, 8\n\t.option pop" ::: "memory");
    if (sound_waiting() == 0 && !microphone_ended()) __asm__ volatile("wfi" ::: "memory");
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrsi mstatus, 8\n\t.option pop" ::: "memory");
#endif
}

static void say_lost(uint32_t count)
{
    console_text("too slow: ");
    console_unsigned(count);
    console_text(" samples were lost\n");
}

int main(void)
{
    uint32_t lost = 0;
    console_open();
    if (!selftest()) return 1;
    hearing_open();
    sound_open();
    microphone_start();
    while (!microphone_ended()) {
        while (sound_step()) {}
        if (sound_dropped() != lost) say_lost(lost = sound_dropped());
        sleep();
    }
    while (sound_step()) {}
    sound_end();
    if (sound_dropped() != lost) say_lost(sound_dropped());
    console_text("end\n");
    return 0;
}
