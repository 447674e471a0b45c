/* Flash beside Raspberry Pi's RP2040 and RP2350, through functions in their ROM: sectors of 4 KiB, pages of 256 bytes.
 *
 * RP2040 Datasheet, 2.8.3.1.3 "Flash Access Functions"; RP2350 Datasheet, 5.4.8. From leaving to entering the mode in
 * which the core runs from flash nothing may touch that: `change` is in RAM, what it calls is in ROM, and interrupts are
 * off. The second core, where you use it, has to be outside flash meanwhile. Built, not run: no emulator has this flash.
 */
#include "flash.h"

#include "flash_place.h"
#include "rom_rp.h"

#define BLOCK_BYTES 65536u
#define BLOCK_ERASE 0xD8 /* command of the flash, used where a whole block is erased */

typedef void (*action)(void);

typedef struct {
    action connect, leave, flush, enter;
    void (*erase)(uint32_t at, uint32_t bytes, uint32_t block_bytes, uint8_t block_command);
    void (*program)(uint32_t at, const uint8_t *data, uint32_t bytes);
} functions;

#if defined(__ARM_ARCH_6M__) /* RP2040: back to the command 03h, which is what boot_rp2040.S chooses, and its clock */

#define SSI_ENABLE 0x18000008u
#define SSI_DIVIDER 0x18000014u

static action way_back(void)
{
    return (action)rom_function(ROM_NAME('C', 'X'));
}

ALWAYS uint32_t clock_kept(void)
{
    return register_get(SSI_DIVIDER);
}

ALWAYS void clock_back(uint32_t divider)
{
    register_put(SSI_ENABLE, 0);
    register_put(SSI_DIVIDER, divider);
    register_put(SSI_ENABLE, 1);
}

#else /* RP2350: its ROM left a function of 256 bytes in boot RAM that chooses what it found best */

#define BOOT_RAM 0x400E0000u

static uint32_t setup[64];

static action way_back(void)
{
    uint32_t i;
    for (i = 0; i < sizeof setup / sizeof setup[0]; ++i) setup[i] = register_get(BOOT_RAM + 4 * i);
    return (action)((uintptr_t)setup | 1u); /* Thumb code */
}

ALWAYS uint32_t clock_kept(void)
{
    return 0;
}

ALWAYS void clock_back(uint32_t kept)
{
    (void)kept;
}

#endif

/* Without `unit` a sector is erased. */
static IN_RAM void change(const functions *rom, uint32_t at, const uint32_t *unit)
{
    const uint32_t kept = clock_kept();
    rom->connect();
    rom->leave();
    if (unit == 0) rom->erase(at, FLASH_PAGE_BYTES, BLOCK_BYTES, BLOCK_ERASE);
    else rom->program(at, (const uint8_t *)unit, FLASH_UNIT_BYTES);
    rom->flush();
    rom->enter();
    clock_back(kept);
}

static void changed(uint32_t at, const uint32_t *unit)
{
    functions rom;
    uint32_t before;
    rom.connect = (action)rom_function(ROM_NAME('I', 'F'));
    rom.leave = (action)rom_function(ROM_NAME('E', 'X'));
    rom.flush = (action)rom_function(ROM_NAME('F', 'C'));
    rom.erase = (void (*)(uint32_t, uint32_t, uint32_t, uint8_t))rom_function(ROM_NAME('R', 'E'));
    rom.program = (void (*)(uint32_t, const uint8_t *, uint32_t))rom_function(ROM_NAME('R', 'P'));
    rom.enter = way_back();
    before = interrupts_off();
    core_wait();
    change(&rom, at, unit);
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
