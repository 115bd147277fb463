// The kernels on the device of the current CUDA context.
#pragma once

#include "arguments.cuh"
#include "driver.h"
#include "plan.h"

namespace jaxrnn::cuda {

// Loads what the problem needs, so that `launch` need not. Raises a std::runtime_error also if an
// earlier launch on this device failed while it ran.
void prepare(const Problem& problem, int wanted);

// Enqueues the recurrence. `shared_bytes`: of ys or dg, which is filled with poison first.
void launch(const Problem& problem, int wanted, Arguments arguments, size_t shared_bytes, Handle stream);

// For tests: the CTA of this number never writes in the next launch.
void mute_once(int cta);

}  // namespace jaxrnn::cuda
