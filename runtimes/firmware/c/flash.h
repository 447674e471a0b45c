/* The two banks of flash that hold snapshots; each has FLASH_BANK_BYTES, whole pages. */
#ifndef EDGEMEM_FLASH_H
#define EDGEMEM_FLASH_H

#include <stdint.h>

int flash_there(void);
const uint32_t *flash_bank(uint32_t bank);
void flash_erase_page(uint32_t bank, uint32_t page); /* all ones */
void flash_write_word(uint32_t bank, uint32_t index, uint32_t value);

#endif
