"""The C text that makes subnormal numbers count as zero while a step runs.

What a memory forgets halves until it is below 2^-126. Many cores then take a hundred cycles for a product that takes
them one; onnxruntime, beside which every step is tested, keeps such numbers, and differs by less than 2^-126. A core's
mode for this is the caller's: it is saved before the kernels and put back behind them.
"""

from __future__ import annotations

from typing import Any

# by core: what is included; the control word's type, how it is read, how it is written; its bits for the mode
CORES = {
    "x86_64": ("#include <xmmintrin.h>\n", "unsigned int", "was = _mm_getcsr();", "_mm_setcsr({});", "0x8040u"),
    "aarch64": (
        "", "uint64_t", '__asm__ __volatile__("mrs %0, fpcr" : "=r"(was) : : "memory");',
        '__asm__ __volatile__("msr fpcr, %0" : : "r"({}) : "memory");', "(UINT64_C(1) << 24)",
    ),
    "arm": (
        "", "uint32_t", '__asm__ __volatile__("vmrs %0, fpscr" : "=r"(was) : : "memory");',
        '__asm__ __volatile__("vmsr fpscr, %0" : : "r"({}) : "memory");', "(UINT32_C(1) << 24)",
    ),
}  # fmt: skip


def core_of(target: Any) -> str | None:
    """Which of `CORES` a target is; None where there is no such mode, as of RISC-V."""
    architecture = str(target.attrs["mtriple"]).partition("-")[0]
    if architecture.startswith("arm") and architecture != "arm64":
        return "arm"
    return "aarch64" if architecture == "arm64" else architecture if architecture in CORES else None


def functions(core: str | None) -> str:
    """`flush`, which gives the caller's mode, and `restore`, which takes it."""
    if core is None:
        return ""
    include, kind, read, write, bits = CORES[core]
    return f"""\
{include}
/* From here on subnormal numbers are zero; the mode that was before. */
static {kind} flush(void)
{{
    {kind} was;
    {read}
    {write.format(f"was | {bits}")}
    return was;
}}

static void restore({kind} was)
{{
    {write.format("was")}
}}
"""


def guarded(core: str | None, call: str) -> str:
    """A call of kernels, inside a function of its own block, between the two."""
    if core is None:
        return f"    {call}"
    return f"""\
    {{
        const {CORES[core][1]} was = flush();
        {call}
        restore(was);
    }}"""
