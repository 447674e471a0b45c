"""The C text that asks Linux for leave to use the core's matrix unit, where kernels of a program use it.

The kernel grants the registers of tiles to a process once it has asked; a process that has not gets SIGILL. So `reset`
and every step make sure: a state block has a mark of the process that asked when it was in use, and only a block
without it, or from another process, makes a step ask. The mark is made of the random bytes that the kernel gives each
program it starts, so that neither a copied nor a mapped block is taken for one of this process.
"""

from __future__ import annotations

from edgemem.runtimes.aot.tile_unit import ASK, UNIT

ERROR = ("ERROR_TILES", "the system does not let this process use the core's matrix unit (AMX)")
LEAF, BIT = 7, 25  # of `cpuid`: where a core says in EDX that it multiplies tiles of bytes
MARK_BYTES = 8  # in the header of a state block
FEATURES = """\
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* for syscall */
#endif
"""  # before the first header
FIELD = "    uint64_t asked; /* the mark of the process that has leave to use tiles */\n"


def functions(used: bool) -> str:
    """`may_use_tiles`, which takes the header of a state block."""
    if not used:
        return ""
    return f"""
#include <cpuid.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A number that differs between programs that run; their children have it too, and their leave. */
static uint64_t process_mark(void)
{{
    const void *const random = (const void *)getauxval(AT_RANDOM);
    uint64_t words[2] = {{0, 0}};
    if (random != NULL) memcpy(words, random, sizeof words);
    return words[0] ^ words[1];
}}

/* Whether this process may use the core's matrix unit, and the core has one. Asking twice does no harm. */
static int may_use_tiles(header *h)
{{
    const uint64_t mark = process_mark();
    unsigned a, b, c, d;
    if (mark != 0 && h->asked == mark) return 1;
    if (!__get_cpuid_count({LEAF}, 0, &a, &b, &c, &d) || (d >> {BIT} & 1u) == 0) return 0;
    if (syscall(SYS_arch_prctl, {ASK:#x}L, {UNIT}L) != 0) return 0;
    h->asked = mark;
    return 1;
}}
"""


def check(used: bool, name: str, header: str) -> str:
    """A line of a function that returns an error code; `name` in capitals."""
    return f"    if (!may_use_tiles({header})) return {name}_{ERROR[0]};\n" if used else ""
