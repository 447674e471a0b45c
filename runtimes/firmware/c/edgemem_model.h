/* What the firmware needs to know of a model; model.c is generated. One stream: inputs, outputs, state and arena are static. */
#ifndef EDGEMEM_MODEL_H
#define EDGEMEM_MODEL_H

#include <stddef.h>
#include <stdint.h>

/* A tensor's place: its first byte, its size, and whether its elements are float32. */
typedef struct {
    unsigned char *data;
    uint32_t bytes;
    uint32_t is_float;
} edgemem_span;

extern const char edgemem_model_name[];
extern const edgemem_span edgemem_inputs[], edgemem_outputs[];
extern const uint32_t edgemem_input_count, edgemem_output_count, edgemem_state_count;
extern const uint32_t edgemem_state_sizes[]; /* bytes of every state tensor */
extern const uint32_t edgemem_identity[2];   /* which weights and states these are */

int edgemem_reset(void);
int edgemem_step(void);
int edgemem_check(void);
void *edgemem_state_at(uint32_t index); /* a state tensor as it is now */

/* Test vectors: steps from the start state, inputs and wanted outputs one after another. */
extern const uint32_t edgemem_vector_steps;
extern const unsigned char edgemem_vector_inputs[], edgemem_vector_outputs[];
extern const float edgemem_vector_tolerance[]; /* of each output; 0: every byte */

#endif
