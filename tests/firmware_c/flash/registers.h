/* In place of the firmware's: registers, core and ROM are a model in Python, which `sim` asks. */
#ifndef EDGEMEM_REGISTERS_H
#define EDGEMEM_REGISTERS_H

#include <stdint.h>

#define ALWAYS static inline

enum { GET, PUT, WAIT, INTERRUPTS_OFF, INTERRUPTS_BACK, FAULTS_IGNORED, FAULTS_BACK, FORGET };

extern uint32_t (*sim)(uint32_t what, uint32_t a, uint32_t b);

ALWAYS uint32_t register_get(uint32_t at) { return sim(GET, at, 0); }
ALWAYS void register_put(uint32_t at, uint32_t value) { (void)sim(PUT, at, value); }
ALWAYS uint32_t interrupts_off(void) { return sim(INTERRUPTS_OFF, 0, 0); }
ALWAYS void interrupts_back(uint32_t before) { (void)sim(INTERRUPTS_BACK, before, 0); }
ALWAYS void core_wait(void) { (void)sim(WAIT, 0, 0); }
ALWAYS uint32_t bus_faults_ignored(void) { return sim(FAULTS_IGNORED, 0, 0); }
ALWAYS void bus_faults_back(uint32_t before) { (void)sim(FAULTS_BACK, before, 0); }
ALWAYS void data_cache_forget(uint32_t at, uint32_t bytes) { (void)sim(FORGET, at, bytes); }

#endif
