/* Second stage of the RP2040's boot: 252 bytes that the ROM runs from RAM, and their checksum.
 *
 * It lets the SSI read flash with the command 03h, which every flash chip knows, and enters the vector table behind it.
 */
    .syntax unified
    .cpu cortex-m0plus
    .thumb
    .section .boot, "ax", %progbits
    .globl boot_start
boot_start:
    ldr r3, =0x18000000         /* XIP_SSI_BASE */
    movs r0, #0
    str r0, [r3, #0x08]         /* SSIENR: off */
    movs r0, #4
    str r0, [r3, #0x14]         /* BAUDR: a quarter of the system clock */
    ldr r0, =0x001F0300         /* CTRLR0: frames of 32 bits, EEPROM read */
    str r0, [r3, #0x00]
    movs r0, #0
    str r0, [r3, #0x04]         /* CTRLR1: one frame */
    ldr r0, =0x03000218         /* SPI_CTRLR0: command 03h, 8 bits of it, 24 of address */
    ldr r1, =0x180000F4
    str r0, [r1]
    movs r0, #1
    str r0, [r3, #0x08]         /* SSIENR: on */
    ldr r0, =0x10000100         /* the vector table */
    ldr r1, =0xE000ED08         /* VTOR */
    str r0, [r1]
    ldr r1, [r0]
    msr msp, r1
    ldr r0, [r0, #4]
    bx r0
    .balign 4
    .pool
    .org boot_start + 252, 0
    .word BOOT_CHECKSUM
