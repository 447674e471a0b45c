/* The equations are those at the head of edgemem/frontend.py; the transform is that of edgemem_frontend.c. */
#include "edgemem_fixed.h"

#include "edgemem_reversed.h"

#include <string.h>

#define LN_2 11629080 /* @ 24 */
#define SAMPLE_BITS 30 /* behind the point of a sample times its window */
#define WEIGHT_BITS 16
#define LOG_BITS 24
#define ROOM 0x20000000u /* parts below it do not overflow in a butterfly: they grow to 1 + sqrt 2 times as much */

/* a b 2^-31, to the nearest. */
static int32_t times(int32_t a, int32_t b)
{
#if defined(__ARM_ARCH_6M__) /* multiplies to 32 bits alone: four products of halves */
    const int32_t high = a >> 16, other = b >> 16;
    const uint32_t low = (uint32_t)a & 0xffffu, under = (uint32_t)b & 0xffffu;
    const int32_t left = high * (int32_t)under + (int32_t)((low * under) >> 16) + 0x4000, right = (int32_t)low * other;
    return high * other * 2 + (left >> 15) + (right >> 15) + (((left & 0x7fff) + (right & 0x7fff)) >> 15);
#else
    return (int32_t)(((int64_t)a * b + 0x40000000) >> 31);
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

/* The bits that a number takes without its sign, or more. */
static uint32_t span(int32_t value)
{
    return (uint32_t)(value < 0 ? ~value : value);
}

/* Windowed samples @ 30 as fft / 2 complex numbers (even samples real, odd imaginary), in bit-reversed order. */
static uint32_t load(const edgemem_fixed *f, const int16_t *samples, edgemem_fixed_bin *z)
{
    const size_t half = f->fft / 2;
    uint32_t spans = 0;
    size_t i, place = 0;
    for (i = 0; i < half; ++i) {
        const size_t n = 2 * i;
        z[place].z.re = n < f->window ? windowed(samples[n], f->hann[n]) : 0;
        z[place].z.im = n + 1 < f->window ? windowed(samples[n + 1], f->hann[n + 1]) : 0;
        spans |= span(z[place].z.re) | span(z[place].z.im);
        place = edgemem_reversed(place, half);
    }
    return spans;
}

/* Bits that have to go before the next butterflies. */
static int32_t excess(uint32_t spans)
{
    int32_t shift = 0;
    while (spans >> shift >= ROOM) ++shift;
    return shift;
}

static int32_t less(int32_t value, int32_t shift)
{
    return (value + ((1 << shift) >> 1)) >> shift;
}

/* A complex transform in place, decimation in time; sin(2 pi k / fft) = -cos(2 pi (k + fft / 4) / fft).
 *
 * All numbers share one exponent: before a stage that could overflow they lose a bit or two, so that early stages and
 * quiet sounds keep more of them. Gives how many went in all; what comes has room for one more stage.
 */
static int32_t transform(const edgemem_fixed *f, edgemem_fixed_bin *z, uint32_t spans)
{
    const size_t half = f->fft / 2, quarter = f->fft / 4;
    int32_t lost = 0, shift = excess(spans);
    size_t length, first, j;
    for (length = 2; length <= half; length *= 2) {
        const size_t stride = f->fft / length;
        spans = 0;
        for (j = 0; j < length / 2; ++j) {
            const int32_t re = f->cosines[j * stride], im = f->cosines[j * stride + quarter];
            for (first = j; first < half; first += length) {
                edgemem_fixed_bin *const a = z + first, *const b = a + length / 2;
                const int32_t a_re = less(a->z.re, shift), a_im = less(a->z.im, shift);
                const int32_t b_re = less(b->z.re, shift), b_im = less(b->z.im, shift);
                const int32_t x = j == 0 ? b_re : times(b_re, re) - times(b_im, im);
                const int32_t y = j == 0 ? b_im : times(b_re, im) + times(b_im, re);
                b->z.re = a_re - x;
                b->z.im = a_im - y;
                a->z.re = a_re + x;
                a->z.im = a_im + y;
                spans |= span(a->z.re) | span(a->z.im) | span(b->z.re) | span(b->z.im);
            }
        }
        lost += shift;
        shift = excess(spans);
    }
    for (j = 0; j < half && shift != 0; ++j) {
        z[j].z.re = less(z[j].z.re, shift);
        z[j].z.im = less(z[j].z.im, shift);
    }
    return lost + shift;
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

/* ln(floor + sum of powers @ 2 bits times weights @ 16) @ 24; of all products, the low words add up by themselves. */
static int32_t log_energy(const edgemem_fixed *f, const edgemem_fixed_bin *bin, const uint16_t *weights, size_t count,
                          int32_t bits)
{
    uint64_t high = f->floor_high, low = f->floor_low;
    int32_t shift;
    size_t k;
    for (shift = bits; shift < SAMPLE_BITS; ++shift) { /* the floor is @ 2 SAMPLE_BITS + WEIGHT_BITS */
        low = (low >> 2) | (high & 3u) << 30;
        high >>= 2;
    }
    for (k = 0; k < count; ++k) {
        high += (bin[k].power >> 32) * weights[k];
        low += (bin[k].power & 0xffffffffu) * weights[k];
    }
    high += low >> 32;
    low &= 0xffffffffu;
    if (high >> 32 != 0) return natural_log(f, high, 2 * bits + WEIGHT_BITS - 32);
    low |= high << 32;
    return natural_log(f, low != 0 ? low : 1, 2 * bits + WEIGHT_BITS);
}

/* The features of the frame that is in `samples`. */
static void frame_features(const edgemem_fixed *f, edgemem_fixed_stream *s, float *features)
{
    const uint16_t *weights = f->weights;
    const size_t count = f->coefficients != 0 ? f->coefficients : f->mels;
    const uint32_t spans = load(f, s->samples, s->work);
    const int32_t bits = SAMPLE_BITS - transform(f, s->work, spans);
    size_t j, c;
    powers(f, s->work);
    for (j = 0; j < f->mels; ++j) {
        s->logs[j] = log_energy(f, s->work + f->first[j], weights, f->bins[j], bits);
        weights += f->bins[j];
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
