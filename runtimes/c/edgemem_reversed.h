/* Places in bit-reversed order: place 0, then what edgemem_reversed makes of the last one, for `count` = 2^n places. */
#ifndef EDGEMEM_REVERSED_H
#define EDGEMEM_REVERSED_H

#include <stddef.h>

/* The reversed number plus one: a carry that runs down from the highest bit. */
static inline size_t edgemem_reversed(size_t place, size_t count)
{
    size_t bit = count / 2;
    while (bit != 0 && (place & bit) != 0) {
        place ^= bit;
        bit /= 2;
    }
    return place | bit;
}

#endif
