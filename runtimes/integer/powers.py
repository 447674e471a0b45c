"""Powers of two in integers, as `c/edgemem_power.c` computes them, and its table."""

from __future__ import annotations

import math

import numpy as np

from edgemem.runtimes.integer.values import Array

FRACTION = 24  # bits of an exponent behind the point
TABLE_BITS = 8
TABLE: Array = np.rint(2.0**31 * 2.0 ** -(np.arange(2**TABLE_BITS) / 2**TABLE_BITS)).astype(np.int64)
LN2 = round(math.log(2) * 2**31)
LOG2E = round(math.log2(math.e) * 2**30)
NARROWEST, INFINITE, NEGATIVE = 0x00800000, 0x7F800000, 0x80000000
HUGE = 134 << 23  # float32 from 128 on


def halved(down: Array) -> Array:
    """2^(31 - down), where `down` >= 0 has 24 bits behind the point; less than one is 0."""
    whole, part = down >> FRACTION, down & (2**FRACTION - 1)
    rest = ((part & (2 ** (FRACTION - TABLE_BITS) - 1)) * LN2) >> FRACTION
    near = 2**31 - rest + ((rest * rest) >> 32)
    found: Array = (TABLE[part >> (FRACTION - TABLE_BITS)] * near) >> 31
    return np.where(whole > 31, 0, found >> np.minimum(whole, 31))


def exponential(x: Array) -> Array:
    """e^x of float32, by integers: within two units of the last place, subnormal results are 0."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64)
    size, negative = bits & 0x7FFFFFFF, bits >= NEGATIVE
    digits, shift = (size & 0x007FFFFF) | NARROWEST, (size >> 23) - 126  # of a number with 24 bits behind the point
    fixed = np.where(shift >= 0, digits << np.clip(shift, 0, 7), digits >> np.clip(-shift, 0, 31))
    power = (np.where(negative, -fixed, fixed) * LOG2E) >> 30
    above = -((-power) >> FRACTION)  # the whole number from there on
    digits = (halved((above << FRACTION) - power) + 64) >> 7
    exponent = above + 126
    made = np.where(exponent <= 0, 0, np.where(exponent >= 255, INFINITE, (exponent << 23) + digits - NARROWEST))
    made = np.where(size >= HUGE, np.where(negative, 0, INFINITE), made)
    made = np.where(size > INFINITE, bits, made)  # no number stays none
    return made.astype(np.uint32).view(np.float32)
