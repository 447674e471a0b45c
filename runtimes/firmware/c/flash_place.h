/* Where a byte of a bank is, for drivers: as loads see it, and from the start of the flash. */
#ifndef EDGEMEM_FLASH_PLACE_H
#define EDGEMEM_FLASH_PLACE_H

#include "board.h"

#include "registers.h"

#include <stdint.h>

/* One function that runs from RAM: start-up copies it there, and it may call nothing that is in flash. */
#define IN_RAM __attribute__((noinline, section(".ramfunc")))

static inline uint32_t flash_address(uint32_t bank, uint32_t offset)
{
    return FLASH_START + bank * FLASH_BANK_BYTES + offset;
}

/* Word by word, and none beyond the last byte. */
static inline void flash_copy(void *to, uint32_t at, uint32_t bytes)
{
    unsigned char *p = to;
    uint32_t word = 0, i;
    for (i = 0; i < bytes; ++i) {
        const uint32_t place = (at + i) % 4u;
        if (i == 0 || place == 0) word = register_get(at + i - place);
        p[i] = (unsigned char)(word >> 8 * place);
    }
}

static inline uint32_t flash_offset(uint32_t bank, uint32_t offset)
{
    return flash_address(bank, offset) - FLASH_ORIGIN;
}

#endif
