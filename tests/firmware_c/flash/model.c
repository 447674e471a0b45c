/* A model with three states of odd sizes, and the places where a model of the flash is put in. */
#include "edgemem_model.h"
#include "registers.h"
#include "rom.h"

uint32_t (*sim)(uint32_t what, uint32_t a, uint32_t b);
uint32_t (*sim_rom)(uint32_t name, uint32_t a, uint32_t b, uint32_t c, uint32_t d, const void *data);

unsigned char states[STATE_BYTES];
static unsigned char *const places[] = {states, states + 5, states + 40};
const uint32_t edgemem_state_count = 3;
const uint32_t edgemem_state_sizes[] = {5, 35, STATE_BYTES - 40};
const uint32_t edgemem_identity[2] = {0x89ABCDEFu, 0x01234567u};

void *edgemem_state_at(uint32_t index)
{
    return places[index];
}
