/* Functions in the ROM of Raspberry Pi's chips, by the two letters of their names.
 *
 * RP2040 Datasheet, 2.8.2 "Bootrom Contents" and 2.8.3; RP2350 Datasheet, 5.4 "Bootrom APIs" (Arm, secure).
 */
#ifndef EDGEMEM_ROM_RP_H
#define EDGEMEM_ROM_RP_H

#include <stdint.h>

#define ROM_NAME(first, second) ((uint32_t)(first) | (uint32_t)(second) << 8)

/* A pointer of 16 bits in the first bytes of memory, where a compiler expects no object. */
static inline uintptr_t rom_pointer(uintptr_t at)
{
    __asm__("" : "+r"(at));
    return *(const volatile uint16_t *)at;
}

static inline void *rom_function(uint32_t name)
{
#if defined(__ARM_ARCH_6M__) /* RP2040 */
    typedef void *(*lookup)(const uint16_t *table, uint32_t name);
    return ((lookup)rom_pointer(0x18))((const uint16_t *)rom_pointer(0x14), name);
#else /* RP2350 */
    typedef void *(*lookup)(uint32_t name, uint32_t kind);
    return ((lookup)rom_pointer(0x16))(name, 4); /* a function for Arm, secure */
#endif
}

#endif
