/* Functions in the ROM of the ESP32-C3 that write its flash and rule its cache.
 *
 * Addresses: esp32c3.rom.ld of Espressif's ESP-IDF (groups spiflash_legacy and cache, all revisions of the ROM); arguments:
 * its rom/spi_flash.h and rom/cache.h.
 */
#ifndef EDGEMEM_ROM_ESP32C3_H
#define EDGEMEM_ROM_ESP32C3_H

#include <stdint.h>

#define ROM_ERASE_SECTOR ((int (*)(uint32_t sector))0x40000128u)
#define ROM_WRITE ((int (*)(uint32_t at, const uint32_t *data, int32_t bytes))0x4000012Cu)
#define ROM_DESCRIBE ((int (*)(uint32_t id, uint32_t chip, uint32_t block, uint32_t sector, uint32_t page, uint32_t mask))0x40000134u)
#define ROM_CACHE_FORGET ((void (*)(void))0x400004D8u)
#define ROM_CACHE_STOP ((uint32_t(*)(void))0x40000524u)
#define ROM_CACHE_GO ((void (*)(uint32_t before))0x40000528u)

/* The bus of instructions sees RAM at another address than that of data; ESP32-C3 Technical Reference Manual, 3.3.2. */
#define RAM_OF_INSTRUCTIONS 0x700000u

#endif
