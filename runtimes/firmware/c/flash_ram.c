/* Flash of emulated boards: memory that, as flash does, only loses ones between erasures. */
#include "flash.h"

#include "board.h"

extern uint32_t snapshot_start[];

int flash_there(void)
{
    return FLASH_BANK_BYTES != 0; /* none where the program needs all of the flash */
}

const uint32_t *flash_bank(uint32_t bank)
{
    return snapshot_start + bank * (FLASH_BANK_BYTES / 4);
}

void flash_erase_page(uint32_t bank, uint32_t page)
{
    volatile uint32_t *p = snapshot_start + bank * (FLASH_BANK_BYTES / 4) + page * (FLASH_PAGE_BYTES / 4);
    uint32_t i;
    for (i = 0; i < FLASH_PAGE_BYTES / 4; ++i) p[i] = 0xFFFFFFFFu;
}

void flash_write_word(uint32_t bank, uint32_t index, uint32_t value)
{
    volatile uint32_t *p = snapshot_start + bank * (FLASH_BANK_BYTES / 4);
    p[index] &= value;
}
