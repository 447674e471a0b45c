/* The equations are those at the head of edgemem/frontend.py. */
#include "edgemem_frontend.h"

#include "edgemem_reversed.h"

#include <string.h>

#define FULL_SCALE 32768.0f
#define LN_2 0.693147181f
#define SMALLEST 1.17549435e-38f

/* ln x of a normal x > 0: x = 2^e m with m in [sqrt 1/2, sqrt 2), ln m = 2 artanh((m - 1) / (m + 1)). */
static float natural_log(float x)
{
    uint32_t bits;
    int32_t e;
    float m, t, tt;
    if (!(x >= SMALLEST)) x = SMALLEST;
    memcpy(&bits, &x, sizeof bits);
    e = (int32_t)(bits >> 23) - 127;
    bits = (bits & 0x007fffffu) | 0x3f800000u;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.41421356f) {
        m *= 0.5f;
        ++e;
    }
    t = (m - 1.0f) / (m + 1.0f);
    tt = t * t;
    t *= 2.0f + tt * (2.0f / 3.0f + tt * (2.0f / 5.0f + tt * (2.0f / 7.0f + tt * (2.0f / 9.0f))));
    return (float)e * LN_2 + t;
}

/* Windowed samples as fft / 2 complex numbers (even samples real, odd imaginary), in bit-reversed order. */
static void load(const edgemem_frontend *f, const float *samples, float *z)
{
    const size_t half = f->fft / 2;
    size_t i, place = 0;
    for (i = 0; i < half; ++i) {
        const size_t n = 2 * i;
        z[2 * place] = n < f->window ? samples[n] * f->hann[n] : 0.0f;
        z[2 * place + 1] = n + 1 < f->window ? samples[n + 1] * f->hann[n + 1] : 0.0f;
        place = edgemem_reversed(place, half);
    }
}

/* A complex transform in place, decimation in time; sin(2 pi k / fft) = -cos(2 pi (k + fft / 4) / fft). */
static void transform(const edgemem_frontend *f, float *z)
{
    const size_t half = f->fft / 2, quarter = f->fft / 4;
    size_t length, first, j;
    for (length = 2; length <= half; length *= 2) {
        const size_t stride = f->fft / length;
        for (j = 0; j < length / 2; ++j) {
            const float re = f->cosines[j * stride], im = f->cosines[j * stride + quarter];
            for (first = j; first < half; first += length) {
                float *a = z + 2 * first, *b = a + length;
                const float x = b[0] * re - b[1] * im, y = b[0] * im + b[1] * re;
                b[0] = a[0] - x;
                b[1] = a[1] - y;
                a[0] += x;
                a[1] += y;
            }
        }
    }
}

/* |X[k]|^2 of the real signal at z[2 k], k = 0 .. fft / 2: from the transforms of its even and its odd samples. */
static void powers(const edgemem_frontend *f, float *z)
{
    const size_t half = f->fft / 2, quarter = f->fft / 4;
    const float sum = z[0] + z[1], difference = z[0] - z[1];
    size_t k;
    for (k = 1; k <= half / 2; ++k) {
        float *a = z + 2 * k, *b = z + 2 * (half - k);
        const float re = f->cosines[k], im = f->cosines[k + quarter];
        const float even_re = 0.5f * (a[0] + b[0]), even_im = 0.5f * (a[1] - b[1]);
        const float odd_re = 0.5f * (a[1] + b[1]), odd_im = 0.5f * (b[0] - a[0]);
        const float x = odd_re * re - odd_im * im, y = odd_re * im + odd_im * re;
        const float near_re = even_re + x, near_im = even_im + y, far_re = even_re - x, far_im = even_im - y;
        b[0] = far_re * far_re + far_im * far_im;
        a[0] = near_re * near_re + near_im * near_im;
    }
    z[0] = sum * sum;
    z[2 * half] = difference * difference;
}

/* The features of the frame that is in `samples`. */
static void frame_features(const edgemem_frontend *f, edgemem_frontend_stream *s, float *features)
{
    float *z = s->work, *logs = f->coefficients != 0 ? s->work + f->fft + 2 : features;
    const float *weights = f->weights;
    const size_t count = f->coefficients != 0 ? f->coefficients : f->mels;
    size_t j, k, c;
    load(f, s->samples, z);
    transform(f, z);
    powers(f, z);
    for (j = 0; j < f->mels; ++j) {
        const float *power = z + 2 * (size_t)f->first[j];
        float energy = 0.0f;
        for (k = 0; k < f->bins[j]; ++k) energy += power[2 * k] * *weights++;
        logs[j] = natural_log(energy + f->floor);
    }
    for (c = 0; c < f->coefficients; ++c) {
        float sum = 0.0f;
        for (j = 0; j < f->mels; ++j) sum += logs[j] * f->dct[c * f->mels + j];
        features[c] = sum;
    }
    for (c = 0; c < count; ++c) features[c] = (features[c] - f->center) * f->scale;
}

void edgemem_frontend_reset(const edgemem_frontend *f, edgemem_frontend_stream *s, float *room)
{
    s->samples = room;
    s->work = room + f->window;
    s->filled = 0;
    s->frames = 0;
}

int edgemem_frontend_push(const edgemem_frontend *f, edgemem_frontend_stream *s, const int16_t **samples, size_t *count,
                          float *row)
{
    const size_t width = f->coefficients != 0 ? f->coefficients : f->mels;
    while (*count > 0) {
        s->samples[s->filled++] = (float)*(*samples)++ / FULL_SCALE;
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
