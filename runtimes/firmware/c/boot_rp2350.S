/* What the RP2350's ROM looks for in the first 4 KiB of flash: an executable image, Arm, secure. */
    .section .image_def, "a", %progbits
    .word 0xffffded3            /* start of a block */
    .word 0x10210142            /* image type: 1 word; executable, secure, Arm, RP2350 */
    .word 0x000001ff            /* last item: 1 word before it */
    .word 0x00000000            /* the next block is this one */
    .word 0xab123579            /* end of a block */
