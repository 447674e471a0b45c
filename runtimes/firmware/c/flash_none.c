/* A board whose flash edgemem does not write. To keep snapshots there, define these four functions for your chip in a
 * file of your own in app/: they replace the ones here. Two banks of FLASH_BANK_BYTES lie at snapshot_start, whole pages
 * of FLASH_PAGE_BYTES (`flash_page_bytes` in the board's TOML file); snapshot.h says what is written, in words of 4 bytes.
 */
#include "flash.h"

__attribute__((weak)) int flash_there(void)
{
    return 0;
}

__attribute__((weak)) const uint32_t *flash_bank(uint32_t bank)
{
    (void)bank;
    return 0;
}

__attribute__((weak)) void flash_erase_page(uint32_t bank, uint32_t page)
{
    (void)bank;
    (void)page;
}

__attribute__((weak)) void flash_write_word(uint32_t bank, uint32_t index, uint32_t value)
{
    (void)bank;
    (void)index;
    (void)value;
}
