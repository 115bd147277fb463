// Machine code for one instance: from the cache on disk, else compiled by NVRTC.
#pragma once

#include <string>

#include "plan.h"

namespace jaxrnn::cuda {

struct Compiled {
  std::string code;  // a cubin
  int stack;         // bytes of local memory a thread, where registers did not suffice
};

// Where to look for NVRTC: paths of shared libraries, separated by colons, the best first.
void set_nvrtc(const std::string& paths);

// Compiles a problem's instance, with one kernel, `jaxrnn_kernel`, for an architecture ("sm_90a"). Shrinks
// `form` until registers suffice. `most_version`: the newest version of CUDA that the driver takes, as in
// cuDriverGetVersion; 0: any. Compiled code is kept from one process to the next: see cache.h.
Compiled compile_form(const Problem& problem, Form* form, const std::string& arch, int most_version);

}  // namespace jaxrnn::cuda
