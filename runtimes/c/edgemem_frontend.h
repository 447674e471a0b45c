/* Log-mel and MFCC features of audio, sample by sample: the C twin of edgemem/frontend.py, whose equations it follows.
 *
 *     float room[NAME_FRONTEND_FLOATS], row[NAME_FRONTEND_WIDTH];
 *     edgemem_frontend_stream sound;
 *     edgemem_frontend_reset(&NAME_frontend, &sound, room);
 *     for each block of samples:
 *         while (edgemem_frontend_push(&NAME_frontend, &sound, &samples, &count, row)) use(row);
 *
 * float32 arithmetic, no heap, no globals, no math library. Features differ from those of edgemem/frontend.py, which
 * computes in float64, by at most 1e-4 (log-mel) or 5e-4 (MFCC) at a scale of 1 and a floor of 1e-5 or more.
 */
#ifndef EDGEMEM_FRONTEND_H
#define EDGEMEM_FRONTEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Constants of one front end; a generated NAME_frontend.h defines them. */
typedef struct {
    size_t window, hop, fft; /* samples, samples, points: a power of two */
    size_t mels;
    size_t coefficients;     /* of an MFCC, 0 for log-mel */
    size_t stack;            /* frames per row */
    const float *hann;       /* [window] */
    const float *cosines;    /* [3 fft / 4], cos(2 pi k / fft) */
    const uint16_t *first;   /* [mels], the first bin of each filter */
    const uint16_t *bins;    /* [mels], how many */
    const float *weights;    /* of all filters, one after the other */
    const float *dct;        /* [coefficients, mels], NULL for log-mel */
    float floor, center, scale;
} edgemem_frontend;

/* What waits for the samples after it. */
typedef struct {
    float *samples; /* [window], of which `filled` came */
    float *work;    /* [fft + 2 + mels] */
    size_t filled;
    size_t frames;  /* of the row that is being made */
} edgemem_frontend_stream;

/* Floats of room that a stream needs. */
#define EDGEMEM_FRONTEND_FLOATS(window, fft, mels) ((window) + (fft) + 2 + (mels))

/* Back to the first sample; `room` stays the stream's. */
void edgemem_frontend_reset(const edgemem_frontend *f, edgemem_frontend_stream *s, float *room);

/* Takes samples until a row is whole: 1 then, and `row` [stack * features] holds it; 0 if all samples are taken.
 * `samples` (16 bits, mono) and `count` move past what was taken. `row` stays the same until it is whole. */
int edgemem_frontend_push(const edgemem_frontend *f, edgemem_frontend_stream *s, const int16_t **samples, size_t *count,
                          float *row);

#ifdef __cplusplus
}
#endif

#endif
