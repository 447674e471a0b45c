// NVIDIA's driver and CUDA's runtime, as far as TVM's library for CUDA calls them, played on a processor.
//
// Strict where a GPU is: memory of the device cannot be read by the host (the kernels see it elsewhere), comes full of
// NaN, is gone once it is freed, and nothing may be written behind it; what is launched or copied on the device is done
// only when something waits for it; while a stream captures, whatever CUDA forbids meanwhile fails and spoils the
// capture; a launch keeps to the limits of compute capability 9.0 and to the bounds of its kernel. A kernel's machine
// code is a shared object made of its CUDA C++ (threads.h). One device, one thread at a time.
//
// NVIDIA, "CUDA Runtime API" and "CUDA C++ Programming Guide" (stream capture; compute capabilities), version 13.
//
//   PLAYED_CUDA_BYTES    memory of the device                PLAYED_CUDA_VERSION    13000
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {
using Work = std::function<void()>;

struct Memory {
  char* shown;  // to kernels; the host's address is not mapped to anything
  size_t size, room;
};
struct Stream {
  bool blocking = true;
  bool capturing = false;
  std::vector<Work> captured;
};
struct Kernel {
  std::string name, kinds;  // of each argument: p a pointer, 4 or 8 bytes of a number
  unsigned bound;
  void (*run)(void**, dim3, dim3);
};
struct Module {
  void* library;
  std::map<std::string, Kernel> kernels;
};

std::map<char*, Memory> memories;
size_t used = 0;
std::deque<Work> queue;
Stream* capturing = nullptr;
bool spoiled = false;
cudaError_t broken = cudaSuccess;  // an error that stays
long counts[6];                    // launches, graph launches, captures, allocations, copies to and from the device

size_t setting(const char* name, size_t otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 0) : otherwise;
}
size_t total() { return setting("PLAYED_CUDA_BYTES", size_t{1} << 30); }

// Where a kernel finds an address of the device; null where there is no such memory.
char* shown(const void* address, size_t size) {
  char* wanted = static_cast<char*>(const_cast<void*>(address));
  auto after = memories.upper_bound(wanted);
  if (after == memories.begin()) return nullptr;
  auto& [first, memory] = *--after;
  return wanted + size <= first + memory.size ? memory.shown + (wanted - first) : nullptr;
}

// Whether what lies behind an allocation is as it was made.
bool kept(const void* address) {
  auto& [first, memory] = *--memories.upper_bound(static_cast<char*>(const_cast<void*>(address)));
  for (size_t i = memory.size; i < memory.room; ++i)
    if (memory.shown[i] != char(0xff)) return false;
  return true;
}

cudaError_t finished() {
  while (!queue.empty() && broken == cudaSuccess) {
    Work work = std::move(queue.front());
    queue.pop_front();
    work();
  }
  return broken;
}

cudaError_t refused(cudaError_t error, const char* call) {
  fprintf(stderr, "played CUDA: %s while a stream captures\n", call);
  spoiled = true;
  return error;
}

// Calls that CUDA forbids in any thread while a stream captures (cudaStreamCaptureModeGlobal).
#define UNSAFE(call) \
  if (capturing) return refused(cudaErrorStreamCaptureUnsupported, call)

// Put work onto a stream, or into the graph that it captures.
cudaError_t put(Stream* stream, const char* call, Work work) {
  if (capturing && stream == capturing) {
    stream->captured.push_back(std::move(work));
    return cudaSuccess;
  }
  if (capturing && (!stream || stream->blocking)) return refused(cudaErrorStreamCaptureImplicit, call);
  queue.push_back(std::move(work));
  return broken;
}

void copy_now(void* to, const void* from, size_t size) {
  char *target = shown(to, size), *source = shown(from, size);
  if (target && source) memmove(target, source, size);
  else broken = cudaErrorIllegalAddress;
}
}  // namespace

extern "C" {
void played_cuda_counts(long* target) { memcpy(target, counts, sizeof counts); }

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  static const std::map<int, int> known = {
      {cudaDevAttrMaxThreadsPerBlock, 1024},          {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10}, {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},         {cudaDevAttrMultiProcessorCount, 132}};
  auto found = known.find(what);
  return found == known.end() ? cudaErrorInvalidValue : (*value = found->second, cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = total();
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  return *free = total() - used, *all = total(), cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t size) {
  UNSAFE("cudaMalloc");
  *address = nullptr;
  if (!size) return cudaSuccess;
  size_t room = (size / 4096 + 1) * 4096;
  if (used + room > total()) return cudaErrorMemoryAllocation;
  int file = memfd_create("device", 0);
  if (file < 0 || ftruncate(file, room)) abort();
  void* place = mmap(nullptr, room, PROT_NONE, MAP_SHARED, file, 0);
  void* seen = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (place == MAP_FAILED || seen == MAP_FAILED) abort();
  memset(seen, 0xff, room);
  memories[static_cast<char*>(place)] = {static_cast<char*>(seen), size, room};
  used += room, ++counts[3];
  *address = place;
  return broken;
}
cudaError_t cudaFree(void* address) {
  if (!address) return cudaSuccess;
  UNSAFE("cudaFree");
  finished();
  auto found = memories.find(static_cast<char*>(address));
  if (found == memories.end()) return cudaErrorInvalidValue;
  munmap(found->second.shown, found->second.room);
  munmap(address, found->second.room);
  used -= found->second.room;
  memories.erase(found);
  return broken;
}
cudaError_t cudaMallocHost(void** address, size_t size) { return *address = malloc(size), cudaSuccess; }
cudaError_t cudaFreeHost(void* address) { return free(address), cudaSuccess; }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t given) {
  auto* stream = reinterpret_cast<Stream*>(given);
  bool to_host = kind == cudaMemcpyDeviceToHost, from_host = kind == cudaMemcpyHostToDevice;
  if (!size) return broken;
  if ((!to_host && !shown(to, size)) || (!from_host && !shown(from, size)) || (to_host && shown(to, 1)) ||
      (from_host && shown(from, 1)))
    return cudaErrorInvalidValue;
  if (from_host || to_host) {
    if (capturing && stream == capturing) return refused(cudaErrorStreamCaptureUnsupported, "a copy of the host's");
    ++counts[from_host ? 4 : 5];
  }
  if (from_host) {
    auto* bytes = static_cast<const char*>(from);
    std::vector<char> staged(bytes, bytes + size);
    return put(stream, "cudaMemcpyAsync", [=] {
      if (char* target = shown(to, size)) memcpy(target, staged.data(), size);
      else broken = cudaErrorIllegalAddress;
    });
  }
  if (!to_host) return put(stream, "cudaMemcpyAsync", [=] { copy_now(to, from, size); });
  if (capturing) return refused(cudaErrorStreamCaptureImplicit, "cudaMemcpyAsync");
  if (finished() == cudaSuccess) memcpy(to, shown(from, size), size);
  return broken;
}
cudaError_t cudaMemcpyPeerAsync(void*, int, const void*, int, size_t, cudaStream_t) { return cudaErrorInvalidDevice; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  UNSAFE("cudaStreamCreate");
  auto* made = new Stream;
  made->blocking = flags != cudaStreamNonBlocking;
  return *stream = reinterpret_cast<cudaStream_t>(made), broken;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return finished(), delete reinterpret_cast<Stream*>(stream), broken; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  if (capturing) return refused(cudaErrorStreamCaptureImplicit, "cudaStreamSynchronize");
  return finished();
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || capturing) return cudaErrorStreamCaptureUnsupported;
  capturing = reinterpret_cast<Stream*>(stream), spoiled = false, ++counts[2];
  return broken;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!capturing || reinterpret_cast<Stream*>(stream) != capturing) return cudaErrorIllegalState;
  *graph = spoiled ? nullptr : reinterpret_cast<cudaGraph_t>(new std::vector<Work>(std::move(capturing->captured)));
  capturing = nullptr;
  return spoiled ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (!graph) return cudaErrorInvalidValue;
  *exec = reinterpret_cast<cudaGraphExec_t>(new std::vector<Work>(*reinterpret_cast<std::vector<Work>*>(graph)));
  return broken;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ++counts[1];
  for (auto& work : *reinterpret_cast<std::vector<Work>*>(exec))
    if (auto error = put(reinterpret_cast<Stream*>(stream), "cudaGraphLaunch", work)) return error;
  return broken;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete reinterpret_cast<std::vector<Work>*>(graph), cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  finished();
  return delete reinterpret_cast<std::vector<Work>*>(exec), cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = nullptr, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return broken; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaStreamSynchronize(nullptr); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1, broken; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return broken; }
cudaError_t cudaGetLastError() { return broken; }
cudaError_t cudaPeekAtLastError() { return broken; }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
         : error == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress"
                                            : "cudaError";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory"
         : error == cudaErrorIllegalAddress ? "an illegal memory access was encountered"
                                            : "refused";
}

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = int(setting("PLAYED_CUDA_VERSION", 13000)), CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int size, CUdevice) { return snprintf(name, size, "played GPU"), CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char** text) {
  return *text = cudaGetErrorName(static_cast<cudaError_t>(error)), CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  return *text = cudaGetErrorString(static_cast<cudaError_t>(error)), CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (capturing) return CUresult(refused(cudaErrorStreamCaptureUnsupported, "cuModuleLoadData"));
  auto* head = static_cast<const Elf64_Ehdr*>(image);
  if (memcmp(head->e_ident, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
  char path[] = "/tmp/played-cuda-XXXXXX";
  int file = mkstemp(path);
  size_t size = head->e_shoff + size_t{head->e_shnum} * head->e_shentsize;
  if (file < 0 || write(file, image, size) != ssize_t(size)) abort();
  close(file);
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), CUDA_ERROR_INVALID_IMAGE;
  *module = reinterpret_cast<CUmodule>(new Module{library, {}});
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return finished(), delete reinterpret_cast<Module*>(module), CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule given, const char* name) {
  auto* module = reinterpret_cast<Module*>(given);
  auto find = [&](const char* part) { return dlsym(module->library, (std::string(name) + part).c_str()); };
  void* run = find("__run");
  if (!run) return CUDA_ERROR_NOT_FOUND;
  Kernel kernel{name, static_cast<const char*>(find("__kinds")), *static_cast<unsigned*>(find("__bound")),
                reinterpret_cast<void (*)(void**, dim3, dim3)>(run)};
  *function = reinterpret_cast<CUfunction>(&(module->kernels[name] = kernel));
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** given, void**) {
  Kernel kernel = *reinterpret_cast<Kernel*>(function);
  dim3 blocks(config->gridDimX, config->gridDimY, config->gridDimZ);
  dim3 threads(config->blockDimX, config->blockDimY, config->blockDimZ);
  size_t each = size_t{threads.x} * threads.y * threads.z;
  if (!each || each > 1024 || threads.z > 64 || !(size_t{blocks.x} * blocks.y * blocks.z) || blocks.x > 0x7fffffff ||
      blocks.y > 65535 || blocks.z > 65535 || config->sharedMemBytes > 227 << 10)
    return CUDA_ERROR_INVALID_VALUE;
  if (each > kernel.bound) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  std::vector<uint64_t> values;
  for (size_t i = 0; i < kernel.kinds.size(); ++i) {
    values.push_back(0);
    memcpy(&values[i], given[i], kernel.kinds[i] == '4' ? 4 : 8);
  }
  ++counts[0];
  return CUresult(put(reinterpret_cast<Stream*>(config->hStream), "a launch", [=] {
    std::vector<uint64_t> held = values;
    std::vector<void*> pointers;
    for (size_t i = 0; i < held.size(); ++i) {
      if (kernel.kinds[i] == 'p') held[i] = uint64_t(shown(reinterpret_cast<void*>(held[i]), 1));
      if (kernel.kinds[i] == 'p' && !held[i]) {
        fprintf(stderr, "played CUDA: argument %zu of %s is no memory of the device\n", i, kernel.name.c_str());
        broken = cudaErrorIllegalAddress;
        return;
      }
      pointers.push_back(&held[i]);
    }
    kernel.run(pointers.data(), blocks, threads);
    for (size_t i = 0; i < held.size(); ++i)
      if (kernel.kinds[i] == 'p' && !kept(reinterpret_cast<void*>(values[i]))) {
        fprintf(stderr, "played CUDA: %s writes behind its argument %zu\n", kernel.name.c_str(), i);
        broken = cudaErrorIllegalAddress;
      }
  }));
}
}
