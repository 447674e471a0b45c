/* Functions of a ROM: calls into the model, by name; `data` is memory of this process. */
#include <stdint.h>

extern uint32_t (*sim_rom)(uint32_t name, uint32_t a, uint32_t b, uint32_t c, uint32_t d, const void *data);

#define NAME(first, second) ((uint32_t)(first) | (uint32_t)(second) << 8)
