// The CUDA kernels as XLA's foreign functions, and what Python asks of this library besides.
#include <xla/ffi/api/ffi.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "compiler.h"
#include "launch.h"

namespace jaxrnn::cuda {
namespace {

namespace ffi = xla::ffi;
typedef ffi::RemainingArgs Ins;
typedef ffi::RemainingRets Outs;

// Absent operands come as arrays without elements.
template <class T>
const T* in(const Ins& ins, size_t index) {
  const ffi::AnyBuffer buffer = *ins.get<ffi::AnyBuffer>(index);
  return buffer.element_count() == 0 ? nullptr : static_cast<const T*>(buffer.untyped_data());
}
template <class T>
T* out(const Outs& outs, size_t index) {
  ffi::Result<ffi::AnyBuffer> buffer = *outs.get<ffi::AnyBuffer>(index);
  return buffer->element_count() == 0 ? nullptr : static_cast<T*>(buffer->untyped_data());
}

template <class Body>
ffi::Error guarded(Body&& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("strategies.Native on CUDA: ") + error.what());
  }
  return ffi::Error::Success();
}

// `of_steps`: an array (T, B, ...).
Problem problem_of(int32_t cell, int32_t precision, bool adjoint, const ffi::AnyBuffer& h0,
                   const ffi::AnyBuffer& of_steps, Arguments* arguments) {
  const int batch = int(of_steps.dimensions()[1]), hidden = int(h0.dimensions()[1]);
  arguments->steps = int(of_steps.dimensions()[0]);
  arguments->batch = batch;
  arguments->initial_rows = int(h0.dimensions()[0]);
  return {cell, precision, hidden, batch, adjoint, arguments->previous != nullptr};
}

// gx, W_hh, b_hn, h0 in io, h0, c0, previous -> ys, h_last, c_last, gates, cs
struct ForwardCall {
  Problem problem;
  Arguments arguments = {};
  size_t shared_bytes;

  ForwardCall(int32_t cell, int32_t precision, bool reverse, const Ins& ins, const Outs& outs) {
    const ffi::AnyBuffer gx = *ins.get<ffi::AnyBuffer>(0), h0 = *ins.get<ffi::AnyBuffer>(3);
    Arguments& a = arguments;
    a.reverse = reverse;
    a.gx = in<void>(ins, 0);
    a.weights = in<void>(ins, 1);
    a.b_hn = in<float>(ins, 2);
    a.h0 = in<void>(ins, 3);
    a.h0_exact = in<float>(ins, 4);
    a.c0 = in<float>(ins, 5);
    a.previous = in<int>(ins, 6);
    a.ys = out<void>(outs, 0);
    a.h_last = out<float>(outs, 1);
    a.c_last = out<float>(outs, 2);
    a.gates = out<void>(outs, 3);
    a.cs = out<float>(outs, 4);
    problem = problem_of(cell, precision, false, h0, gx, &a);
    shared_bytes = (*outs.get<ffi::AnyBuffer>(0))->size_bytes();
  }
};

// W_hh transposed, h0, c0, previous, following, ys, gates, cs, d_ys, d_h_last, d_c_last
// -> dg, d_gx_n, d_h0, d_c0
struct AdjointCall {
  Problem problem;
  Arguments arguments = {};
  size_t shared_bytes;

  AdjointCall(int32_t cell, int32_t precision, bool reverse, const Ins& ins, const Outs& outs) {
    const ffi::AnyBuffer h0 = *ins.get<ffi::AnyBuffer>(1), ys = *ins.get<ffi::AnyBuffer>(5);
    Arguments& a = arguments;
    a.reverse = reverse;
    a.weights = in<void>(ins, 0);
    a.h0_exact = in<float>(ins, 1);
    a.c0 = in<float>(ins, 2);
    a.previous = in<int>(ins, 3);
    a.following = in<int>(ins, 4);
    a.ys = const_cast<void*>(in<void>(ins, 5));
    a.gates = const_cast<void*>(in<void>(ins, 6));
    if (a.gates == nullptr) a.gates = a.ys;  // one gate, which is the output
    a.cs = const_cast<float*>(in<float>(ins, 7));
    a.d_ys = in<void>(ins, 8);
    a.d_h_last = in<float>(ins, 9);
    a.d_c_last = in<float>(ins, 10);
    a.dg = out<void>(outs, 0);
    a.d_gx_n = out<void>(outs, 1);
    a.d_h0 = out<float>(outs, 2);
    a.d_c0 = out<float>(outs, 3);
    problem = problem_of(cell, precision, true, h0, ys, &a);
    shared_bytes = (*outs.get<ffi::AnyBuffer>(0))->size_bytes();
  }
};

// XLA prepares before it captures a graph: code is loaded here, and never during capture.
template <class Call>
ffi::Error initialize(int32_t cell, int32_t precision, bool reverse, int32_t form, Ins ins, Outs outs) {
  return guarded([&] { prepare(Call(cell, precision, reverse, ins, outs).problem, form); });
}

struct StreamTag;
template <class Call>
ffi::Error execute(StreamTag* stream, int32_t cell, int32_t precision, bool reverse, int32_t form, Ins ins,
                   Outs outs) {
  return guarded([&] {
    const Call call(cell, precision, reverse, ins, outs);
    launch(call.problem, form, call.arguments, call.shared_bytes, stream);
  });
}

#define JAXRNN_OPERANDS \
  Attr<int32_t>("cell").Attr<int32_t>("precision").Attr<bool>("reverse").Attr<int32_t>("form").RemainingArgs().RemainingRets()

}  // namespace
}  // namespace jaxrnn::cuda

#define JAXRNN_EXPORT extern "C" __attribute__((visibility("default")))
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_cuda_forward(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_cuda_adjoint(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_cuda_forward_initialize(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_cuda_adjoint_initialize(XLA_FFI_CallFrame*);

using namespace jaxrnn::cuda;

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cuda_forward_initialize, initialize<ForwardCall>,
                              xla::ffi::Ffi::BindInitialize().JAXRNN_OPERANDS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cuda_adjoint_initialize, initialize<AdjointCall>,
                              xla::ffi::Ffi::BindInitialize().JAXRNN_OPERANDS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cuda_forward, execute<ForwardCall>,
                              xla::ffi::Ffi::Bind().Ctx<xla::ffi::PlatformStream<StreamTag*>>().JAXRNN_OPERANDS,
                              {xla::ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_cuda_adjoint, execute<AdjointCall>,
                              xla::ffi::Ffi::Bind().Ctx<xla::ffi::PlatformStream<StreamTag*>>().JAXRNN_OPERANDS,
                              {xla::ffi::Traits::kCmdBufferCompatible});

JAXRNN_EXPORT void jaxrnn_cuda_nvrtc(const char* paths) { set_nvrtc(paths); }

static Problem problem_at(const int* n) { return {n[0], n[1], n[2], n[3], n[4] != 0, n[5] != 0}; }

JAXRNN_EXPORT void jaxrnn_cuda_mute(int cta) { mute_once(cta); }

// The plan for a device of so many SMs: form.cuh's numbers, then the launch's. 0 if there is none.
JAXRNN_EXPORT int jaxrnn_cuda_plan(const int* problem, int sms, int smem, int clusters, int form, int* plan) {
  const std::optional<Plan> p =
      choose(problem_at(problem), {sms, smem, clusters != 0}, form);
  if (!p) return 0;
  const int numbers[] = {p->form.unit_tiles, p->form.row_tiles, p->form.warps,  p->form.k_split,
                         p->form.ctas_per_sm, p->form.chunk,    p->form.held,    p->ctas,
                         p->smem,            p->group_rows,     p->sub_tiles,    p->launch_rows};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) plan[i] = numbers[i];
  return 1;
}

// Compiles the instance that `plan` begins with, for an architecture. Returns the bytes of local memory
// that a thread needs, or -1 with the reason in `error`.
JAXRNN_EXPORT int jaxrnn_cuda_compile(const int* problem, const int* plan, const char* arch, char* error, int size) {
  Form form{plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]};
  try {
    return compile_form(problem_at(problem), &form, arch, 0).stack;
  } catch (const std::exception& failure) {
    std::snprintf(error, size_t(size), "%s", failure.what());
    return -1;
  }
}
