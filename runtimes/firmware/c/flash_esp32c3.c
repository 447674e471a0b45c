/* Flash beside Espressif's ESP32-C3, through functions in its ROM: sectors of 4 KiB, pages of 256 bytes.
 *
 * While they work, the cache is stopped through which the core sees flash: `change` is in RAM, what it calls is in ROM,
 * and interrupts are off. Built, not run: no emulator here has this chip.
 */
#include "flash.h"

#include "flash_place.h"
#include "rom_esp32c3.h"

#define BLOCK_BYTES 65536u
#define STATUS_MASK 0xFFFFu

typedef void (*changer)(uint32_t at, const uint32_t *unit);

/* Without `unit` a sector is erased. */
static IN_RAM void change(uint32_t at, const uint32_t *unit)
{
    const uint32_t before = ROM_CACHE_STOP();
    (void)ROM_DESCRIBE(0, FLASH_BYTES, BLOCK_BYTES, FLASH_PAGE_BYTES, FLASH_UNIT_BYTES, STATUS_MASK);
    if (unit == 0) (void)ROM_ERASE_SECTOR(at / FLASH_PAGE_BYTES);
    else (void)ROM_WRITE(at, unit, FLASH_UNIT_BYTES);
    ROM_CACHE_FORGET();
    ROM_CACHE_GO(before);
}

static void changed(uint32_t at, const uint32_t *unit)
{
    const uint32_t before = interrupts_off();
    ((changer)((uintptr_t)change + RAM_OF_INSTRUCTIONS))(at, unit);
    interrupts_back(before);
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
    changed(flash_offset(bank, page * FLASH_PAGE_BYTES), 0);
}

void flash_write(uint32_t bank, uint32_t offset, const uint32_t *unit)
{
    changed(flash_offset(bank, offset), unit);
}
