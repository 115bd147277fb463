// Which instance of the kernels runs a problem on a device, and how it is launched.
#pragma once

#include <optional>
#include <string>

namespace jaxrnn::cuda {

struct Problem {
  int cell, precision, hidden;  // as in arguments.cuh; hidden: padded, see `jaxrnn.native.cuda.padded`
  int rows;
  bool adjoint;
  bool ragged;                  // a step of a row may continue another one than the step before
};

struct Device {
  int sms;          // streaming multiprocessors
  int smem;         // bytes of shared memory that a CTA may have
  bool clusters;    // compute capability 9.0 or more
};

// The template arguments of one instance; form.cuh says what they mean.
struct Form {
  int unit_tiles, row_tiles, warps, k_split, ctas_per_sm;
  int chunk;
  int held = 0;  // tiles whose weights are in registers; 0: all

  int threads() const { return 32 * warps; }
  // One CTA for each row, see alone.cuh. The digits of such a form are 811, or 812 for two CTAs an SM.
  bool is_alone() const { return unit_tiles == 0; }
};

struct Plan {
  Form form;
  int ctas, smem;            // of one launch
  int group_rows, sub_tiles;
  int launch_rows;           // rows that one launch takes; a larger batch is several launches
};

// Empty where no instance fits: too many units for the device's shared memory, registers or SMs.
// `wanted` forces an instance: the digits shared, unit_tiles, row_tiles, warps, k_split, ctas_per_sm; 0: choose.
// `shared`: 1 if some of the weights lie in shared memory.
std::optional<Plan> choose(const Problem& problem, const Device& device, int wanted = 0);

// The same instance where only `ctas` CTAs fit on the device at once.
std::optional<Plan> lay(const Problem& problem, const Form& form, int ctas, int smem);

// Takes less registers: a smaller chunk. False if there is none.
bool shrink(const Problem& problem, Form* form);

// "forward<Form<2,0,512,1,1,8,2,1,4,false,false>>", "forward_alone<AloneForm<3,1,128,false,false>>"
std::string instance(const Problem& problem, const Form& form);

}  // namespace jaxrnn::cuda
