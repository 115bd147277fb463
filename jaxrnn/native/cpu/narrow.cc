// CPU kernel with products in bfloat16, for one instruction set; see kernel.cc.
#include "adjoint-inl.h"
#include "forward-inl.h"

namespace {

using namespace jaxrnn;

void forward(const Forward<float>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
             int member) {
  with_cell<float>(f.cell, f.shape.hidden, [&](auto cell) {
    run_forward<float, Pair, decltype(cell)>(f, plan, schedule, work, member);
  });
}

void adjoint(const Adjoint<float>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
             int member) {
  with_adjoint_cell(f.cell, [&](auto cell) {
    run_adjoint<float, Pair, decltype(cell)>(f, plan, schedule, work, member);
  });
}

void round(const Rounding& call) {
  const int64_t even = call.n / 2 * 2;
  Pair last;
  narrow(reinterpret_cast<Pair*>(call.to), call.from, even);
  if (even == call.n) return;
  narrow(&last, call.from + even, 1);
  call.to[even] = uint16_t(last.bits);
}

}  // namespace

namespace jaxrnn {
extern const NarrowKernels JAXRNN_SYMBOL(JAXRNN_BUILD);
const NarrowKernels JAXRNN_SYMBOL(JAXRNN_BUILD) = {forward_memory<float, Pair>, forward,
                                                   adjoint_memory<float, Pair>, adjoint, round};
}  // namespace jaxrnn
