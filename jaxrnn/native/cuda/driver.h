// CUDA's driver, opened at run time: building needs neither its headers nor its library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace jaxrnn::cuda {

typedef int Result;
typedef void* Handle;  // a context, a module, a function, a stream
typedef uint64_t Pointer;

struct LaunchAttribute {  // CUlaunchAttribute
  int id;
  char padding[4];
  union {
    char all[64];
    int cooperative;
    struct {
      unsigned x, y, z;
    } cluster;
  } value;
};
static_assert(sizeof(LaunchAttribute) == 72, "CUlaunchAttribute");

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, smem;
  Handle stream;
  LaunchAttribute* attributes;
  unsigned count;
};

// The values of cuda.h's enumerations that are used here.
enum : int {
  LAUNCH_COOPERATIVE = 2,
  LAUNCH_CLUSTER = 4,
  DEVICE_SMS = 16,
  DEVICE_MAJOR = 75,
  DEVICE_MINOR = 76,
  DEVICE_SMEM = 97,
  FUNCTION_SMEM = 8,
  CAPTURE_RELAXED = 2,
  HOST_PORTABLE_AND_MAPPED = 1 | 2,
  ERROR_INVALID_VALUE = 1,
  ERROR_NOT_SUPPORTED = 801,
};

struct Driver {
  Result (*cuDriverGetVersion)(int*);
  Result (*cuGetErrorName)(Result, const char**);
  Result (*cuCtxGetCurrent)(Handle*);
  Result (*cuCtxGetDevice)(int*);
  Result (*cuCtxPushCurrent)(Handle);
  Result (*cuCtxPopCurrent)(Handle*);
  Result (*cuDeviceGetAttribute)(int*, int, int);
  Result (*cuStreamGetCtx)(Handle, Handle*);
  Result (*cuThreadExchangeStreamCaptureMode)(int*);
  Result (*cuModuleLoadData)(Handle*, const void*);
  Result (*cuModuleGetFunction)(Handle*, Handle, const char*);
  Result (*cuFuncSetAttribute)(Handle, int, int);
  Result (*cuOccupancyMaxActiveBlocksPerMultiprocessor)(int*, Handle, int, size_t);
  Result (*cuOccupancyMaxActiveClusters)(int*, Handle, const LaunchConfig*);
  Result (*cuMemHostAlloc)(void**, size_t, unsigned);
  Result (*cuMemHostGetDevicePointer)(Pointer*, void*, unsigned);
  Result (*cuMemsetD32Async)(Pointer, unsigned, size_t, Handle);
  Result (*cuLaunchKernelEx)(const LaunchConfig*, Handle, void**, void**);

  // Raises a std::runtime_error that names the function and CUDA's error.
  void check(Result result, const char* function) const;
};

// Raises a std::runtime_error if there is no driver, or one older than CUDA 11.8.
const Driver& driver();

#define JAXRNN_CUDA(name, ...) driver().check(driver().name(__VA_ARGS__), #name)

}  // namespace jaxrnn::cuda
