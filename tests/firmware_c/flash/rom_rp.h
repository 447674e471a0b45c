#include "rom.h"

#define ROM_NAME NAME

static void connect(void) { (void)sim_rom(NAME('I', 'F'), 0, 0, 0, 0, 0); }
static void leave(void) { (void)sim_rom(NAME('E', 'X'), 0, 0, 0, 0, 0); }
static void flush(void) { (void)sim_rom(NAME('F', 'C'), 0, 0, 0, 0, 0); }
static void enter(void) { (void)sim_rom(NAME('C', 'X'), 0, 0, 0, 0, 0); }
static void program(uint32_t at, const uint8_t *data, uint32_t bytes)
{
    (void)sim_rom(NAME('R', 'P'), at, bytes, 0, 0, data);
}
static void erase(uint32_t at, uint32_t bytes, uint32_t block, uint8_t command)
{
    (void)sim_rom(NAME('R', 'E'), at, bytes, block, command, 0);
}

static void *rom_function(uint32_t name)
{
    switch (name) {
    case NAME('I', 'F'): return (void *)connect;
    case NAME('E', 'X'): return (void *)leave;
    case NAME('F', 'C'): return (void *)flush;
    case NAME('C', 'X'): return (void *)enter;
    case NAME('R', 'P'): return (void *)program;
    case NAME('R', 'E'): return (void *)erase;
    default: return 0;
    }
}
