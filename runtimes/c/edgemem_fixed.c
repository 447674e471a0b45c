/* The equations are those at the head of edgemem/frontend.py; the transform is that of edgemem_frontend.c. */
#include "edgemem_fixed.h"

#include <string.h>

#define LN_2 11629080 /* @ 24 */
#define SAMPLE_BITS 30 /* behind the point of a sample times its window */
#define WEIGHT_BITS 15
#define LOG_BITS 24

/* a b 2^-31, rounded down. */
static int32_t times(int32_t a, int32_t b)
{
#if defined(__ARM_ARCH_6M__) /* multiplies to 32 bits alone: four products of halves */
    const int32_t high = a >> 16, other = b >> 16;
    const uint32_t low = (uint32_t)a & 0xffffu, under = (uint32_t)b & 0xffffu;
    const int32_t left = high * (int32_t)under + (int32_t)((low * under) >> 16), right = (int32_t)low * other;
    return high * other * 2 + (left >> 15) + (right >> 15) + (((left & 0x7fff) + (right & 0x7fff)) >> 15);
#else
    return (int32_t)(((int64_t)a * b) >> 31);
#endif
}

/* ln(value 2^-bits) @ 24 of a value > 0: 2^n m with m in [1, 2), and m = (1 + (i + 1/2) / 32) (1 + r), |r| < 1 / 64. */
static int32_t natural_log(const edgemem_fixed *f, uint64_t value, int32_t bits)
{
    const int32_t zeros = __builtin_clzll(value), n = 63 - zeros;
    const uint32_t m = (uint32_t)((value << zeros) >> 32), i = (m >> 26) & 31u;
    const int32_t r = (int32_t)((uint32_t)(((uint64_t)m * f->inverses[i]) >> 31) - 0x80000000u); /* @ 31 */
    const int32_t rr = (int32_t)(((int64_t)r * r) >> 31), rrr = (int32_t)(((int64_t)rr * r) >> 31);
    return (n - bits) * LN_2 + f->logs[i] + ((r - rr / 2 + rrr / 3) >> (31 - LOG_BITS));
}

/* A sample times its window @ 30, by two products of 32 bits. */
static int32_t windowed(int32_t sample, uint32_t hann)
{
    return sample * (int32_t)(hann >> 8) + ((sample * (int32_t)(hann & 0xffu)) >> 8);
}

/* Windowed samples as fft / 2 complex numbers (even samples real, odd imaginary), in bit-reversed order. */
static void load(const edgemem_fixed *f, const int16_t *samples, edgemem_fixed_bin *z)
{
    const size_t half = f->fft / 2;
    const int32_t shift = SAMPLE_BITS - f->bits, rounding = shift > 0 ? (1 << shift) >> 1 : 0;
    size_t i, place = 0;
    for (i = 0; i < half; ++i) {
        const size_t n = 2 * i;
        size_t bit = half / 2;
        z[place].z.re = n < f->window ? (windowed(samples[n], f->hann[n]) + rounding) >> shift : 0;
        z[place].z.im = n + 1 < f->window ? (windowed(samples[n + 1], f->hann[n + 1]) + rounding) >> shift : 0;
        while (bit != 0 && (place & bit) != 0) {
            place ^= bit;
            bit /= 2;
        }
        place |= bit;
    }
}

/* A complex transform in place, decimation in time; sin(2 pi k / fft) = -cos(2 pi (k + fft / 4) / fft). */
static void transform(const edgemem_fixed *f, edgemem_fixed_bin *z)
{
    const size_t half = f->fft / 2, quarter = f->fft / 4;
    size_t length, first, j;
    for (length = 2; length <= half; length *= 2) {
        const size_t stride = f->fft / length;
        for (j = 0; j < length / 2; ++j) {
            const int32_t re = f->cosines[j * stride], im = f->cosines[j * stride + quarter];
            for (first = j; first < half; first += length) {
                edgemem_fixed_bin *const a = z + first, *const b = a + length / 2;
                const int32_t x = j == 0 ? b->z.re : times(b->z.re, re) - times(b->z.im, im);
                const int32_t y = j == 0 ? b->z.im : times(b->z.re, im) + times(b->z.im, re);
                b->z.re = a->z.re - x;
                b->z.im = a->z.im - y;
                a->z.re += x;
                a->z.im += y;
            }
        }
    }
}

static uint64_t square(int32_t re, int32_t im)
{
    return (uint64_t)((int64_t)re * re) + (uint64_t)((int64_t)im * im);
}

/* |X[k]|^2 of the real signal, k = 0 .. fft / 2: from the transforms of its even and its odd samples. */
static void powers(const edgemem_fixed *f, edgemem_fixed_bin *z)
{
    const size_t half = f->fft / 2, quarter = f->fft / 4;
    const int32_t sum = z[0].z.re + z[0].z.im, difference = z[0].z.re - z[0].z.im;
    size_t k;
    for (k = 1; k <= half / 2; ++k) {
        edgemem_fixed_bin *const a = z + k, *const b = z + (half - k);
        const int32_t re = f->cosines[k], im = f->cosines[k + quarter];
        const int32_t even_re = (a->z.re + b->z.re) >> 1, even_im = (a->z.im - b->z.im) >> 1;
        const int32_t odd_re = (a->z.im + b->z.im) >> 1, odd_im = (b->z.re - a->z.re) >> 1;
        const int32_t x = times(odd_re, re) - times(odd_im, im), y = times(odd_re, im) + times(odd_im, re);
        const uint64_t far = square(even_re - x, even_im - y);
        a->power = square(even_re + x, even_im + y);
        if (a != b) b->power = far;
    }
    z[0].power = square(sum, 0);
    z[half].power = square(difference, 0);
}

/* The features of the frame that is in `samples`. */
static void frame_features(const edgemem_fixed *f, edgemem_fixed_stream *s, float *features)
{
    const uint16_t *weights = f->weights;
    const size_t count = f->coefficients != 0 ? f->coefficients : f->mels;
    size_t j, k, c;
    load(f, s->samples, s->work);
    transform(f, s->work);
    powers(f, s->work);
    for (j = 0; j < f->mels; ++j) {
        const edgemem_fixed_bin *const bin = s->work + f->first[j];
        uint64_t energy = f->floor;
        for (k = 0; k < f->bins[j]; ++k) energy += ((bin[k].power + 0x8000u) >> 16) * *weights++;
        s->logs[j] = natural_log(f, energy, 2 * f->bits - 16 + WEIGHT_BITS);
    }
    for (c = 0; c < count; ++c) {
        int64_t sum = 0;
        for (j = 0; j < f->mels && f->coefficients != 0; ++j) sum += (int64_t)s->logs[j] * f->dct[c * f->mels + j];
        features[c] = (float)(f->coefficients != 0 ? (int32_t)(sum >> 30) : s->logs[c]) * f->unit;
        features[c] += f->offset;
    }
}

void edgemem_fixed_reset(const edgemem_fixed *f, edgemem_fixed_stream *s, edgemem_fixed_bin *room)
{
    s->work = room;
    s->logs = (int32_t *)(void *)(room + f->fft / 2 + 1);
    s->samples = (int16_t *)(void *)(room + f->fft / 2 + 1 + (f->mels + 1) / 2);
    s->filled = 0;
    s->frames = 0;
}

int edgemem_fixed_push(const edgemem_fixed *f, edgemem_fixed_stream *s, const int16_t **samples, size_t *count,
                       float *row)
{
    const size_t width = f->coefficients != 0 ? f->coefficients : f->mels;
    while (*count > 0) {
        s->samples[s->filled++] = *(*samples)++;
        --*count;
        if (s->filled == f->window) {
            frame_features(f, s, row + s->frames * width);
            s->filled = f->window - f->hop;
            memmove(s->samples, s->samples + f->hop, s->filled * sizeof *s->samples);
            if (++s->frames == f->stack) {
                s->frames = 0;
                return 1;
            }
        }
    }
    return 0;
}
