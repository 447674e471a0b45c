#include "serve.h"

#include "board.h"
#include "console.h"
#include "counter.h"
#include "edgemem_model.h"
#include "marks.h"
#include "snapshot.h"
#include "start.h"

#include <string.h>

#if SNAPSHOTS
#include "flash.h"
#endif

static int give_word(uint32_t word)
{
    console_write(&word, sizeof word);
    return 1;
}

static int take_inputs(void)
{
    uint32_t i;
    for (i = 0; i < edgemem_input_count; ++i) {
        if (!console_read(edgemem_inputs[i].data, edgemem_inputs[i].bytes)) return 0;
    }
    return 1;
}

static int step(void)
{
    uint32_t i;
    if (!take_inputs()) return 0;
    (void)give_word((uint32_t)edgemem_step());
    for (i = 0; i < edgemem_output_count; ++i) console_write(edgemem_outputs[i].data, edgemem_outputs[i].bytes);
    return 1;
}

static int states(int put)
{
    uint32_t i;
    for (i = 0; i < edgemem_state_count; ++i) {
        void *const place = edgemem_state_at(i);
        if (put ? !console_read(place, edgemem_state_sizes[i]) : 0) return 0;
        if (!put) console_write(place, edgemem_state_sizes[i]);
    }
    return 1;
}

/* Steps on the test vectors, over and over; only the steps themselves are counted. */
static uint32_t counted(uint32_t steps)
{
    uint32_t ticks = 0, done, i, at = 0;
    const unsigned char *in = edgemem_vector_inputs;
    for (done = 0; done < steps; ++done) {
        uint32_t start;
        for (i = 0; i < edgemem_input_count; ++i) {
            memcpy(edgemem_inputs[i].data, in, edgemem_inputs[i].bytes);
            in += edgemem_inputs[i].bytes;
        }
        start = counter_now();
        (void)edgemem_step();
        ticks += counter_since(start);
        if (++at == edgemem_vector_steps) {
            at = 0;
            in = edgemem_vector_inputs;
        }
    }
    return ticks;
}

static int count(void)
{
    uint32_t steps;
    if (!console_read(&steps, sizeof steps)) return 0;
#if EDGEMEM_CALLS
    memset(edgemem_ticks, 0, sizeof edgemem_ticks);
#endif
    (void)give_word(counted(steps));
#if EDGEMEM_CALLS
    console_write(edgemem_ticks, sizeof edgemem_ticks);
#endif
    return 1;
}

#if SNAPSHOTS

static uint32_t saved(uint32_t units)
{
    return (uint32_t)snapshot_save(units);
}

static uint32_t loaded(void)
{
    return (uint32_t)snapshot_load();
}

/* Both banks as they are; nothing where there is no flash. */
static int flash(void)
{
    uint32_t bank, at;
    for (bank = 0; flash_there() && bank < 2; ++bank) {
        for (at = 0; at < FLASH_BANK_BYTES; at += 4) {
            uint32_t word = 0;
            (void)flash_read(bank, at, &word, sizeof word);
            (void)give_word(word);
        }
    }
    return 1;
}

#else

static uint32_t saved(uint32_t units)
{
    (void)units;
    return SNAPSHOT_NO_FLASH;
}

static uint32_t loaded(void)
{
    return SNAPSHOT_NO_FLASH;
}

static int flash(void)
{
    return 1;
}

#endif

static int save(void)
{
    uint32_t units;
    if (!console_read(&units, sizeof units)) return 0;
    return give_word(saved(units));
}

void serve(void)
{
    char command;
    int on = 1;
    while (on && console_read(&command, 1)) {
        switch (command) {
        case 'S': on = step(); break;
        case 'G': on = states(0); break;
        case 'P': on = states(1) && give_word(0); break;
        case 'R': on = give_word((uint32_t)edgemem_reset()); break;
        case 'C': on = count(); break;
        case 'H': on = give_word(stack_used()); break;
        case 'W': on = save(); break;
        case 'F': on = flash(); break;
        case 'L': on = give_word(loaded()); break;
        default: on = 0;
        }
    }
}
