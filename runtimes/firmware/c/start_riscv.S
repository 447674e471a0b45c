/* Reset of a RISC-V core: global pointer, stack, trap handler; floats where the core has them. */
    .section .start, "ax", %progbits
    .globl reset
    .option arch, +zicsr
reset:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    la sp, stack_end
    la t0, trap
    csrw mtvec, t0
#ifdef __riscv_flen
    li t0, 0x2000
    csrs mstatus, t0
#endif
    call memory_setup
    call board_clock
    call board_setup
    call main
    call console_close
1:  j 1b

    .balign 4
trap:
    la sp, stack_end
    call fault
1:  j 1b
