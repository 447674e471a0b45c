/* From samples to rows of outputs: a ring that an interrupt fills, the front end, and the model.
 *
 *     interrupt of DMA or PDM:   sound_samples(buffer, count);           16 bits, mono, SOUND_RATE a second
 *     main loop:                 while (sound_step()) {}                 calls sound_given for every row
 *     end of a recording:        sound_end();                            the rows that wait for later samples
 *
 * One producer and one consumer; the ring needs no lock. What does not fit into it is dropped and counted.
 */
#ifndef EDGEMEM_SOUND_H
#define EDGEMEM_SOUND_H

#include <stddef.h>
#include <stdint.h>

void sound_open(void); /* back to the first sample, and the model to its start state */
void sound_samples(const int16_t *samples, size_t count);
int sound_step(void); /* takes what is in the ring, up to one step of the model; 0 when there is nothing more to do */
void sound_end(void);
uint32_t sound_waiting(void); /* samples in the ring */
uint32_t sound_dropped(void);

/* Yours: outputs of row `row` (the first output of the model, SOUND_OUTPUTS floats). */
void sound_given(const float *outputs, uint32_t row);

#endif
