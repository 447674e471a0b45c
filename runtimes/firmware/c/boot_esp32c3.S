/* Direct boot of the ESP32-C3: the ROM finds these two words at the start of flash and jumps behind them. */
    .section .boot, "ax", %progbits
    .word 0xaedb041d
    .word 0xaedb041d
    .option push
    .option norvc
    j reset
    .option pop
