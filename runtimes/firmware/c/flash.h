/* The two banks of flash that hold snapshots: FLASH_BANK_BYTES each from FLASH_START on, in whole pages that are erased at
 * once, and units of FLASH_UNIT_BYTES that are written at once, each only once after its page was erased.
 */
#ifndef EDGEMEM_FLASH_H
#define EDGEMEM_FLASH_H

#include <stdint.h>

int flash_there(void);
int flash_read(uint32_t bank, uint32_t offset, void *to, uint32_t bytes); /* 0 where what is there cannot be read */
void flash_erase_page(uint32_t bank, uint32_t page);                      /* all ones */
void flash_write(uint32_t bank, uint32_t offset, const uint32_t *unit);   /* `unit` is in RAM */

#endif
