/* The features of edgemem_frontend.h in fixed point, for cores without an FPU: the same rows, called the same way.
 *
 *     edgemem_fixed_bin room[NAME_FRONTEND_BINS];
 *     float row[NAME_FRONTEND_WIDTH];
 *     edgemem_fixed_stream sound;
 *     edgemem_fixed_reset(&NAME_fixed, &sound, room);
 *     for each block of samples:
 *         while (edgemem_fixed_push(&NAME_fixed, &sound, &samples, &count, row)) use(row);
 *
 * Whole numbers up to the logarithm of an energy, so that all cores give the same bytes; the last two operations of a
 * feature are of float32. A transform shares one exponent that follows the sound. Features differ from those of
 * edgemem/frontend.py by at most 5e-3 (log-mel) or 1.5e-2 (MFCC) at a scale of 1, a floor of 1e-5 or more and an fft of
 * up to 4096: quiet bands beside the loudest sound; a tenth of that elsewhere.
 */
#ifndef EDGEMEM_FIXED_H
#define EDGEMEM_FIXED_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Constants of one front end; a generated NAME_frontend.h defines them. `@ n`: in units of 2^-n. */
typedef struct {
    size_t window, hop, fft; /* samples, samples, points: a power of two */
    size_t mels;
    size_t coefficients;      /* of an MFCC, 0 for log-mel */
    size_t stack;             /* frames per row */
    const uint32_t *hann;     /* [window] @ 23 */
    const int32_t *cosines;   /* [3 fft / 4] @ 31, cos(2 pi k / fft) */
    const uint16_t *first;    /* [mels], the first bin of each filter */
    const uint16_t *bins;     /* [mels], how many */
    const uint16_t *weights;  /* @ 16, of all filters, one after the other */
    const int32_t *dct;       /* [coefficients, mels] @ 30, NULL for log-mel */
    const uint32_t *inverses; /* [32] @ 31: 1 / (1 + (i + 1/2) / 32) */
    const int32_t *logs;      /* [32] @ 24: ln(1 + (i + 1/2) / 32) */
    uint64_t floor_high;      /* @ 44 */
    uint32_t floor_low;       /* @ 76, what is below that */
    float unit, offset;       /* feature = (logarithm @ 24) * unit + offset */
} edgemem_fixed;

/* A point of a spectrum, then its power. */
typedef union {
    struct {
        int32_t re, im;
    } z;
    uint64_t power;
} edgemem_fixed_bin;

/* What waits for the samples after it. */
typedef struct {
    edgemem_fixed_bin *work; /* [fft / 2 + 1] */
    int32_t *logs;           /* [mels] */
    int16_t *samples;        /* [window], of which `filled` came */
    size_t filled;
    size_t frames; /* of the row that is being made */
} edgemem_fixed_stream;

/* Room that a stream needs, in elements of edgemem_fixed_bin. */
#define EDGEMEM_FIXED_BINS(window, fft, mels) ((fft) / 2 + 1 + ((mels) + 1) / 2 + ((window) + 3) / 4)

/* Back to the first sample; `room` stays the stream's. */
void edgemem_fixed_reset(const edgemem_fixed *f, edgemem_fixed_stream *s, edgemem_fixed_bin *room);

/* As edgemem_frontend_push. */
int edgemem_fixed_push(const edgemem_fixed *f, edgemem_fixed_stream *s, const int16_t **samples, size_t *count,
                       float *row);

#ifdef __cplusplus
}
#endif

#endif
