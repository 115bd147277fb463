#include "launch.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "compiler.h"

namespace jaxrnn::cuda {
namespace {

// At about a microsecond a poll, some seconds.
constexpr int PATIENCE = 4'000'000;

std::atomic<int> muted{-1};

// Loading code and allocating are allowed while it lives, even if this thread captures a graph.
class Relaxed {
 public:
  Relaxed() { JAXRNN_CUDA(cuThreadExchangeStreamCaptureMode, &mode_); }
  ~Relaxed() { driver().cuThreadExchangeStreamCaptureMode(&mode_); }

 private:
  int mode_ = CAPTURE_RELAXED;
};

struct Loaded {
  Plan plan;
  Handle function;
};

// One CUDA context, which belongs to one device.
class Context {
 public:
  Context() {
    const Relaxed relaxed;
    int device = 0;
    JAXRNN_CUDA(cuCtxGetDevice, &device);
    const auto attribute = [&](int which) {
      int value = 0;
      JAXRNN_CUDA(cuDeviceGetAttribute, &value, which, device);
      return value;
    };
    const int major = attribute(DEVICE_MAJOR), minor = attribute(DEVICE_MINOR);
    if (major < 8)
      throw std::runtime_error("the GPU has compute capability " + std::to_string(major) + "." +
                               std::to_string(minor) + "; 8.0 or more is needed.");
    arch_ = "sm_" + std::to_string(major) + std::to_string(minor) + (major == 9 ? "a" : "");
    device_ = {attribute(DEVICE_SMS), attribute(DEVICE_SMEM), major >= 9};
    JAXRNN_CUDA(cuDriverGetVersion, &driver_version_);
    JAXRNN_CUDA(cuMemHostAlloc, reinterpret_cast<void**>(&failed_), sizeof(unsigned), HOST_PORTABLE_AND_MAPPED);
    *failed_ = 0;
    JAXRNN_CUDA(cuMemHostGetDevicePointer, &failed_on_device_, failed_, 0);
  }

  void raise_failure() {
    if (!__atomic_exchange_n(failed_, 0u, __ATOMIC_RELAXED)) return;
    throw std::runtime_error(
        "in an earlier call one part of the GPU waited too long for another; the results of that call are NaN. "
        "This call has not run; the next one will.");
  }

  Loaded load(const Problem& p, int wanted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Key key{p.cell, p.precision, p.hidden, p.rows, p.adjoint, p.ragged, wanted};
    const auto known = loaded_.find(key);
    if (known != loaded_.end()) return known->second;

    const Relaxed relaxed;
    std::optional<Plan> plan = choose(p, device_, wanted);
    if (plan) {
      const Handle function = function_of(p, &plan->form);
      plan = lay(p, plan->form, resident_ctas(*plan, function), device_.smem / plan->form.ctas_per_sm);
      if (plan) return loaded_[key] = {*plan, function};
    }
    throw std::runtime_error("the kernel does not fit this GPU, with " + std::to_string(device_.sms) +
                             " multiprocessors, at " + std::to_string(p.hidden) + " hidden units.");
  }

  unsigned* failed() const { return reinterpret_cast<unsigned*>(failed_on_device_); }

 private:
  typedef std::tuple<int, int, int, int, bool, bool, int> Key;

  Handle function_of(const Problem& p, Form* form) {
    const std::string name = instance(p, *form) + std::to_string(form->ctas_per_sm);
    if (const auto known = functions_.find(name); known != functions_.end()) {
      *form = known->second.plan.form;
      return known->second.function;
    }
    const Compiled compiled = compile_form(p, form, arch_, driver_version_);
    Handle module = nullptr, function = nullptr;
    JAXRNN_CUDA(cuModuleLoadData, &module, compiled.code.data());
    JAXRNN_CUDA(cuModuleGetFunction, &function, module, "jaxrnn_kernel");
    JAXRNN_CUDA(cuFuncSetAttribute, function, FUNCTION_SMEM, device_.smem);
    functions_[name] = {{*form, 0, 0, 0, 0, 0}, function};
    return function;
  }

  // Readers wait for writers, so all CTAs of a launch must be on the device at once.
  int resident_ctas(const Plan& plan, Handle function) const {
    int count = 0;
    if (plan.form.k_split == 1) {
      JAXRNN_CUDA(cuOccupancyMaxActiveBlocksPerMultiprocessor, &count, function, plan.form.threads(),
                  size_t(plan.smem));
      return std::min(count, plan.form.ctas_per_sm) * device_.sms;
    }
    LaunchAttribute attribute = {};
    const LaunchConfig config = config_of(plan, nullptr, &attribute);
    JAXRNN_CUDA(cuOccupancyMaxActiveClusters, &count, function, &config);
    return count * plan.form.k_split;
  }

 public:
  static LaunchConfig config_of(const Plan& plan, Handle stream, LaunchAttribute* attributes) {
    unsigned count = 0;
    if (plan.form.k_split > 1) {
      attributes[count].id = LAUNCH_CLUSTER;
      attributes[count++].value.cluster = {unsigned(plan.form.k_split), 1, 1};
    }
    return {unsigned(plan.ctas), 1, 1, unsigned(plan.form.threads()), 1, 1, unsigned(plan.smem), stream, attributes,
            count};
  }

 private:
  std::mutex mutex_;
  std::string arch_;
  Device device_{};
  int driver_version_ = 0;
  unsigned* failed_ = nullptr;
  Pointer failed_on_device_ = 0;
  std::map<Key, Loaded> loaded_;
  std::map<std::string, Loaded> functions_;
};

// Contexts live as long as the process, as do the modules in them.
Context& current() {
  static std::mutex mutex;
  static auto* contexts = new std::map<Handle, std::unique_ptr<Context>>();
  Handle handle = nullptr;
  JAXRNN_CUDA(cuCtxGetCurrent, &handle);
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Context>& context = (*contexts)[handle];
  if (context == nullptr) context = std::make_unique<Context>();
  return *context;
}

class Pushed {
 public:
  explicit Pushed(Handle stream) {
    Handle context = nullptr;
    JAXRNN_CUDA(cuStreamGetCtx, stream, &context);
    JAXRNN_CUDA(cuCtxPushCurrent, context);
  }
  ~Pushed() {
    Handle context = nullptr;
    driver().cuCtxPopCurrent(&context);
  }
};

void launch_once(const Plan& plan, Handle function, Arguments& arguments, Handle stream) {
  LaunchAttribute attributes[2] = {};
  LaunchConfig config = Context::config_of(plan, stream, attributes);
  // A cooperative launch is refused unless all CTAs fit at once.
  if (!plan.form.is_alone()) {
    attributes[config.count].id = LAUNCH_COOPERATIVE;
    attributes[config.count].value.cooperative = 1;
    config.count++;
  }
  void* parameters[] = {&arguments};
  Result result = driver().cuLaunchKernelEx(&config, function, parameters, nullptr);
  // Some drivers refuse it together with clusters; these were counted by `resident_ctas`.
  if (plan.form.k_split > 1 && (result == ERROR_INVALID_VALUE || result == ERROR_NOT_SUPPORTED)) {
    config.count--;
    result = driver().cuLaunchKernelEx(&config, function, parameters, nullptr);
  }
  driver().check(result, "cuLaunchKernelEx");
}

}  // namespace

void prepare(const Problem& problem, int wanted) {
  Handle context = nullptr;
  JAXRNN_CUDA(cuCtxGetCurrent, &context);
  if (context == nullptr) return;  // `launch` has the stream's
  Context& here = current();
  here.raise_failure();
  here.load(problem, wanted);
}

void launch(const Problem& problem, int wanted, Arguments arguments, size_t shared_bytes, Handle stream) {
  const Pushed pushed(stream);
  Context& here = current();
  here.raise_failure();
  const Loaded loaded = here.load(problem, wanted);
  const Plan& plan = loaded.plan;
  arguments.failed = here.failed();
  arguments.patience = PATIENCE;
  arguments.mute = muted.exchange(-1);
  arguments.group_rows = plan.group_rows;
  arguments.sub_tiles = plan.sub_tiles;
  const auto shared = reinterpret_cast<Pointer>(problem.adjoint ? arguments.dg : arguments.ys);
  if (!plan.form.is_alone()) JAXRNN_CUDA(cuMemsetD32Async, shared, 0xFFFFFFFFu, shared_bytes / 4, stream);
  for (int row = 0; row < arguments.batch; row += plan.launch_rows) {
    arguments.row_begin = row;
    arguments.row_end = std::min(arguments.batch, row + plan.launch_rows);
    launch_once(plan, loaded.function, arguments, stream);
  }
}

void mute_once(int cta) { muted = cta; }

}  // namespace jaxrnn::cuda
