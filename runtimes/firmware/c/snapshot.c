#include "snapshot.h"

#include "board.h"
#include "edgemem_model.h"
#include "flash.h"

#include <string.h>

enum { IDENTITY = 0, SEQUENCE = 2, BYTES = 3, CHECKSUM = 4, HEADER_WORDS = 5 };

#define UNITS_OF(bytes) (((bytes) + FLASH_UNIT_BYTES - 1) / FLASH_UNIT_BYTES)
#define STATE_AT (UNITS_OF(4u * HEADER_WORDS) * FLASH_UNIT_BYTES)
#define PIECE 64u /* bytes that are read at once */

static uint32_t units_left; /* until the power goes */
static int cut;
static uint32_t unit[FLASH_UNIT_BYTES / 4]; /* being filled */
static uint32_t filled, written;            /* bytes of it, and before it */

static int powered(void)
{
    if (units_left == 0) {
        cut = 1;
        return 0;
    }
    if (units_left != SNAPSHOT_WHOLE) --units_left;
    return 1;
}

static uint32_t crc(uint32_t value, const void *data, uint32_t bytes)
{
    const unsigned char *p = data;
    uint32_t bit;
    for (value = ~value; bytes != 0; --bytes) {
        value ^= *p++;
        for (bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (0xEDB88320u & (0u - (value & 1u)));
    }
    return ~value;
}

static uint32_t state_bytes(void)
{
    uint32_t i, total = 0;
    for (i = 0; i < edgemem_state_count; ++i) total += edgemem_state_sizes[i];
    return total;
}

/* Whether a bank holds a whole snapshot of this model, and its sequence number. */
static int valid(uint32_t bank, uint32_t *sequence)
{
    uint32_t header[HEADER_WORDS], piece[PIECE / 4], at, sum;
    if (!flash_read(bank, 0, header, sizeof header)) return 0;
    if (header[IDENTITY] != edgemem_identity[0] || header[IDENTITY + 1] != edgemem_identity[1]) return 0;
    if (header[BYTES] != state_bytes()) return 0;
    sum = crc(0, header, CHECKSUM * 4);
    for (at = 0; at < header[BYTES]; at += PIECE) {
        const uint32_t left = header[BYTES] - at, count = left < PIECE ? left : PIECE;
        if (!flash_read(bank, STATE_AT + at, piece, count)) return 0;
        sum = crc(sum, piece, count);
    }
    *sequence = header[SEQUENCE];
    return sum == header[CHECKSUM];
}

/* The bank with the newest snapshot and its sequence number; -1 if there is none. */
static int newest(uint32_t *sequence)
{
    uint32_t numbers[2] = {0, 0};
    const int first = valid(0, &numbers[0]), second = valid(1, &numbers[1]);
    const int bank = first && second ? (int32_t)(numbers[1] - numbers[0]) > 0 : first ? 0 : second ? 1 : -1;
    *sequence = bank < 0 ? 0 : numbers[bank];
    return bank;
}

static void begin(uint32_t offset)
{
    memset(unit, 0xFF, sizeof unit);
    filled = 0;
    written = offset;
}

static void flush(uint32_t bank)
{
    if (powered()) flash_write(bank, written, unit);
    begin(written + FLASH_UNIT_BYTES);
}

static void put(uint32_t bank, const void *data, uint32_t bytes)
{
    const unsigned char *p = data;
    for (; bytes != 0; --bytes) {
        ((unsigned char *)unit)[filled++] = *p++;
        if (filled == FLASH_UNIT_BYTES) flush(bank);
    }
}

static void finish(uint32_t bank)
{
    if (filled != 0) flush(bank);
}

/* All states, one after another; gives the checksum with them. */
static uint32_t write_states(uint32_t bank, uint32_t sum)
{
    uint32_t i;
    begin(STATE_AT);
    for (i = 0; i < edgemem_state_count; ++i) {
        sum = crc(sum, edgemem_state_at(i), edgemem_state_sizes[i]);
        put(bank, edgemem_state_at(i), edgemem_state_sizes[i]);
    }
    finish(bank);
    return sum;
}

int snapshot_save(uint32_t units)
{
    const uint32_t pages = FLASH_BANK_BYTES / FLASH_PAGE_BYTES;
    uint32_t header[HEADER_WORDS], page, bank, sequence;
    int old;
    if (!flash_there()) return SNAPSHOT_NO_FLASH;
    units_left = units;
    cut = 0;
    old = newest(&sequence);
    bank = old == 0 ? 1u : 0u;
    for (page = 0; page < pages; ++page) {
        if (powered()) flash_erase_page(bank, page);
    }
    header[IDENTITY] = edgemem_identity[0];
    header[IDENTITY + 1] = edgemem_identity[1];
    header[SEQUENCE] = old < 0 ? 0 : sequence + 1;
    header[BYTES] = state_bytes();
    header[CHECKSUM] = write_states(bank, crc(0, header, CHECKSUM * 4));
    begin(0);
    put(bank, header, sizeof header);
    finish(bank);
    if (cut) return SNAPSHOT_CUT;
    return valid(bank, &sequence) ? SNAPSHOT_OK : SNAPSHOT_FAILED;
}

int snapshot_load(void)
{
    uint32_t sequence, i, at = STATE_AT;
    const int bank = flash_there() ? newest(&sequence) : -1;
    if (bank < 0) return flash_there() ? SNAPSHOT_NONE : SNAPSHOT_NO_FLASH;
    for (i = 0; i < edgemem_state_count; ++i) {
        (void)flash_read((uint32_t)bank, at, edgemem_state_at(i), edgemem_state_sizes[i]); /* `valid` has read it */
        at += edgemem_state_sizes[i];
    }
    return SNAPSHOT_OK;
}
