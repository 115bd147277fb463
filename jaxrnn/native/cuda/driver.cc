#include "driver.h"

#include <dlfcn.h>

namespace jaxrnn::cuda {
namespace {

template <class Function>
void find(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr)
    throw std::runtime_error(std::string("the NVIDIA driver is too old (it has no ") + name +
                             "); install one for CUDA 12 or newer.");
}

Driver open() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) throw std::runtime_error("the NVIDIA driver (libcuda.so.1) was not found.");
  Driver d;
#define FIND(name) find(library, d.name, #name)
#define FIND_AS(name, symbol) find(library, d.name, symbol)
  FIND(cuDriverGetVersion);
  FIND(cuGetErrorName);
  FIND(cuCtxGetCurrent);
  FIND(cuCtxGetDevice);
  FIND_AS(cuCtxPushCurrent, "cuCtxPushCurrent_v2");
  FIND_AS(cuCtxPopCurrent, "cuCtxPopCurrent_v2");
  FIND(cuDeviceGetAttribute);
  FIND(cuStreamGetCtx);
  FIND(cuThreadExchangeStreamCaptureMode);
  FIND(cuModuleLoadData);
  FIND(cuModuleGetFunction);
  FIND(cuFuncSetAttribute);
  FIND(cuOccupancyMaxActiveBlocksPerMultiprocessor);
  FIND(cuOccupancyMaxActiveClusters);
  FIND(cuMemHostAlloc);
  FIND_AS(cuMemHostGetDevicePointer, "cuMemHostGetDevicePointer_v2");
  FIND(cuMemsetD32Async);
  FIND(cuLaunchKernelEx);
#undef FIND
#undef FIND_AS
  return d;
}

}  // namespace

void Driver::check(Result result, const char* function) const {
  if (result == 0) return;
  const char* name = nullptr;
  cuGetErrorName(result, &name);
  throw std::runtime_error(std::string(function) + " failed with " +
                           (name ? name : std::to_string(result).c_str()) + ".");
}

const Driver& driver() {
  static const Driver opened = open();
  return opened;
}

}  // namespace jaxrnn::cuda
