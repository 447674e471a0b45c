/* Flash of ST's STM32F4 and STM32F7 with one bank of it, through their controller: by sectors, and by words.
 *
 * Registers, keys and sequences: ST RM0390 (STM32F446) and RM0385 (STM32F74x), chapter 3, "Embedded flash memory". Words
 * of 32 bits want a supply of 2.7 V at least. The core may run from the flash that is written: fetches wait, up to the
 * seconds that a large sector takes, and interrupts with them. Built, not run: no emulator has this controller.
 */
#include "flash.h"

#include "flash_place.h"

#define CONTROLLER 0x40023C00u
#define ACCESS (CONTROLLER + 0x00u)
#define KEY (CONTROLLER + 0x04u)
#define STATUS (CONTROLLER + 0x0Cu)
#define CONTROL (CONTROLLER + 0x10u)

#define KEY_FIRST 0x45670123u
#define KEY_SECOND 0xCDEF89ABu
#define DATA_CACHE (1u << 10) /* DCEN and DCRST of the F4's own cache; an F7 has no such bits */
#define DATA_CACHE_RESET (1u << 12)
#define ERRORS 0xF2u /* OPERR, WRPERR, PGAERR, PGPERR, PGSERR or ERSERR: gone once ones are written */
#define BUSY (1u << 16)
#define PROGRAM (1u << 0)
#define SECTOR_ERASE (1u << 1)
#define SECTOR_AT 3
#define WORDS (2u << 8)
#define START (1u << 16)
#define LOCK (1u << 31)

static void wait(void)
{
    while ((register_get(STATUS) & BUSY) != 0) {}
}

static void begin(uint32_t operation)
{
    wait();
    if ((register_get(CONTROL) & LOCK) != 0) {
        register_put(KEY, KEY_FIRST);
        register_put(KEY, KEY_SECOND);
    }
    register_put(STATUS, ERRORS);
    register_put(CONTROL, operation | WORDS);
}

static void end(void)
{
    core_wait();
    wait();
    register_put(CONTROL, LOCK);
}

/* Five smaller sectors take the place of the first large one: a page, which the banks consist of, is one of the others. */
static uint32_t sector_of(uint32_t bank, uint32_t page)
{
    return 4u + flash_offset(bank, page * FLASH_PAGE_BYTES) / FLASH_PAGE_BYTES;
}

static void caches_forget(uint32_t at, uint32_t bytes)
{
    const uint32_t access = register_get(ACCESS);
    data_cache_forget(at, bytes);
    if ((access & DATA_CACHE) == 0) return;
    register_put(ACCESS, access & ~DATA_CACHE);
    register_put(ACCESS, (access & ~DATA_CACHE) | DATA_CACHE_RESET);
    register_put(ACCESS, access & ~DATA_CACHE);
    register_put(ACCESS, access);
}

int flash_there(void)
{
    return 1;
}

int flash_read(uint32_t bank, uint32_t offset, void *to, uint32_t bytes)
{
    const uint32_t at = flash_address(bank, offset);
    caches_forget(at, bytes);
    flash_copy(to, at, bytes);
    return 1;
}

void flash_erase_page(uint32_t bank, uint32_t page)
{
    const uint32_t operation = SECTOR_ERASE | sector_of(bank, page) << SECTOR_AT;
    begin(operation);
    register_put(CONTROL, operation | WORDS | START);
    end();
}

void flash_write(uint32_t bank, uint32_t offset, const uint32_t *unit)
{
    begin(PROGRAM);
    register_put(flash_address(bank, offset), *unit);
    end();
}
