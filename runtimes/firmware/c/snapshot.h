/* The state in flash, safe against a cut at any moment: two banks that take turns.
 *
 *     word 0 .. 1     identity of the model          word 3     bytes of state
 *     word 2          sequence number                word 4     CRC-32 of all that, and of the state
 *
 * The state lies behind it, from the next unit on that flash writes at once (FLASH_UNIT_BYTES). A save erases the older
 * bank, writes the state, then the words before it, the CRC last. A load takes the bank with the highest sequence number
 * among those whose CRC fits: so it is the old state or the new one, and never a mixture.
 */
#ifndef EDGEMEM_SNAPSHOT_H
#define EDGEMEM_SNAPSHOT_H

#include <stdint.h>

/* FAILED: written, and not what is read back; the older snapshot is still there. */
enum { SNAPSHOT_OK = 0, SNAPSHOT_NONE = 1, SNAPSHOT_CUT = 2, SNAPSHOT_NO_FLASH = 3, SNAPSHOT_FAILED = 4 };

#define SNAPSHOT_WHOLE 0xFFFFFFFFu

/* Stops as if the power went after `units` erased pages and written units; SNAPSHOT_WHOLE for never. */
int snapshot_save(uint32_t units);
int snapshot_load(void);

#endif
