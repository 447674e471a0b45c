/* The square root for cores without an FPU: digit by digit, correctly rounded. No C library comes in with it. */
#include <stdint.h>
#include <string.h>

float sqrtf(float x);

float sqrtf(float x)
{
    uint32_t bits, root = 0, remainder, bit;
    int32_t exponent;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) == 0 || bits == 0x7f800000u || x != x) return x;
    if (bits >> 31) return (x - x) / (x - x);
    exponent = (int32_t)(bits >> 23) - 127;
    bits &= 0x7fffffu;
    if (exponent == -127) {
        for (exponent = -126; (bits & 0x800000u) == 0; --exponent) bits <<= 1;
    }
    remainder = (bits | 0x800000u) << (exponent & 1);
    exponent >>= 1;
    remainder <<= 1;
    for (bit = 0x1000000u, bits = 0; bit != 0; bit >>= 1) {
        const uint32_t trial = bits + bit;
        if (trial <= remainder) {
            bits = trial + bit;
            remainder -= trial;
            root += bit;
        }
        remainder <<= 1;
    }
    root += root & (remainder != 0 || (root & 1u));
    root = (root >> 1) + ((uint32_t)(exponent + 126) << 23);
    memcpy(&x, &root, sizeof x);
    return x;
}
