"""Firmware: a compiled step as a project for a microcontroller, built, weighed, and run under an emulator.

    vectors    test vectors that the firmware proves itself with      sources   the generated C text
    layout     the linker script of a board's memory map               build     Makefile, CMake, the image
    budget     bytes of flash, RAM and stack, before anything is built report    the arena over the calls of a step
    emulator   an image under QEMU as a program                        counts    instructions per step and per kernel

The C sources that all boards share lie in the folder `c`. No heap, no C library but memcpy and memset.
"""
