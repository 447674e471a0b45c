/* A board whose flash edgemem does not write. To keep snapshots there, define these four functions for your chip in a
 * file of your own in app/: they replace the ones here. Two banks of FLASH_BANK_BYTES lie at FLASH_START, whole pages of
 * FLASH_PAGE_BYTES (`flash_page_bytes` in the board's TOML file); snapshot.h says what is written, in units of
 * FLASH_UNIT_BYTES (`flash_unit_bytes` there, 4 if it says nothing).
 */
#include "flash.h"

__attribute__((weak)) int flash_there(void)
{
    return 0;
}

__attribute__((weak)) int flash_read(uint32_t bank, uint32_t offset, void *to, uint32_t bytes)
{
    (void)bank;
    (void)offset;
    (void)to;
    (void)bytes;
    return 0;
}

__attribute__((weak)) void flash_erase_page(uint32_t bank, uint32_t page)
{
    (void)bank;
    (void)page;
}

__attribute__((weak)) void flash_write(uint32_t bank, uint32_t offset, const uint32_t *unit)
{
    (void)bank;
    (void)offset;
    (void)unit;
}
