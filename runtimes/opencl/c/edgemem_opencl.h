/* A streaming model on an OpenCL device, for boards without Python. C99; needs an OpenCL 1.2 library.

   edgemem_stream *stream;
   if (edgemem_open(&NAME, "folder", NULL, &stream) != EDGEMEM_OK) ...
   edgemem_step(stream, inputs, outputs);     one pointer for each port, in the order of the model's tables
   edgemem_close(stream);

   The folder holds NAME.cl and NAME_weights.bin. A stream belongs to one thread at a time. */
#ifndef EDGEMEM_OPENCL_H
#define EDGEMEM_OPENCL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    EDGEMEM_OK = 0,
    EDGEMEM_FILE = 1,   /* a file of the folder is missing or has another size */
    EDGEMEM_DEVICE = 2, /* no such device, or its driver is too old */
    EDGEMEM_BUILD = 3,  /* the driver refuses the kernels */
    EDGEMEM_MEMORY = 4, /* too little memory, of the device or of this machine */
    EDGEMEM_RANGE = 5,  /* an integer input outside its range; nothing has changed */
    EDGEMEM_LAUNCH = 6  /* the device failed in a step */
};

enum { EDGEMEM_WEIGHTS, EDGEMEM_ARENA, EDGEMEM_STATE, EDGEMEM_SPACES };

typedef struct {
    int space;
    size_t offset[2]; /* in even and in odd steps */
    size_t nbytes;
} edgemem_place;

typedef struct {
    const char *kernel;
    int first, count; /* of its places, in `arguments` */
    size_t blocks[3], threads[3];
} edgemem_launch;

typedef struct {
    const char *name;
    edgemem_place place;
    int index_bytes; /* of an integer with a range to check: 1, 2, 4 or 8, below 0 if it has no sign; or 0 */
    int64_t least, most;
    size_t start; /* of a state: where its first value lies in the weights' file */
} edgemem_port;

typedef struct {
    const char *name;
    size_t sizes[EDGEMEM_SPACES];
    size_t file_bytes; /* of the weights' file */
    int turns;         /* whether states take turns between two places */
    const edgemem_place *arguments;
    const edgemem_launch *launches;
    const edgemem_place (*copies)[2];
    const edgemem_port *inputs, *outputs, *states;
    int launch_count, copy_count, input_count, output_count, state_count;
} edgemem_model;

typedef struct edgemem_stream edgemem_stream;

/* `device`: part of the name of a platform or device, or NULL for the first one. */
int edgemem_open(const edgemem_model *model, const char *folder, const char *device, edgemem_stream **stream);
int edgemem_step(edgemem_stream *stream, const void *const *inputs, void *const *outputs);
int edgemem_reset(edgemem_stream *stream);
/* `index`: of the model's `states`. */
int edgemem_get_state(edgemem_stream *stream, int index, void *values);
int edgemem_set_state(edgemem_stream *stream, int index, const void *values);
void edgemem_close(edgemem_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
