#include "snapshot.h"

#include "board.h"
#include "edgemem_model.h"
#include "flash.h"

#include <string.h>

enum { IDENTITY = 0, SEQUENCE = 2, BYTES = 3, CHECKSUM = 4, HEADER_WORDS = 5 };

static uint32_t words_left; /* until the power goes */
static int cut;

static int powered(void)
{
    if (words_left == 0) {
        cut = 1;
        return 0;
    }
    if (words_left != SNAPSHOT_WHOLE) --words_left;
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

static int valid(uint32_t bank)
{
    const uint32_t *p = flash_bank(bank);
    if (p[IDENTITY] != edgemem_identity[0] || p[IDENTITY + 1] != edgemem_identity[1]) return 0;
    if (p[BYTES] != state_bytes()) return 0;
    return crc(crc(0, p, CHECKSUM * 4), p + HEADER_WORDS, p[BYTES]) == p[CHECKSUM];
}

/* The bank with the newest snapshot, -1 if there is none. */
static int newest(void)
{
    const int first = valid(0), second = valid(1);
    if (first && second) return (int32_t)(flash_bank(1)[SEQUENCE] - flash_bank(0)[SEQUENCE]) > 0;
    return first ? 0 : second ? 1 : -1;
}

static void write_word(uint32_t bank, uint32_t index, uint32_t value)
{
    if (powered()) flash_write_word(bank, index, value);
}

/* All states, one after another, in words; a state's end may share a word with the next one's start. */
static uint32_t write_states(uint32_t bank, uint32_t sum)
{
    uint32_t i, at, filled = 0, index = HEADER_WORDS;
    unsigned char word[4];
    for (i = 0; i < edgemem_state_count; ++i) {
        const unsigned char *p = edgemem_state_at(i);
        sum = crc(sum, p, edgemem_state_sizes[i]);
        for (at = 0; at < edgemem_state_sizes[i]; ++at) {
            word[filled++] = p[at];
            if (filled == 4 || (i + 1 == edgemem_state_count && at + 1 == edgemem_state_sizes[i])) {
                uint32_t value = 0xFFFFFFFFu;
                memcpy(&value, word, filled);
                write_word(bank, index++, value);
                filled = 0;
            }
        }
    }
    return sum;
}

int snapshot_save(uint32_t words)
{
    const uint32_t pages = FLASH_BANK_BYTES / FLASH_PAGE_BYTES;
    uint32_t header[CHECKSUM], page, bank, sum;
    int old;
    if (!flash_there()) return SNAPSHOT_NO_FLASH;
    words_left = words;
    cut = 0;
    old = newest();
    bank = old == 0 ? 1u : 0u;
    for (page = 0; page < pages; ++page) {
        if (powered()) flash_erase_page(bank, page);
    }
    header[IDENTITY] = edgemem_identity[0];
    header[IDENTITY + 1] = edgemem_identity[1];
    header[SEQUENCE] = old < 0 ? 0 : flash_bank((uint32_t)old)[SEQUENCE] + 1;
    header[BYTES] = state_bytes();
    sum = write_states(bank, crc(0, header, sizeof header));
    for (page = 0; page < CHECKSUM; ++page) write_word(bank, page, header[page]);
    write_word(bank, CHECKSUM, sum);
    return cut ? SNAPSHOT_CUT : SNAPSHOT_OK;
}

int snapshot_load(void)
{
    const int bank = flash_there() ? newest() : -1;
    const unsigned char *from;
    uint32_t i;
    if (bank < 0) return flash_there() ? SNAPSHOT_NONE : SNAPSHOT_NO_FLASH;
    from = (const unsigned char *)(flash_bank((uint32_t)bank) + HEADER_WORDS);
    for (i = 0; i < edgemem_state_count; ++i) {
        memcpy(edgemem_state_at(i), from, edgemem_state_sizes[i]);
        from += edgemem_state_sizes[i];
    }
    return SNAPSHOT_OK;
}
