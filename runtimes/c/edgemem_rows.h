/* Raw samples in rows: what a model takes that computes everything itself. Samples become floats in [-1, 1]. */
#ifndef EDGEMEM_ROWS_H
#define EDGEMEM_ROWS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    size_t samples; /* of a row */
} edgemem_rows;

/* `room` [samples]: those that wait for a whole row. */
typedef struct {
    float *room;
    size_t waiting;
} edgemem_rows_stream;

static inline void edgemem_rows_reset(const edgemem_rows *f, edgemem_rows_stream *s, float *room)
{
    (void)f;
    s->room = room;
    s->waiting = 0;
}

/* Takes samples until a row is whole, and moves `samples` and `count` past them: 1 if `row` holds one, 0 at the end. */
static inline int edgemem_rows_push(const edgemem_rows *f, edgemem_rows_stream *s, const int16_t **samples,
                                    size_t *count, float *row)
{
    while (*count > 0) {
        s->room[s->waiting++] = (float)**samples / 32768.0f;
        ++*samples;
        --*count;
        if (s->waiting == f->samples) {
            memcpy(row, s->room, f->samples * sizeof *row);
            s->waiting = 0;
            return 1;
        }
    }
    return 0;
}

#endif
