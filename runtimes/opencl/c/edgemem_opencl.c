/* See edgemem_opencl.h. */
#define CL_TARGET_OPENCL_VERSION 120
#include "edgemem_opencl.h"

#include <CL/cl.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 512, MOST_PLATFORMS = 16, MOST_DEVICES = 32, TURNS = 2 };

struct edgemem_stream {
    const edgemem_model *model;
    cl_context context;
    cl_command_queue queue;
    cl_program program;
    cl_mem spaces[EDGEMEM_SPACES];
    cl_mem *regions;    /* of every argument, by turn */
    cl_kernel *kernels; /* of every launch, by turn */
    unsigned char *starts;
    int turn;
};

/* The whole file, with a 0 behind it. */
static unsigned char *read_file(const char *folder, const char *name, const char *ending, size_t *size)
{
    char path[4096];
    unsigned char *data = NULL;
    FILE *file;
    long end;
    const int length = snprintf(path, sizeof path, "%s/%s%s", folder, name, ending);

    if (length < 0 || (size_t)length >= sizeof path || (file = fopen(path, "rb")) == NULL) {
        return NULL;
    }
    if (fseek(file, 0, SEEK_END) == 0 && (end = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        *size = (size_t)end;
        data = malloc(*size + 1);
        if (data != NULL && fread(data, 1, *size, file) != *size) {
            free(data);
            data = NULL;
        }
        if (data != NULL) {
            data[*size] = 0;
        }
    }
    fclose(file);
    return data;
}

/* Whether `text` has `part` in it, whatever their case. */
static int has(const char *text, const char *part)
{
    const size_t length = strlen(part);
    size_t i;

    for (; *text != 0; text++) {
        for (i = 0; i < length && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i]); i++) {
        }
        if (i == length) {
            return 1;
        }
    }
    return length == 0;
}

static int find_device(const char *part, cl_device_id *found)
{
    cl_platform_id platforms[MOST_PLATFORMS];
    cl_device_id devices[MOST_DEVICES];
    cl_uint platform_count = 0, device_count = 0, p, d;
    char platform[NAME_BYTES], name[NAME_BYTES];

    if (clGetPlatformIDs(MOST_PLATFORMS, platforms, &platform_count) != CL_SUCCESS) {
        return EDGEMEM_DEVICE;
    }
    for (p = 0; p < platform_count && p < MOST_PLATFORMS; p++) {
        if (clGetPlatformInfo(platforms[p], CL_PLATFORM_NAME, sizeof platform, platform, NULL) != CL_SUCCESS ||
            clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, MOST_DEVICES, devices, &device_count) != CL_SUCCESS) {
            continue;
        }
        for (d = 0; d < device_count && d < MOST_DEVICES; d++) {
            if (clGetDeviceInfo(devices[d], CL_DEVICE_NAME, sizeof name, name, NULL) == CL_SUCCESS &&
                (part == NULL || has(platform, part) || has(name, part))) {
                *found = devices[d];
                return EDGEMEM_OK;
            }
        }
    }
    return EDGEMEM_DEVICE;
}

static int build(edgemem_stream *s, cl_device_id device, const char *folder)
{
    size_t size = 0;
    cl_int error = CL_SUCCESS;
    char *text = (char *)read_file(folder, s->model->name, ".cl", &size);
    const char *source = text;

    if (text == NULL) {
        return EDGEMEM_FILE;
    }
    s->program = clCreateProgramWithSource(s->context, 1, &source, &size, &error);
    if (error == CL_SUCCESS) {
        error = clBuildProgram(s->program, 1, &device, "", NULL, NULL);
    }
    free(text);
    return error == CL_SUCCESS ? EDGEMEM_OK : EDGEMEM_BUILD;
}

static int allocate(edgemem_stream *s, const char *folder)
{
    const edgemem_model *m = s->model;
    size_t size = 0;
    cl_int error = CL_SUCCESS;
    int space;

    s->starts = read_file(folder, m->name, "_weights.bin", &size);
    if (s->starts == NULL || size != m->file_bytes) {
        return EDGEMEM_FILE;
    }
    for (space = 0; space < EDGEMEM_SPACES && error == CL_SUCCESS; space++) {
        s->spaces[space] = clCreateBuffer(s->context, CL_MEM_READ_WRITE, m->sizes[space], NULL, &error);
    }
    if (error == CL_SUCCESS) {
        error = clEnqueueWriteBuffer(s->queue, s->spaces[EDGEMEM_WEIGHTS], CL_TRUE, 0, m->sizes[EDGEMEM_WEIGHTS],
                                     s->starts, 0, NULL, NULL);
    }
    return error == CL_SUCCESS ? EDGEMEM_OK : EDGEMEM_MEMORY;
}

/* One kernel object for every launch and turn, its arguments set for good. */
static int bind(edgemem_stream *s)
{
    const edgemem_model *m = s->model;
    int arguments = 0, i, k;
    cl_int error = CL_SUCCESS;

    for (i = 0; i < m->launch_count; i++) {
        arguments += m->launches[i].count;
    }
    s->regions = calloc((size_t)(TURNS * arguments + 1), sizeof *s->regions);
    s->kernels = calloc((size_t)(TURNS * m->launch_count + 1), sizeof *s->kernels);
    if (s->regions == NULL || s->kernels == NULL) {
        return EDGEMEM_MEMORY;
    }
    for (i = 0; i < TURNS * m->launch_count; i++) {
        const edgemem_launch *launch = &m->launches[i / TURNS];
        const int turn = i % TURNS;

        s->kernels[i] = clCreateKernel(s->program, launch->kernel, &error);
        for (k = 0; k < launch->count && error == CL_SUCCESS; k++) {
            const edgemem_place *place = &m->arguments[launch->first + k];
            const cl_buffer_region region = {place->offset[turn], place->nbytes > 0 ? place->nbytes : 1};
            cl_mem *held = &s->regions[TURNS * (launch->first + k) + turn];

            *held = clCreateSubBuffer(s->spaces[place->space], CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region,
                                      &error);
            if (error == CL_SUCCESS) {
                error = clSetKernelArg(s->kernels[i], (cl_uint)k, sizeof *held, held);
            }
        }
        if (error != CL_SUCCESS) {
            return EDGEMEM_BUILD;
        }
    }
    return EDGEMEM_OK;
}

int edgemem_open(const edgemem_model *model, const char *folder, const char *device, edgemem_stream **stream)
{
    cl_device_id id = NULL;
    cl_int error = CL_SUCCESS;
    int code = find_device(device, &id);
    edgemem_stream *s = code == EDGEMEM_OK ? calloc(1, sizeof *s) : NULL;

    *stream = NULL;
    if (s == NULL) {
        return code == EDGEMEM_OK ? EDGEMEM_MEMORY : code;
    }
    s->model = model;
    s->context = clCreateContext(NULL, 1, &id, NULL, NULL, &error);
    if (error == CL_SUCCESS) {
        s->queue = clCreateCommandQueue(s->context, id, 0, &error);
    }
    code = error == CL_SUCCESS ? build(s, id, folder) : EDGEMEM_DEVICE;
    code = code == EDGEMEM_OK ? allocate(s, folder) : code;
    code = code == EDGEMEM_OK ? bind(s) : code;
    code = code == EDGEMEM_OK ? edgemem_reset(s) : code;
    if (code != EDGEMEM_OK) {
        edgemem_close(s);
        return code;
    }
    *stream = s;
    return EDGEMEM_OK;
}

int edgemem_reset(edgemem_stream *s)
{
    int i, code = EDGEMEM_OK;

    s->turn = 0;
    for (i = 0; i < s->model->state_count && code == EDGEMEM_OK; i++) {
        code = edgemem_set_state(s, i, s->starts + s->model->states[i].start);
    }
    return code;
}

int edgemem_get_state(edgemem_stream *s, int index, void *values)
{
    if (index < 0 || index >= s->model->state_count) {
        return EDGEMEM_RANGE;
    }
    const edgemem_place *place = &s->model->states[index].place;
    const cl_int error = clEnqueueReadBuffer(s->queue, s->spaces[EDGEMEM_STATE], CL_TRUE, place->offset[s->turn],
                                             place->nbytes, values, 0, NULL, NULL);

    return error == CL_SUCCESS ? EDGEMEM_OK : EDGEMEM_LAUNCH;
}

int edgemem_set_state(edgemem_stream *s, int index, const void *values)
{
    if (index < 0 || index >= s->model->state_count) {
        return EDGEMEM_RANGE;
    }
    const edgemem_place *place = &s->model->states[index].place;
    const cl_int error = clEnqueueWriteBuffer(s->queue, s->spaces[EDGEMEM_STATE], CL_TRUE, place->offset[s->turn],
                                              place->nbytes, values, 0, NULL, NULL);

    return error == CL_SUCCESS ? EDGEMEM_OK : EDGEMEM_LAUNCH;
}

/* An integer of `width` bytes, little-endian as every OpenCL host is here; below 0: without a sign. */
static int64_t integer(const unsigned char *bytes, int width)
{
    const int count = width < 0 ? -width : width;
    uint64_t value = 0;
    int i;

    for (i = count - 1; i >= 0; i--) {
        value = (value << 8) | bytes[i];
    }
    if (width > 0 && count < 8 && bytes[count - 1] & 0x80) {
        value |= ~UINT64_C(0) << (8 * count);
    }
    return (int64_t)value;
}

static int in_range(const edgemem_port *port, const void *values)
{
    const size_t width = (size_t)(port->index_bytes < 0 ? -port->index_bytes : port->index_bytes);
    size_t i;

    for (i = 0; width > 0 && i < port->place.nbytes / width; i++) {
        const int64_t value = integer((const unsigned char *)values + i * width, port->index_bytes);

        if (value < port->least || value > port->most) {
            return 0;
        }
    }
    return 1;
}

int edgemem_step(edgemem_stream *s, const void *const *inputs, void *const *outputs)
{
    const edgemem_model *m = s->model;
    const int turn = s->turn;
    cl_int error = CL_SUCCESS;
    int i, axis;

    for (i = 0; i < m->input_count; i++) {
        if (!in_range(&m->inputs[i], inputs[i])) {
            return EDGEMEM_RANGE;
        }
    }
    for (i = 0; i < m->input_count && error == CL_SUCCESS; i++) {
        const edgemem_place *place = &m->inputs[i].place;

        error = clEnqueueWriteBuffer(s->queue, s->spaces[place->space], CL_TRUE, place->offset[turn], place->nbytes,
                                     inputs[i], 0, NULL, NULL);
    }
    for (i = 0; i < m->launch_count && error == CL_SUCCESS; i++) {
        const edgemem_launch *launch = &m->launches[i];
        size_t all[3];

        for (axis = 0; axis < 3; axis++) {
            all[axis] = launch->blocks[axis] * launch->threads[axis];
        }
        error = clEnqueueNDRangeKernel(s->queue, s->kernels[TURNS * i + turn], 3, NULL, all, launch->threads, 0, NULL,
                                       NULL);
    }
    for (i = 0; i < m->output_count && error == CL_SUCCESS; i++) {
        const edgemem_place *place = &m->outputs[i].place;

        error = clEnqueueReadBuffer(s->queue, s->spaces[place->space], CL_FALSE, place->offset[turn], place->nbytes,
                                    outputs[i], 0, NULL, NULL);
    }
    for (i = 0; i < m->copy_count && error == CL_SUCCESS; i++) {
        const edgemem_place *from = &m->copies[i][0], *to = &m->copies[i][1];

        error = clEnqueueCopyBuffer(s->queue, s->spaces[from->space], s->spaces[to->space], from->offset[turn],
                                    to->offset[turn], from->nbytes, 0, NULL, NULL);
    }
    if (clFinish(s->queue) != CL_SUCCESS || error != CL_SUCCESS) {
        return EDGEMEM_LAUNCH;
    }
    s->turn = m->turns ? 1 - turn : 0;
    return EDGEMEM_OK;
}

void edgemem_close(edgemem_stream *s)
{
    int i, arguments = 0;

    if (s == NULL) {
        return;
    }
    for (i = 0; i < s->model->launch_count; i++) {
        arguments += s->model->launches[i].count;
    }
    for (i = 0; s->kernels != NULL && i < TURNS * s->model->launch_count; i++) {
        if (s->kernels[i] != NULL) {
            clReleaseKernel(s->kernels[i]);
        }
    }
    for (i = 0; s->regions != NULL && i < TURNS * arguments; i++) {
        if (s->regions[i] != NULL) {
            clReleaseMemObject(s->regions[i]);
        }
    }
    for (i = 0; i < EDGEMEM_SPACES; i++) {
        if (s->spaces[i] != NULL) {
            clReleaseMemObject(s->spaces[i]);
        }
    }
    if (s->program != NULL) {
        clReleaseProgram(s->program);
    }
    if (s->queue != NULL) {
        clReleaseCommandQueue(s->queue);
    }
    if (s->context != NULL) {
        clReleaseContext(s->context);
    }
    free(s->kernels);
    free(s->regions);
    free(s->starts);
    free(s);
}
