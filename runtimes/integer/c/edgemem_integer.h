/* Integer kernels. Sums are exact, so that every core gives the same bytes; one rounding each: halves go up. */
#ifndef EDGEMEM_INTEGER_H
#define EDGEMEM_INTEGER_H

#include <stdint.h>

/* Where results go: `bytes` 1 (int8) or 2 (int16), clamped to low .. high after `zero` has been added. */
typedef struct {
    int32_t bytes, zero, low, high;
} edgemem_out;

/* (value * 2^-shift) rounded, moved and clamped, to element i of y. From 33 on, a shift needs the upper word alone. */
static inline void edgemem_put(void *y, int32_t i, int64_t value, int32_t shift, const edgemem_out *out)
{
    int32_t v;
    if (shift > 32) {
        v = ((int32_t)(value >> 32) + ((int32_t)1 << (shift - 33))) >> (shift - 32);
    } else {
        const int64_t wide = (value + ((int64_t)1 << (shift - 1))) >> shift;
        v = wide < -0x1000000 ? -0x1000000 : wide > 0x1000000 ? 0x1000000 : (int32_t)wide;
    }
    v += out->zero;
    if (v < out->low) v = out->low;
    if (v > out->high) v = out->high;
    if (out->bytes == 1) ((int8_t *)y)[i] = (int8_t)v;
    else ((int16_t *)y)[i] = (int16_t)v;
}

/* y[r][n] = (bias[n] + sum_k x[r][k] w[n][k]) * factor[n] * 2^-shift; x and w int8, sums in 32 bits. */
void edgemem_product8(const int8_t *x, const int8_t *w, const int32_t *bias, const int32_t *factor, void *y,
                      int32_t rows, int32_t outputs, int32_t depth, int32_t shift, const edgemem_out *out);

/* The same for int16 on both sides, w[n][k]; sums in 64 bits. */
void edgemem_product16(const int16_t *x, const int16_t *w, const int32_t *factor, void *y, int32_t rows,
                       int32_t outputs, int32_t depth, int32_t shift, const edgemem_out *out);

/* Layer norm of rows: x less its mean, over its spread, times gain[i], plus bias[i], both in units of y * 2^-shift. */
void edgemem_layer_norm(const int16_t *x, const int32_t *gain, const int32_t *bias, void *y, int32_t rows,
                        int32_t count, int64_t epsilon, int32_t shift, const edgemem_out *out);

/* y = x / scale to the nearest, ties to even, clamped. */
void edgemem_quantize(const float *x, void *y, int32_t count, float scale, const edgemem_out *out);

/* The whole root of a number. */
uint32_t edgemem_root(uint64_t value);

#endif
