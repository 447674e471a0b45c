/* What a row of logits says, written to the console as it is known: `1.28 s stop 0.93`. */
#ifndef EDGEMEM_HEARING_H
#define EDGEMEM_HEARING_H

#include <stdint.h>

void hearing_open(void);
void hearing_row(const float *logits, uint32_t row);

#endif
