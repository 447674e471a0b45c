/* Reset and traps of a RISC-V core: global pointer, stack, floats where the core has them.
 *
 * Interrupt N enters the table at 4 N, an exception at its start; all go on to `trap`, which asks mcause. Some cores know
 * no other mode than such a table, and take the upper 24 bits of its address only: hence 256.
 */
#define INTEGERS 64 /* ra, t0 to t6, a0 to a7 */
#ifndef __riscv_flen
#define FRAME INTEGERS
#elif __riscv_flen == 32
#define FRAME (INTEGERS + 96) /* ft0 to ft11, fa0 to fa7 and fcsr, in whole steps of 16 bytes */
#define FLOAT_BYTES 4
#define SAVE_FLOAT fsw
#define LOAD_FLOAT flw
#else
#define FRAME (INTEGERS + 176)
#define FLOAT_BYTES 8
#define SAVE_FLOAT fsd
#define LOAD_FLOAT fld
#endif

    .section .start, "ax", %progbits
    .globl reset
    .option arch, +zicsr
reset:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    la sp, stack_end
    la t0, traps
    ori t0, t0, 1
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

    .balign 256
    .option push
    .option norvc
    .option norelax
traps:
    .rept 32
    j trap
    .endr
    .option pop

/* What a C function may change of the interrupted program goes to its stack and back. */
    .macro integers operation
    \operation ra, 0(sp)
    \operation t0, 4(sp)
    \operation t1, 8(sp)
    \operation t2, 12(sp)
    \operation t3, 16(sp)
    \operation t4, 20(sp)
    \operation t5, 24(sp)
    \operation t6, 28(sp)
    \operation a0, 32(sp)
    \operation a1, 36(sp)
    \operation a2, 40(sp)
    \operation a3, 44(sp)
    \operation a4, 48(sp)
    \operation a5, 52(sp)
    \operation a6, 56(sp)
    \operation a7, 60(sp)
    .endm

#ifdef __riscv_flen
    .macro floats operation
    .set at, INTEGERS
    .irp name, ft0, ft1, ft2, ft3, ft4, ft5, ft6, ft7, ft8, ft9, ft10, ft11, fa0, fa1, fa2, fa3, fa4, fa5, fa6, fa7
    \operation \name, at(sp)
    .set at, at + FLOAT_BYTES
    .endr
    .endm
#endif

trap:
    csrw mscratch, t0
    csrr t0, mcause
    bltz t0, 2f
    la sp, stack_end
    call fault
1:  j 1b
2:  csrr t0, mscratch
    addi sp, sp, -FRAME
    integers sw
#ifdef __riscv_flen
    floats SAVE_FLOAT
    frcsr t0
    sw t0, FRAME - 16(sp)
#endif
    csrr a0, mcause
    call interrupted
#ifdef __riscv_flen
    lw t0, FRAME - 16(sp)
    fscsr t0
    floats LOAD_FLOAT
#endif
    integers lw
    addi sp, sp, FRAME
    mret
