/* Steps of a memory that halves: the caller's mode stays as it is, on every way out, and the state ends at exactly 0.
 *
 * Compiled for a board beside MODEL's driver and kernels; exit 0 if all holds. The model: memory [1, WIDTH] = memory / 2
 * + x, one output.
 */
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

#ifdef __x86_64__
#include <xmmintrin.h>
#define CONTROL() ((unsigned long)_mm_getcsr())
#elif defined(__aarch64__)
#define CONTROL() ((unsigned long)__builtin_aarch64_get_fpcr())
#else
#define CONTROL() ((unsigned long)__builtin_arm_get_fpscr() & 0x0ffffffful) /* without what comparisons found */
#endif
#define LEAST 1.17549435e-38f /* the least normal number */

static unsigned long before;

static void want(int holds, const char *what)
{
    if (holds && CONTROL() == before) return;
    fprintf(stderr, "%s: %s, control %lx before, %lx after\n", what, holds ? "holds" : "fails", before, CONTROL());
    exit(1);
}

int main(void)
{
    static float x[WIDTH], y[WIDTH];
    static _Alignas(MODEL_ALIGNMENT) unsigned char state[MODEL_STATE_BYTES], arena[MODEL_ARENA_BYTES];
    static volatile float least = LEAST;
    const model_inputs inputs = {x};
    const model_outputs outputs = {y};
    const float *memory;
    int i, step;

    if (model_reset(state, sizeof state) != MODEL_OK || fesetround(FE_UPWARD) != 0) return 2;
    (void)(1.0f / (least * 0.0f)); /* leaves a mark among the exceptions, which stay too */
    before = CONTROL();
    for (i = 0; i < WIDTH; ++i) x[i] = (float)(i % 2 ? 64 : -64) * LEAST;
    for (step = 0; step < 40; ++step) {
        want(model_step(&inputs, &outputs, state, sizeof state, arena, sizeof arena) == MODEL_OK, "a step");
        memory = (const float *)model_state(state, sizeof state, 0);
        for (i = 0; i < WIDTH; ++i) {
            const float size = memory[i] < 0 ? -memory[i] : memory[i];
            want(step < 6 ? size >= LEAST : step > 6 ? size == 0 : size == LEAST, "the memory");
            x[i] = 0;
        }
    }
    want(model_step(NULL, &outputs, state, sizeof state, arena, sizeof arena) == MODEL_ERROR_NULL, "no inputs");
    want(model_step(&inputs, &outputs, state, sizeof state - 1, arena, sizeof arena) == MODEL_ERROR_SIZE, "a short state");
    want(model_step(&inputs, &outputs, state, sizeof state, arena, 0) == MODEL_ERROR_SIZE, "no arena");
    return least * 0.5f != 0 ? 0 : 3; /* the caller's own subnormal numbers */
}
