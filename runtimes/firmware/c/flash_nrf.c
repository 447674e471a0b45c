/* Flash of Nordic's nRF51 and nRF52, through their controller (NVMC). */
#include "flash.h"

#include "flash_place.h"

#define NVMC_READY (*(volatile uint32_t *)0x4001E400u)
#define NVMC_CONFIG (*(volatile uint32_t *)0x4001E504u)
#define NVMC_ERASEPAGE (*(volatile uint32_t *)0x4001E508u)

enum { READ_ONLY = 0, WRITE = 1, ERASE = 2 };

static void configure(uint32_t mode)
{
    NVMC_CONFIG = mode;
    while ((NVMC_READY & 1u) == 0) {}
}

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
    configure(ERASE);
    NVMC_ERASEPAGE = flash_address(bank, page * FLASH_PAGE_BYTES);
    while ((NVMC_READY & 1u) == 0) {}
    configure(READ_ONLY);
}

void flash_write(uint32_t bank, uint32_t offset, const uint32_t *unit)
{
    configure(WRITE);
    *(volatile uint32_t *)(uintptr_t)flash_address(bank, offset) = *unit; /* a unit is a word here */
    while ((NVMC_READY & 1u) == 0) {}
    configure(READ_ONLY);
}
