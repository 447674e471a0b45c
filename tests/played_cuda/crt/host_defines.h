// What CUDA's headers take from a compiler, for a plain one: NVIDIA ships its own with nvcc alone.
#pragma once
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __device_builtin__
#define __cudart_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __inline_hint__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __specialization_static static
#define __CUDA_ARCH_HAS_FEATURE__(feature) 0
#define __location__(where)
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __managed__
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDA_CB
