#include "rom.h"

#define ROM_ERASE_SECTOR(sector) sim_rom(NAME('R', 'E'), (sector), 0, 0, 0, 0)
#define ROM_WRITE(at, data, bytes) sim_rom(NAME('R', 'P'), (at), (bytes), 0, 0, (data))
#define ROM_DESCRIBE(id, chip, block, sector, page, mask) sim_rom(NAME('C', 'P'), (chip), (block), (sector), (page), 0)
#define ROM_CACHE_FORGET() sim_rom(NAME('F', 'C'), 0, 0, 0, 0, 0)
#define ROM_CACHE_STOP() sim_rom(NAME('E', 'X'), 0, 0, 0, 0, 0)
#define ROM_CACHE_GO(before) sim_rom(NAME('C', 'X'), (before), 0, 0, 0, 0)
#define RAM_OF_INSTRUCTIONS 0u
