#include "edgemem_integer.h"

#if defined(EDGEMEM_PORTABLE)
#define EDGEMEM_DSP 0
#define EDGEMEM_MVE 0
#else
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define EDGEMEM_MVE 1
#else
#define EDGEMEM_MVE 0
#endif
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_SIMD32) && !EDGEMEM_MVE
#define EDGEMEM_DSP 1
#else
#define EDGEMEM_DSP 0
#endif
#endif

#if EDGEMEM_MVE
#include <arm_mve.h>
#elif EDGEMEM_DSP
#include <arm_acle.h>
#endif

enum { BLOCK = 4 }; /* outputs whose sums run together: x is read once for all of them */

#if EDGEMEM_DSP

/* Four bytes of x against two rows that lie `apart`, the words of both read before the first is widened: by hand, so that
 * all that a block of four rows needs stays in registers. */
#define TWO_ROWS(row, first, second) \
    __asm__("ldr %[q], [%[r], %[n]]\n\t" \
            "ldr %[p], [%[r]], #4\n\t" \
            "sxtb16 %[t], %[p]\n\t" \
            "sxtb16 %[p], %[p], ror #8\n\t" \
            "smlad %[s], %[t], %[e], %[s]\n\t" \
            "sxtb16 %[t], %[q]\n\t" \
            "sxtb16 %[q], %[q], ror #8\n\t" \
            "smlad %[s], %[p], %[o], %[s]\n\t" \
            "smlad %[z], %[t], %[e], %[z]\n\t" \
            "smlad %[z], %[q], %[o], %[z]" \
            : [r] "+&r"(row), [s] "+&r"(first), [z] "+&r"(second), [p] "=&r"(p), [q] "=&r"(q), [t] "=&r"(t) \
            : [n] "r"(depth), [e] "r"(even), [o] "r"(odd) \
            : "memory")

#endif

/* Four sums over the same x; rows of w are `depth` apart. A function of its own, for all registers. */
static __attribute__((noinline)) void four_sums(const int8_t *x, const int8_t *w, int32_t depth, int32_t sums[BLOCK])
{
    const int8_t *a = w, *b = w + depth, *c = w + 2 * depth, *d = w + 3 * depth;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3], k = 0;
#if EDGEMEM_MVE
    for (; k < depth; k += 16) {
        const mve_pred16_t lanes = vctp8q((uint32_t)(depth - k));
        const int8x16_t v = vldrbq_z_s8(x + k, lanes);
        s0 = vmladavaq_p_s8(s0, v, vldrbq_z_s8(a + k, lanes), lanes);
        s1 = vmladavaq_p_s8(s1, v, vldrbq_z_s8(b + k, lanes), lanes);
        s2 = vmladavaq_p_s8(s2, v, vldrbq_z_s8(c + k, lanes), lanes);
        s3 = vmladavaq_p_s8(s3, v, vldrbq_z_s8(d + k, lanes), lanes);
    }
#else
#if EDGEMEM_DSP
    const int8_t *const end = x + (depth & ~3);
    while (x != end) {
        uint32_t even, odd, p, q, t;
        __asm__("ldr %[o], [%[x]], #4\n\t"
                "sxtb16 %[e], %[o]\n\t"
                "sxtb16 %[o], %[o], ror #8"
                : [x] "+&r"(x), [e] "=&r"(even), [o] "=&r"(odd)
                :
                : "memory");
        TWO_ROWS(a, s0, s1);
        TWO_ROWS(c, s2, s3);
    }
    k = depth & ~3;
    x -= k;
    a -= k;
    c -= k;
#endif
    for (; k < depth; ++k) {
        const int32_t v = x[k];
        s0 += v * a[k];
        s1 += v * b[k];
        s2 += v * c[k];
        s3 += v * d[k];
    }
#endif
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

void edgemem_product8(const int8_t *x, const int8_t *w, const int32_t *bias, const int32_t *factor,
                      const int32_t *rest, void *y, int32_t rows, int32_t outputs, int32_t depth, int32_t shift,
                      const edgemem_out *out)
{
    const edgemem_out held = *out; /* a copy: y might be *out, for all a compiler knows */
    int32_t r, n, k, sums[BLOCK];
    for (r = 0; r < rows; ++r, x += depth) {
        for (n = 0; n + BLOCK <= outputs; n += BLOCK) {
            const int32_t *const f = factor + n, *const e = rest + n;
            const int32_t at = r * outputs + n;
            sums[0] = bias[n];
            sums[1] = bias[n + 1];
            sums[2] = bias[n + 2];
            sums[3] = bias[n + 3];
            four_sums(x, w + n * depth, depth, sums);
            edgemem_put(y, at, (int64_t)sums[0] * f[0] + e[0], shift, &held);
            edgemem_put(y, at + 1, (int64_t)sums[1] * f[1] + e[1], shift, &held);
            edgemem_put(y, at + 2, (int64_t)sums[2] * f[2] + e[2], shift, &held);
            edgemem_put(y, at + 3, (int64_t)sums[3] * f[3] + e[3], shift, &held);
        }
        for (; n < outputs; ++n) {
            int32_t sum = bias[n];
            for (k = 0; k < depth; ++k) sum += (int32_t)x[k] * w[n * depth + k];
            edgemem_put(y, r * outputs + n, (int64_t)sum * factor[n] + rest[n], shift, &held);
        }
    }
}

#if EDGEMEM_DSP

static int16x2_t two(const int16_t *x)
{
    int16x2_t pair;
    __builtin_memcpy(&pair, x, sizeof pair); /* one load; `memcpy` is a call where firmware is freestanding */
    return pair;
}

#endif

/* Two sums in 64 bits over the same x; the rows of w are `apart`, 0 where there is but one. */
static void two_wide_sums(const int16_t *x, const int16_t *w, int32_t apart, int32_t depth, int64_t sums[2])
{
    const int16_t *v = w + apart;
    int64_t s0 = 0, s1 = 0;
    int32_t k = 0;
#if EDGEMEM_MVE
    for (; k < depth; k += 8) {
        const mve_pred16_t lanes = vctp16q((uint32_t)(depth - k));
        const int16x8_t a = vldrhq_z_s16(x + k, lanes);
        s0 = vmlaldavaq_p_s16(s0, a, vldrhq_z_s16(w + k, lanes), lanes);
        s1 = vmlaldavaq_p_s16(s1, a, vldrhq_z_s16(v + k, lanes), lanes);
    }
#else
#if EDGEMEM_DSP
    for (; k + 2 <= depth; k += 2) {
        const int16x2_t a = two(x + k);
        s0 = __smlald(a, two(w + k), s0);
        s1 = __smlald(a, two(v + k), s1);
    }
#endif
    for (; k < depth; ++k) {
        s0 += (int32_t)x[k] * w[k];
        s1 += (int32_t)x[k] * v[k];
    }
#endif
    sums[0] = s0;
    sums[1] = s1;
}

void edgemem_product16(const int16_t *x, const int16_t *w, const int32_t *factor, void *y, int32_t rows,
                       int32_t outputs, int32_t depth, int32_t shift, const edgemem_out *out)
{
    const edgemem_out held = *out;
    int32_t r, n;
    for (r = 0; r < rows; ++r, x += depth) {
        for (n = 0; n < outputs; n += 2) {
            const int32_t more = n + 1 < outputs;
            int64_t sums[2];
            two_wide_sums(x, w + n * depth, more * depth, depth, sums);
            edgemem_put(y, r * outputs + n, sums[0] * factor[n], shift, &held);
            if (more) edgemem_put(y, r * outputs + n + 1, sums[1] * factor[n + 1], shift, &held);
        }
    }
}

void edgemem_pair16(const int16_t *x, const int16_t *y, void *z, int32_t batch, int32_t rows, int32_t outputs,
                    int32_t depth, int32_t factor, int32_t shift, const edgemem_out *out)
{
    const edgemem_out held = *out;
    int32_t b, r, n, at = 0;
    for (b = 0; b < batch; ++b, y += outputs * depth) {
        for (r = 0; r < rows; ++r, x += depth, at += outputs) {
            for (n = 0; n < outputs; n += 2) {
                const int32_t more = n + 1 < outputs;
                int64_t sums[2];
                two_wide_sums(x, y + n * depth, more * depth, depth, sums);
                edgemem_put(z, at + n, sums[0] * factor, shift, &held);
                if (more) edgemem_put(z, at + n + 1, sums[1] * factor, shift, &held);
            }
        }
    }
}

/* The zero of x leaves every sum by what it makes of a column; columns have one if they were stored with a zero. */
void edgemem_pair(const int8_t *x, const int8_t *y, void *z, int32_t batch, int32_t rows, int32_t outputs,
                  int32_t depth, int32_t x_zero, int32_t y_zero, int32_t factor, int32_t shift,
                  const edgemem_out *out)
{
    const edgemem_out held = *out;
    int32_t b, r, n, k, j;
    for (b = 0; b < batch; ++b, x += rows * depth, y += outputs * depth) {
        for (n = 0; n < outputs; n += BLOCK) {
            const int32_t width = outputs - n < BLOCK ? outputs - n : BLOCK;
            int32_t start[BLOCK] = {0, 0, 0, 0};
            for (j = 0; j < width; ++j) {
                for (k = 0; k < depth; ++k) start[j] += y[(n + j) * depth + k] - y_zero;
                start[j] *= -x_zero;
            }
            for (r = 0; r < rows; ++r) {
                const int8_t *const row = x + r * depth;
                const int32_t at = (b * rows + r) * outputs + n;
                int32_t sums[BLOCK], less = 0;
                for (j = 0; j < BLOCK; ++j) sums[j] = start[j];
                if (width == BLOCK) {
                    four_sums(row, y + n * depth, depth, sums);
                } else {
                    for (j = 0; j < width; ++j)
                        for (k = 0; k < depth; ++k) sums[j] += (int32_t)row[k] * y[(n + j) * depth + k];
                }
                if (y_zero != 0)
                    for (k = 0; k < depth; ++k) less += row[k] * y_zero;
                for (j = 0; j < width; ++j)
                    edgemem_put(z, at + j, (int64_t)(sums[j] - less) * factor, shift, &held);
            }
        }
    }
}

void edgemem_row(const int8_t *x, int32_t factor, void *y, int32_t at, int32_t width, int32_t shift,
                 const edgemem_out *out)
{
    int32_t i;
    for (i = 0; i < width; ++i) edgemem_put(y, at + i, (int64_t)x[i] * factor, shift, out);
}

int64_t edgemem_inverse(int32_t divisor, int32_t ratio, int32_t shift, int32_t *by)
{
    uint32_t size = divisor < 0 ? (uint32_t)-divisor : (uint32_t)divisor;
    int32_t moved = 0;
    int64_t inverse;
    *by = 1;
    if (size == 0) return INT32_MAX;
    for (; (size >> 30) == 0; size <<= 1) ++moved;
    inverse = (int64_t)(((uint64_t)(uint32_t)ratio << 31) / size);
    *by = 31 + shift - moved;
    if (*by < 1) *by = 1; /* far beyond every limit */
    if (*by > 62) *by = 62; /* far below a step */
    return divisor < 0 ? -inverse : inverse;
}

uint32_t edgemem_root(uint64_t value)
{
    uint64_t root = 0, bit = (uint64_t)1 << 62;
    while (bit > value) bit >>= 2;
    for (; bit != 0; bit >>= 2) {
        if (value >= root + bit) {
            value -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return (uint32_t)root;
}

/*
 * With S = sum x and V = n sum x^2 - S^2, a normalised element is (n x - S) / sqrt(V + epsilon). The root is taken of
 * V times a power of 4 that fills 62 bits, and its reciprocal once for the row, so that elements only multiply.
 */
void edgemem_layer_norm(const int16_t *x, const int32_t *gain, const int32_t *bias, void *y, int32_t rows,
                        int32_t count, int64_t epsilon, int32_t shift, const edgemem_out *out)
{
    int32_t r, i;
    for (r = 0; r < rows; ++r, x += count) {
        int32_t sum = 0, moved = 0;
        int64_t squares = 0;
        uint64_t spread, inverse;
        for (i = 0; i < count; ++i) {
            sum += x[i];
            squares += (int32_t)x[i] * x[i];
        }
        spread = (uint64_t)(squares * count - (int64_t)sum * sum + epsilon);
        for (; (spread >> 60) == 0; spread <<= 2) ++moved;
        inverse = ((uint64_t)1 << 62) / edgemem_root(spread); /* of a root of 31 bits: 32 bits; 2^(62 + moved) / root */
        for (i = 0; i < count; ++i) {
            const int64_t apart = (int64_t)count * x[i] - sum;
            const int64_t even = (apart * (int64_t)(inverse >> 2)) >> (36 - moved); /* 24 bits behind the point */
            edgemem_put(y, r * count + i, ((even * gain[i]) >> 24) + bias[i], shift, out);
        }
    }
}

void edgemem_quantize(const float *x, void *y, int32_t count, float scale, const edgemem_out *out)
{
    int32_t i;
    for (i = 0; i < count; ++i) {
        const float low = (float)(out->low - out->zero), high = (float)(out->high - out->zero);
        volatile float v = x[i] / scale; /* volatile: no core may keep more digits than the others */
        if (!(v > low)) v = low;
        if (v > high) v = high;
        v += 12582912.0f; /* 1.5 * 2^23: what is behind the point is rounded off, ties to even */
        v -= 12582912.0f;
        if (out->bytes == 1) ((int8_t *)y)[i] = (int8_t)((int32_t)v + out->zero);
        else ((int16_t *)y)[i] = (int16_t)((int32_t)v + out->zero);
    }
}
