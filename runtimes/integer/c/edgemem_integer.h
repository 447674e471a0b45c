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

/*
 * y[r][n] = ((bias[n] + sum_k x[r][k] w[n][k]) * factor[n] + rest[n]) * 2^-shift; x and w int8, sums in 32 bits. `rest` is
 * what the rounding of a bias to units of the sum has left.
 */
void edgemem_product8(const int8_t *x, const int8_t *w, const int32_t *bias, const int32_t *factor,
                      const int32_t *rest, void *y, int32_t rows, int32_t outputs, int32_t depth, int32_t shift,
                      const edgemem_out *out);

/* The same for int16 on both sides, w[n][k]; sums in 64 bits. */
void edgemem_product16(const int16_t *x, const int16_t *w, const int32_t *factor, void *y, int32_t rows,
                       int32_t outputs, int32_t depth, int32_t shift, const edgemem_out *out);

/* x[b][r][k] of int8 less its zero times y[b][n][k] less its own, both computed in the step; the result [b][r][n]. */
void edgemem_pair(const int8_t *x, const int8_t *y, void *z, int32_t batch, int32_t rows, int32_t outputs,
                  int32_t depth, int32_t x_zero, int32_t y_zero, int32_t factor, int32_t shift,
                  const edgemem_out *out);

/* The same for int16 on both sides, without zeros; sums in 64 bits. */
void edgemem_pair16(const int16_t *x, const int16_t *y, void *z, int32_t batch, int32_t rows, int32_t outputs,
                    int32_t depth, int32_t factor, int32_t shift, const edgemem_out *out);

/* y[at ..] = x[0 .. width] * factor * 2^-shift */
void edgemem_row(const int8_t *x, int32_t factor, void *y, int32_t at, int32_t width, int32_t shift,
                 const edgemem_out *out);

/* What lies at x, from the least int16 on, between entry x >> bits of a table and the next; in 2^bits of their units. */
static inline int32_t edgemem_line(int32_t x, const int16_t *table, int32_t bits)
{
    const int32_t from_least = x + 32768, low = table[from_least >> bits], high = table[(from_least >> bits) + 1];
    return low * ((int32_t)1 << bits) + (high - low) * (from_least & (((int32_t)1 << bits) - 1));
}

/* ratio * 2^-shift / divisor as a factor and a shift of its own, `by`; divisor 0 counts as the least step. */
int64_t edgemem_inverse(int32_t divisor, int32_t ratio, int32_t shift, int32_t *by);

/* Layer norm of rows: x less its mean, over its spread, times gain[i], plus bias[i], both in units of y * 2^-shift. */
void edgemem_layer_norm(const int16_t *x, const int32_t *gain, const int32_t *bias, void *y, int32_t rows,
                        int32_t count, int64_t epsilon, int32_t shift, const edgemem_out *out);

/* y = x / scale to the nearest, ties to even, clamped. */
void edgemem_quantize(const float *x, void *y, int32_t count, float scale, const edgemem_out *out);

/* Softmax of rows of x, one step of which is step * 2^-(step_shift + 24) of a power of two; `work` has room for one row. */
void edgemem_softmax(const int16_t *x, void *y, uint32_t *work, int32_t rows, int32_t count, uint32_t step,
                     int32_t step_shift, uint32_t factor, int32_t shift, const edgemem_out *out);

/* 2^(31 - down), where down has 24 bits behind the point; less than one is 0. */
uint32_t edgemem_halved(uint64_t down);

/* e^x of float32, made of integers; within two units of the last place, subnormal results are 0. */
void edgemem_exponential(const float *x, float *y, int32_t count);

/* The whole root of a number. */
uint32_t edgemem_root(uint64_t value);

#endif
