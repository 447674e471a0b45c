// CUDA C++ on a processor: the threads of a block take turns, in rounds, and wait for one another where CUDA's would.
//
//   __syncthreads    until every thread of the block has come that has not returned
//   __shfl_*_sync    until every lane of the mask has come; a lane outside of the mask gives NaN
//   __activemask     the lanes of the warp that come in the same round
//
// Kernels are compiled behind this header, and behind them, for each, what the driver runs it by (`played` in __init__.py).
#pragma once
#include <setjmp.h>
#include <ucontext.h>
#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#undef __forceinline__
#define __forceinline__ inline
#define __launch_bounds__(...)

static dim3 gridDim, blockDim;
static uint3 blockIdx, threadIdx;

namespace played {
enum State { READY, SYNC, WARP, MASK, DONE };
constexpr unsigned LANES = 32;
constexpr size_t STACK = 64 << 10;

struct Thread {
  ucontext_t first;
  jmp_buf where;
  bool begun = false;
  State state = DONE;
  uint3 index;
  unsigned mask;   // of a shuffle, and the answer of __activemask
  unsigned source; // lane that a shuffle reads
  uint64_t given, taken;
};

static std::vector<Thread*> threads;
static Thread* now;
static jmp_buf scheduler;
static ucontext_t main_context;
static void (*body)();

static void wait(State state) {
  now->state = state;
  if (!_setjmp(now->where)) _longjmp(scheduler, 1);
}

static void forever() {
  for (;;) {
    body();
    wait(DONE);
  }
}

static void resume(Thread* thread) {
  now = thread;
  threadIdx = thread->index;
  if (_setjmp(scheduler)) return;
  if (thread->begun) _longjmp(thread->where, 1);
  thread->begun = true;
  swapcontext(&main_context, &thread->first);
}

static Thread* added() {
  Thread* thread = new Thread;
  getcontext(&thread->first);
  thread->first.uc_stack.ss_sp = malloc(STACK);
  thread->first.uc_stack.ss_size = STACK;
  thread->first.uc_link = nullptr;
  makecontext(&thread->first, forever, 0);
  return thread;
}

// After a round: let go who has waited long enough.
static bool released(unsigned count) {
  unsigned done = 0, synced = 0;
  bool any = false;
  for (unsigned t = 0; t < count; ++t) done += threads[t]->state == DONE, synced += threads[t]->state == SYNC;
  if (done == count) return false;
  for (unsigned first = 0; first < count; first += LANES) {
    unsigned waiting = 0, masked = 0;
    for (unsigned l = 0; l < LANES && first + l < count; ++l) {
      waiting |= unsigned(threads[first + l]->state == WARP) << l;
      masked |= unsigned(threads[first + l]->state == MASK) << l;
    }
    for (unsigned l = 0; l < LANES && first + l < count; ++l) {
      Thread* thread = threads[first + l];
      if (masked >> l & 1) thread->mask = masked, thread->state = READY, any = true;
      if (!(waiting >> l & 1) || (waiting & thread->mask) != thread->mask) continue;
      bool there = thread->source < LANES && (thread->mask >> thread->source & 1);
      thread->taken = there ? threads[first + thread->source]->given : ~uint64_t{0};
    }
    for (unsigned l = 0; l < LANES && first + l < count; ++l) {
      Thread* thread = threads[first + l];
      if ((waiting >> l & 1) && (waiting & thread->mask) == thread->mask) thread->state = READY, any = true;
    }
  }
  if (synced + done == count)
    for (unsigned t = 0; t < count; ++t)
      if (threads[t]->state == SYNC) threads[t]->state = READY, any = true;
  if (!any) fprintf(stderr, "a block waits for itself: %u of %u threads at a barrier\n", synced, count), abort();
  return true;
}

static void block(bool waits) {
  unsigned count = blockDim.x * blockDim.y * blockDim.z;
  while (waits && threads.size() < count) threads.push_back(added());
  unsigned t = 0;
  for (unsigned z = 0; z < blockDim.z; ++z)
    for (unsigned y = 0; y < blockDim.y; ++y)
      for (unsigned x = 0; x < blockDim.x; ++x) {
        if (waits) {
          threads[t]->index = make_uint3(x, y, z);
          threads[t++]->state = READY;
        } else {
          threadIdx = make_uint3(x, y, z);
          body();
        }
      }
  if (!waits) return;
  do {
    for (unsigned i = 0; i < count; ++i)
      if (threads[i]->state == READY) resume(threads[i]);
  } while (released(count));
}

static void grid(dim3 blocks, dim3 size, bool waits, void (*kernel)()) {
  gridDim = blocks, blockDim = size, body = kernel;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) blockIdx = make_uint3(x, y, z), block(waits);
}

static unsigned lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % LANES;
}

template <typename T>
static T shuffled(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "");
  now->mask = mask, now->source = source, now->given = 0;
  memcpy(&now->given, &value, sizeof value);
  wait(WARP);
  memcpy(&value, &now->taken, sizeof value);
  return value;
}
}  // namespace played

static inline void __syncthreads() { played::wait(played::SYNC); }
static inline unsigned __activemask() {
  played::wait(played::MASK);
  return played::now->mask;
}
template <typename T>
static T __shfl_sync(unsigned mask, T value, unsigned source, unsigned width = 32) {
  unsigned lane = played::lane();
  return played::shuffled(mask, value, lane / width * width + source % width);
}
template <typename T>
static T __shfl_down_sync(unsigned mask, T value, unsigned delta, unsigned width = 32) {
  unsigned lane = played::lane();
  return played::shuffled(mask, value, lane % width + delta < width ? lane + delta : lane);
}
template <typename T>
static T __shfl_up_sync(unsigned mask, T value, unsigned delta, unsigned width = 32) {
  unsigned lane = played::lane();
  return played::shuffled(mask, value, lane % width >= delta ? lane - delta : lane);
}

template <typename A, typename B>
static typename std::common_type<A, B>::type max(A a, B b) { return a > b ? a : b; }
template <typename A, typename B>
static typename std::common_type<A, B>::type min(A a, B b) { return a < b ? a : b; }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf expf
static inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += int(int8_t(a >> i)) * int(int8_t(b >> i));
  return sum;
}
using std::isnan;
#define alignas(n) __attribute__((aligned(n)))  // may stand behind `static`
