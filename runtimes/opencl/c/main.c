/* Streams raw chunks: every input after the other from standard input, every output to standard output.

   cc -O2 main.c NAME.c edgemem_opencl.c -lOpenCL -o NAME && ./NAME FOLDER [DEVICE] < chunks > rows */
#include "NAME.h"

#include <stdio.h>
#include <stdlib.h>

static const edgemem_model *const model = &NAME;

static void release(void **buffers, int count)
{
    int i;

    for (i = 0; buffers != NULL && i < count; i++) {
        free(buffers[i]);
    }
    free(buffers);
}

/* A buffer for each port, or NULL. */
static void **allocate(const edgemem_port *ports, int count)
{
    void **buffers = calloc((size_t)count, sizeof *buffers);
    int i;

    for (i = 0; buffers != NULL && i < count; i++) {
        buffers[i] = malloc(ports[i].place.nbytes);
        if (buffers[i] == NULL) {
            release(buffers, count);
            return NULL;
        }
    }
    return buffers;
}

/* Whether standard input had a whole chunk. */
static int filled(void **buffers)
{
    int i;

    for (i = 0; i < model->input_count; i++) {
        const size_t nbytes = model->inputs[i].place.nbytes;

        if (fread(buffers[i], 1, nbytes, stdin) != nbytes) {
            return 0;
        }
    }
    return 1;
}

/* Chunks through the model until the input ends. */
static int run(edgemem_stream *stream, void **inputs, void **outputs)
{
    int i, code = EDGEMEM_OK;

    while (code == EDGEMEM_OK && filled(inputs)) {
        code = edgemem_step(stream, (const void *const *)inputs, outputs);
        for (i = 0; i < model->output_count && code == EDGEMEM_OK; i++) {
            fwrite(outputs[i], 1, model->outputs[i].place.nbytes, stdout);
        }
    }
    return code;
}

int main(int count, char **arguments)
{
    void **inputs, **outputs;
    edgemem_stream *stream;
    int code;

    if (count < 2) {
        fprintf(stderr, "usage: %s FOLDER [DEVICE] < chunks > rows\n", arguments[0]);
        return 2;
    }
    code = edgemem_open(model, arguments[1], count > 2 ? arguments[2] : NULL, &stream);
    if (code != EDGEMEM_OK) {
        fprintf(stderr, "%s: no stream of %s (code %d of edgemem_opencl.h)\n", model->name, arguments[1], code);
        return 2;
    }
    inputs = allocate(model->inputs, model->input_count);
    outputs = allocate(model->outputs, model->output_count);
    code = inputs != NULL && outputs != NULL ? run(stream, inputs, outputs) : EDGEMEM_MEMORY;
    edgemem_close(stream);
    release(inputs, model->input_count);
    release(outputs, model->output_count);
    if (code != EDGEMEM_OK) {
        fprintf(stderr, "%s: a step failed (code %d of edgemem_opencl.h)\n", model->name, code);
        return 1;
    }
    return 0;
}
