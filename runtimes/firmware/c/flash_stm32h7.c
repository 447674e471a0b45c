/* Flash of ST's STM32H742, H743 and H753, through its controller: by sectors of 128 KiB, and by words of 256 bits.
 *
 * ST RM0433, chapter 4, "Embedded flash memory". Ten bits of ECC belong to each such word, so that it is written whole and
 * once. One that the power left half written or half erased may have two wrong bits: loading it is a bus fault, which is
 * ignored here, and known by the flag DBECCERR. Built, not run: no emulator has this controller.
 */
#include "flash.h"

#include "flash_place.h"

#define CONTROLLER 0x52002000u
#define BANK_REGISTERS 0x100u /* between those of both banks of the chip */
#define BANK_BYTES 0x100000u
#define SECTOR_BYTES 0x20000u
enum { KEY = 0x04, CONTROL = 0x0C, STATUS = 0x10, CLEAR = 0x14 };

#define KEY_FIRST 0x45670123u
#define KEY_SECOND 0xCDEF89ABu
#define LOCK (1u << 0)
#define PROGRAM (1u << 1)
#define SECTOR_ERASE (1u << 2)
#define WORDS (2u << 4) /* 32 bits are written in parallel */
#define START (1u << 7)
#define SECTOR_AT 8
#define QUEUED (1u << 2) /* QW: an operation waits or runs */
#define DOUBLE_ERROR (1u << 26)
#define FLAGS 0x07EF0000u /* EOP, WRPERR, PGSERR, STRBERR, INCERR, OPERR, RDPERR, RDSERR, SNECCERR, DBECCERR */

/* The registers of the bank of the chip that an address is in. */
static uint32_t registers_of(uint32_t at)
{
    return CONTROLLER + (at - FLASH_ORIGIN) / BANK_BYTES * BANK_REGISTERS;
}

static void begin(uint32_t registers, uint32_t operation)
{
    while ((register_get(registers + STATUS) & QUEUED) != 0) {}
    if ((register_get(registers + CONTROL) & LOCK) != 0) {
        register_put(registers + KEY, KEY_FIRST);
        register_put(registers + KEY, KEY_SECOND);
    }
    register_put(registers + CLEAR, FLAGS);
    register_put(registers + CONTROL, operation | WORDS);
    core_wait();
}

static void end(uint32_t registers)
{
    core_wait();
    while ((register_get(registers + STATUS) & QUEUED) != 0) {}
    register_put(registers + CONTROL, WORDS);
    register_put(registers + CONTROL, WORDS | LOCK);
}

int flash_there(void)
{
    return 1;
}

int flash_read(uint32_t bank, uint32_t offset, void *to, uint32_t bytes)
{
    const uint32_t at = flash_address(bank, offset), registers = registers_of(at);
    uint32_t before, broken;
    data_cache_forget(at, bytes);
    register_put(registers + CLEAR, FLAGS);
    before = bus_faults_ignored();
    flash_copy(to, at, bytes);
    bus_faults_back(before);
    broken = register_get(registers + STATUS) & DOUBLE_ERROR;
    register_put(registers + CLEAR, FLAGS);
    return broken == 0;
}

void flash_erase_page(uint32_t bank, uint32_t page)
{
    const uint32_t at = flash_address(bank, page * FLASH_PAGE_BYTES), registers = registers_of(at);
    const uint32_t sector = (at - FLASH_ORIGIN) % BANK_BYTES / SECTOR_BYTES;
    const uint32_t operation = SECTOR_ERASE | sector << SECTOR_AT;
    begin(registers, operation);
    register_put(registers + CONTROL, operation | WORDS | START);
    end(registers);
}

void flash_write(uint32_t bank, uint32_t offset, const uint32_t *unit)
{
    const uint32_t at = flash_address(bank, offset), registers = registers_of(at);
    uint32_t i;
    begin(registers, PROGRAM);
    for (i = 0; i < FLASH_UNIT_BYTES; i += 4) register_put(at + i, *unit++);
    end(registers);
}
