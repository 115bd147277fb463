// XLA foreign functions of the kernels.
#include <xla/ffi/api/ffi.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

#include "team.h"

namespace jaxrnn {
namespace {

namespace ffi = xla::ffi;

const Build& build_named(int32_t index) {
  static const std::vector<const Build*> found = builds();
  return *found[size_t(index)];
}

Pool pool_of(ffi::ThreadPool& threads) {
  const int64_t n = threads.num_threads();
  return {n < 1 ? 1 : int(n),
          [&](std::function<void()> task) { threads.Schedule(std::move(task)); }};
}

// Absent operands are passed as arrays without elements.
template <class T>
T* data(const ffi::AnyBuffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : static_cast<T*>(buffer.untyped_data());
}

// Operands and results that only calls with resets have.
template <class T>
T* given(const ffi::RemainingArgs& operands, size_t index) {
  return index < operands.size() ? data<T>(*operands.get<ffi::AnyBuffer>(index)) : nullptr;
}

template <class T>
T* given(const ffi::RemainingRets& results, size_t index) {
  return index < results.size() ? data<T>(**results.get<ffi::AnyBuffer>(index)) : nullptr;
}

// Allocations above malloc's mmap threshold (32 MiB) are mapped anew for every call, and faulting
// in their pages can take a quarter of the time. Huge pages avoid most of these faults. The pages
// at both ends may be shared with neighbouring arrays. Systems without huge pages ignore the
// advice.
void want_huge_pages(const ffi::AnyBuffer& buffer) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(2) << 20;
  const auto begin = reinterpret_cast<uintptr_t>(buffer.untyped_data());
  const uintptr_t from = begin / page * page;
  const uintptr_t to = (begin + buffer.size_bytes() + page - 1) / page * page;
  if (buffer.size_bytes() >= page / 2)
    madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)buffer;
#endif
}

template <class F>
ffi::Error guarded(F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("jaxrnn's kernel failed: ") + error.what());
  }
  return ffi::Error::Success();
}

template <class F>
ffi::Error by_type(ffi::DataType type, F&& f) {
  if (type == ffi::DataType::F32) return guarded([&] { f(float()); });
  if (type == ffi::DataType::F64) return guarded([&] { f(double()); });
  return ffi::Error::InvalidArgument("jaxrnn's kernel takes float32 and float64.");
}

// An absent w_hr has one axis.
Shape shape_of(const ffi::AnyBuffer& x, const ffi::AnyBuffer& h0, const ffi::AnyBuffer& w_hr,
               bool reverse) {
  const auto steps = x.dimensions();
  const int64_t outputs = h0.dimensions()[1];
  const bool projects = w_hr.dimensions().size() == 2;
  return {steps[0], steps[1],
          steps[2], projects ? w_hr.dimensions()[1] : outputs,
          reverse,  projects ? outputs : 0};
}

using Out = ffi::Result<ffi::AnyBuffer>;
using In = ffi::AnyBuffer;

ffi::Error forward(ffi::ThreadPool threads, int32_t cell, int32_t build, bool reverse, bool narrow,
                   In x, In w_ih, In w_hh, In b_ih, In b_hh, In w_hr, In h0, In c0, In mask,
                   ffi::RemainingArgs initial, Out ys, Out h, Out c, Out saved, Out cs) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    Forward<T> call{CellKind(cell),       shape_of(x, h0, w_hr, reverse),
                    data<T>(x),           data<T>(w_ih),
                    data<T>(w_hh),        data<T>(b_ih),
                    data<T>(b_hh),        data<T>(h0),
                    data<T>(c0),          data<uint8_t>(mask),
                    data<T>(*ys),         data<T>(*h),
                    data<T>(*c),          data<T>(*saved),
                    data<T>(*cs),         given<T>(initial, 0),
                    given<T>(initial, 1), data<T>(w_hr)};
    call.narrow = narrow;
    for (Out* result : {&ys, &saved, &cs}) want_huge_pages(**result);
    run(build_named(build), call, pool_of(threads));
  });
}

ffi::Error adjoint(ffi::ThreadPool threads, int32_t cell, int32_t build, bool reverse, bool narrow,
                   In x, In w_ih, In w_hh, In w_hr, In h0, In c0, In mask, In ys, In cs, In,
                   In d_ys, In d_h, In d_c, ffi::RemainingArgs initial, Out gates, Out m, Out dh,
                   Out dx, Out dw_ih, Out dw_hh, Out db_ih, Out db_hh, Out dw_hr, Out dh0, Out dc0,
                   ffi::RemainingRets d_initial) {
  return by_type(x.element_type(), [&](auto zero) {
    using T = decltype(zero);
    Adjoint<T> call{CellKind(cell),
                    shape_of(x, h0, w_hr, reverse),
                    data<T>(x),
                    data<T>(w_ih),
                    data<T>(w_hh),
                    data<T>(h0),
                    data<T>(c0),
                    data<uint8_t>(mask),
                    data<T>(ys),
                    data<T>(cs),
                    data<T>(d_ys),
                    data<T>(d_h),
                    data<T>(d_c),
                    data<T>(*gates),
                    data<T>(*dx),
                    data<T>(*dw_ih),
                    data<T>(*dw_hh),
                    data<T>(*db_ih),
                    data<T>(*db_hh),
                    data<T>(*dh0),
                    data<T>(*dc0),
                    given<T>(initial, 0),
                    given<T>(initial, 1),
                    given<T>(d_initial, 0),
                    given<T>(d_initial, 1),
                    data<T>(*dh),
                    data<T>(*m),
                    data<T>(w_hr),
                    data<T>(*dw_hr)};
    call.narrow = narrow;
    want_huge_pages(*dx);
    run(build_named(build), call, pool_of(threads));
  });
}

ffi::Error round(ffi::ThreadPool threads, int32_t build, In x, Out y) {
  if (x.element_type() != ffi::DataType::F32 || y->element_type() != ffi::DataType::BF16)
    return ffi::Error::InvalidArgument("jaxrnn's kernel rounds float32 to bfloat16.");
  return guarded([&] {
    want_huge_pages(*y);
    const Rounding call{int64_t(x.element_count()), data<float>(x), data<uint16_t>(*y)};
    run(build_named(build), call, pool_of(threads));
  });
}

// Packed weights have one axis, since their layout is this build's own.
ffi::Error pack(int32_t build, bool transposed, In w, Out panels) {
  return by_type(w.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = w.dimensions()[0], columns = w.dimensions()[1];
    run(build_named(build), Packing<T>{transposed ? columns : rows, transposed ? rows : columns,
                                       transposed, data<T>(w), data<T>(*panels)});
  });
}

bool of_other_type(const ffi::AnyBuffer& a, const ffi::AnyBuffer& like) {
  return a.element_type() != like.element_type();
}

// The bias and x (T, rows, inputs), of which step t is multiplied, may be empty.
ffi::Error matmul(ffi::ThreadPool threads, int32_t build, In a, In panels, In bias, In x,
                  ffi::Buffer<ffi::S32> t, In x_panels, Out y) {
  if (of_other_type(panels, a) || of_other_type(bias, a) || of_other_type(x, a) ||
      of_other_type(x_panels, a))
    return ffi::Error::InvalidArgument("jaxrnn's kernel multiplies arrays of one type.");
  return by_type(a.element_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = a.dimensions()[0], columns = y->dimensions()[1];
    const T* now = data<T>(x);
    const int64_t inputs = now ? x.dimensions()[2] : 0;
    if (now) now += int64_t(*t.typed_data()) * rows * inputs;
    want_huge_pages(*y);
    run(build_named(build),
        Matmul<T>{rows, a.dimensions()[1], columns, data<T>(a), data<T>(panels), data<T>(bias),
                  data<T>(*y), inputs, now, data<T>(x_panels)},
        pool_of(threads));
  });
}

ffi::Error outer(ffi::ThreadPool threads, int32_t build, In a, In b, Out dw, Out db) {
  if (of_other_type(b, a))
    return ffi::Error::InvalidArgument("jaxrnn's kernel multiplies arrays of one type.");
  return by_type(a.element_type(), [&](auto zero) {
    using T = decltype(zero);
    run(build_named(build),
        OuterProducts<T>{a.dimensions()[0], a.dimensions()[1], b.dimensions()[1], data<T>(a),
                         data<T>(b), data<T>(*dw), data<T>(*db)},
        pool_of(threads));
  });
}

// An array without values, for a loop that writes all of it.
ffi::Error empty(int32_t, Out result) {
  want_huge_pages(*result);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxrnn

#if defined(_WIN32)
#define JAXRNN_EXPORT extern "C" __declspec(dllexport)
#else
#define JAXRNN_EXPORT extern "C" __attribute__((visibility("default")))
#endif
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_forward(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_adjoint(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_round(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_pack(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_matmul(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_outer(XLA_FFI_CallFrame*);
JAXRNN_EXPORT XLA_FFI_Error* jaxrnn_empty(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_forward, jaxrnn::forward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Attr<int32_t>("cell")
                                  .Attr<int32_t>("build")
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("narrow")
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_adjoint, jaxrnn::adjoint,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Attr<int32_t>("cell")
                                  .Attr<int32_t>("build")
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("narrow")
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_round, jaxrnn::round,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Attr<int32_t>("build")
                                  .Arg<jaxrnn::In>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_pack, jaxrnn::pack,
                              xla::ffi::Ffi::Bind()
                                  .Attr<int32_t>("build")
                                  .Attr<bool>("transposed")
                                  .Arg<jaxrnn::In>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_matmul, jaxrnn::matmul,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Attr<int32_t>("build")
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<jaxrnn::In>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_outer, jaxrnn::outer,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Attr<int32_t>("build")
                                  .Arg<jaxrnn::In>()
                                  .Arg<jaxrnn::In>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxrnn_empty, jaxrnn::empty,
    xla::ffi::Ffi::Bind().Attr<int32_t>("number").Ret<xla::ffi::AnyBuffer>());

namespace {

std::string joined(bool (*wanted)(const jaxrnn::Build&)) {
  std::string names;
  for (const jaxrnn::Build* build : jaxrnn::builds())
    if (wanted(*build)) names += (names.empty() ? "" : ",") + std::string(build->name);
  return names;
}

}  // namespace

// Instruction sets of this machine, fastest first, separated by commas.
JAXRNN_EXPORT const char* jaxrnn_builds() {
  static const std::string names = joined([](const jaxrnn::Build&) { return true; });
  return names.c_str();
}

// Those with products in bfloat16.
JAXRNN_EXPORT const char* jaxrnn_narrow_builds() {
  static const std::string names =
      joined([](const jaxrnn::Build& build) { return jaxrnn::narrow_kernels(build) != nullptr; });
  return names.c_str();
}
