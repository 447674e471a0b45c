/* A PDM microphone on Nordic's nRF52840: clock on P0.26, data on P0.25; 16 kHz, mono, left channel.
 *
 * nRF52840 Product Specification, chapters PDM, CLOCK and GPIO. 1.28 MHz over 80 gives 16,000 samples a second. EasyDMA
 * latches where a buffer is when it starts to fill it, so that the next one is named right then.
 */
#include "microphone.h"

#include "sound_model.h"
#include "start.h"

#define CLOCK(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
#define PDM(offset) (*(volatile uint32_t *)(0x4001D000u + (offset)))
#define GPIO(offset) (*(volatile uint32_t *)(0x50000000u + (offset)))
#define NVIC_ENABLE (*(volatile uint32_t *)0xE000E100u)

enum { OUTPUTS = 0x518, PIN_CONFIG = 0x700 };            /* of P0 */
enum { START_CRYSTAL = 0x000, CRYSTAL_STARTED = 0x100 }; /* of the clock */
enum { START = 0x000, STARTED = 0x100, END = 0x108, ENABLE_INTERRUPTS = 0x304, ENABLE = 0x500, CLOCK_SPEED = 0x504,
       MODE = 0x508, GAIN_LEFT = 0x518, GAIN_RIGHT = 0x51C, RATIO = 0x520, PIN_CLOCK = 0x540, PIN_DATA = 0x544,
       BUFFER = 0x560, BUFFER_SAMPLES = 0x564 };
#define CLOCK_1280_KHZ 0x0A000000u
enum { RATIO_80 = 1, MONO = 1, PLAIN_GAIN = 0x28, INTERRUPT = 29, CLOCK_AT = 26, DATA_AT = 25 };

#if SOUND_RATE != 16000
#error "this driver brings 16,000 samples a second; set CLOCK_SPEED and RATIO for another rate"
#endif

static uint32_t started, full; /* halves */

void irq_29(void);

void irq_29(void) /* the PDM's */
{
    if (PDM(END) != 0) {
        PDM(END) = 0;
        microphone_half(full);
        full ^= 1u;
    }
    if (PDM(STARTED) != 0) {
        PDM(STARTED) = 0;
        started ^= 1u;
        PDM(BUFFER) = (uint32_t)(uintptr_t)(microphone_buffer + started * MICROPHONE_HALF);
    }
    (void)PDM(STARTED); /* the write is done before the interrupt returns */
}

void microphone_start(void)
{
    CLOCK(CRYSTAL_STARTED) = 0;
    CLOCK(START_CRYSTAL) = 1;
    while (CLOCK(CRYSTAL_STARTED) == 0) {}
    GPIO(OUTPUTS) = 1u << CLOCK_AT;
    GPIO(PIN_CONFIG + 4 * DATA_AT) = 0; /* an input that is connected */
    PDM(PIN_CLOCK) = CLOCK_AT;
    PDM(PIN_DATA) = DATA_AT;
    PDM(CLOCK_SPEED) = CLOCK_1280_KHZ;
    PDM(RATIO) = RATIO_80;
    PDM(MODE) = MONO;
    PDM(GAIN_LEFT) = PDM(GAIN_RIGHT) = PLAIN_GAIN;
    PDM(BUFFER) = (uint32_t)(uintptr_t)microphone_buffer;
    PDM(BUFFER_SAMPLES) = MICROPHONE_HALF;
    PDM(STARTED) = PDM(END) = 0;
    PDM(ENABLE_INTERRUPTS) = 1u << 0 | 1u << 2; /* of the start and of the end of a half */
    PDM(ENABLE) = 1;
    NVIC_ENABLE = 1u << INTERRUPT;
    PDM(START) = 1;
}
