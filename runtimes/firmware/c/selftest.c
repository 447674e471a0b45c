#include "selftest.h"

#include "console.h"
#include "edgemem_model.h"

#include <string.h>

static float as_float(const unsigned char *p)
{
    float value;
    memcpy(&value, p, sizeof value);
    return value;
}

static int fail_float(uint32_t index, float wanted, float came)
{
    console_text("FAIL ");
    console_unsigned(index);
    console_text(" ");
    console_float(wanted);
    console_text(" ");
    console_float(came);
    console_text("\n");
    return 0;
}

static int fail_byte(uint32_t index, uint32_t wanted, uint32_t came)
{
    console_text("FAIL ");
    console_unsigned(index);
    console_text(" ");
    console_unsigned(wanted);
    console_text(" ");
    console_unsigned(came);
    console_text("\n");
    return 0;
}

/* One output tensor; `index` counts floats, or bytes of other types, over all outputs and steps. */
static int same(uint32_t output, const unsigned char *wanted, uint32_t *index)
{
    const edgemem_span span = edgemem_outputs[output];
    const float tolerance = edgemem_vector_tolerance[output];
    uint32_t i;
    if (span.is_float && tolerance > 0.0f) {
        for (i = 0; i < span.bytes; i += sizeof(float), ++*index) {
            const float a = as_float(wanted + i), b = as_float(span.data + i);
            if (!(a - b <= tolerance && b - a <= tolerance)) return fail_float(*index, a, b);
        }
        return 1;
    }
    for (i = 0; i < span.bytes; ++i, ++*index) {
        if (wanted[i] != span.data[i]) return fail_byte(*index, wanted[i], span.data[i]);
    }
    return 1;
}

int selftest(void)
{
    const unsigned char *in = edgemem_vector_inputs, *out = edgemem_vector_outputs;
    uint32_t step, i, index = 0;
    if (edgemem_check() != 0 || edgemem_reset() != 0) {
        console_text("FAIL: the weights in flash are not those that were compiled\n");
        return 0;
    }
    for (step = 0; step < edgemem_vector_steps; ++step) {
        for (i = 0; i < edgemem_input_count; ++i) {
            memcpy(edgemem_inputs[i].data, in, edgemem_inputs[i].bytes);
            in += edgemem_inputs[i].bytes;
        }
        if (edgemem_step() != 0) {
            console_text("FAIL: a step was refused\n");
            return 0;
        }
        for (i = 0; i < edgemem_output_count; ++i) {
            if (!same(i, out, &index)) return 0;
            out += edgemem_outputs[i].bytes;
        }
    }
    console_text("PASS\n");
    return edgemem_reset() == 0;
}
