#ifndef EDGEMEM_SERVE_H
#define EDGEMEM_SERVE_H

/* Commands of a host over the console, one at a time:
 *
 *     S inputs    a step      -> its error code in 4 bytes, and the outputs
 *     G           the states  -> all of them, in the contract's order
 *     P states    put them    -> 4 bytes of 0
 *     R           reset       -> its error code in 4 bytes
 *     C steps     count       -> ticks of that many steps on the test vectors, 4 bytes each, then of each kernel call
 *     H           stack       -> bytes of it that were used so far, in 4 bytes
 *     W units     save        -> to flash, cut off after that many units (all ones: never); its error code
 *     L           load        -> from flash; its error code in 4 bytes
 *     F           flash   -> both banks of snapshots
 *
 * Numbers lie as they do in the memory of the board. Returns when the host has gone.
 */
void serve(void);

#endif
