// CPU kernel for one instruction set.
//
// Built once for each set, with JAXRNN_BUILD (its name), JAXRNN_VECTOR_BYTES and JAXRNN_ROWS. Only
// this file includes the -inl.h headers.
#include "kernel.h"

#include "adjoint-inl.h"
#include "direct-inl.h"
#include "forward-inl.h"
#include "matmul-inl.h"

namespace {

using namespace jaxrnn;

template <class T>
void forward(const Forward<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
             int member) {
  with_cell<T>(f.cell, f.shape.hidden, [&](auto cell) {
    run_forward<T, T, decltype(cell)>(f, plan, schedule, work, member);
  });
}

template <class T>
void direct(const Forward<T>& f, Workspace& work, int member, int members) {
  with_adjoint_cell(f.cell,
                    [&](auto cell) { run_direct<T, decltype(cell)>(f, work, member, members); });
}

template <class T>
void adjoint(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
             int member) {
  with_adjoint_cell(f.cell, [&](auto cell) {
    run_adjoint<T, T, decltype(cell)>(f, plan, schedule, work, member);
  });
}

template <class T>
constexpr Kernels<T> kTable = {forward_memory<T>, forward<T>,      direct<T>,     adjoint_memory<T>,
                               adjoint<T>,        pack_weights<T>, run_matmul<T>, run_outer<T>};

}  // namespace

namespace jaxrnn {
extern const Build JAXRNN_SYMBOL(JAXRNN_BUILD);
const Build JAXRNN_SYMBOL(JAXRNN_BUILD) = {JAXRNN_NAME(JAXRNN_BUILD), kRows, kTable<float>,
                                           kTable<double>};
}  // namespace jaxrnn
