/* Flash of Nordic's nRF51 and nRF52, through their controller (NVMC). */
#include "flash.h"

#include "board.h"

extern uint32_t snapshot_start[];

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
    return FLASH_BANK_BYTES != 0; /* none where the program needs all of the flash */
}

const uint32_t *flash_bank(uint32_t bank)
{
    return snapshot_start + bank * (FLASH_BANK_BYTES / 4);
}

void flash_erase_page(uint32_t bank, uint32_t page)
{
    configure(ERASE);
    NVMC_ERASEPAGE = (uint32_t)(uintptr_t)(flash_bank(bank) + page * (FLASH_PAGE_BYTES / 4));
    while ((NVMC_READY & 1u) == 0) {}
    configure(READ_ONLY);
}

void flash_write_word(uint32_t bank, uint32_t index, uint32_t value)
{
    configure(WRITE);
    *(volatile uint32_t *)(uintptr_t)(flash_bank(bank) + index) = value;
    while ((NVMC_READY & 1u) == 0) {}
    configure(READ_ONLY);
}
