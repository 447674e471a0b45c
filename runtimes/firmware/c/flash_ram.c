/* Flash of emulated boards: memory that, as flash does, only loses ones between erasures. */
#include "flash.h"

#include "flash_place.h"

int flash_there(void)
{
    return 1;
}

int flash_read(uint32_t bank, uint32_t offset, void *to, uint32_t bytes)
{
    flash_copy(to, flash_address(bank, offset), bytes);
    return 1;
}

void flash_erase_page(uint32_t bank, uint32_t page)
{
    volatile uint32_t *const p = (volatile uint32_t *)(uintptr_t)flash_address(bank, page * FLASH_PAGE_BYTES);
    uint32_t i;
    for (i = 0; i < FLASH_PAGE_BYTES / 4; ++i) p[i] = 0xFFFFFFFFu;
}

void flash_write(uint32_t bank, uint32_t offset, const uint32_t *unit)
{
    volatile uint32_t *const p = (volatile uint32_t *)(uintptr_t)flash_address(bank, offset);
    uint32_t i;
    for (i = 0; i < FLASH_UNIT_BYTES / 4; ++i) p[i] &= unit[i];
}
