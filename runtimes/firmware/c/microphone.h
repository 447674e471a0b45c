/* A microphone: something that fills two halves of a buffer in turn, and says so from its interrupt.
 *
 * microphone_start is the driver's; examples/ has one for this board, or one that plays the recording in flash instead.
 * To write your own: set up the clock, the PDM or I2S port and a DMA of 2 * MICROPHONE_HALF samples (16 bits, mono,
 * SOUND_RATE a second) that goes round in microphone_buffer, and let the interrupts of its half and of its end call
 * microphone_half(0) and microphone_half(1). Nothing else of this project runs in an interrupt.
 * A file app/microphone_NAME.c is compiled into microphone.elf in place of the driver there; its interrupt is irq_N of start.h.
 */
#ifndef EDGEMEM_MICROPHONE_H
#define EDGEMEM_MICROPHONE_H

#include <stdint.h>

enum { MICROPHONE_HALF = 160 }; /* samples */

extern int16_t microphone_buffer[2 * MICROPHONE_HALF];

void microphone_start(void);
void microphone_half(uint32_t half); /* from the interrupt: this half is full, the other is being filled */
int microphone_ended(void);          /* a driver of a recording says when; a real microphone never does */

#endif
