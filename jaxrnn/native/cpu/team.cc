#include "team.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <type_traits>

#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#endif

namespace jaxrnn {

void* shared_memory(Workspace& work, int slot) { return work.shared_[size_t(slot)].get(); }

void* private_memory(Workspace& work, int member, int64_t bytes) {
  auto& own = work.private_[size_t(member)];
  own.emplace_back(bytes);
  return own.back().get();
}

void wait_for_all(Workspace& work) { work.all_.wait(); }

void wait_for_group(Workspace& work) { work.group_.wait(); }

#if defined(_WIN32)
// clang-cl does not link the runtime of __builtin_cpu_supports. Every x86 processor on which
// Windows reports AVX-512F has DQ, BW and VL, and every one with AVX2 has FMA.
#define JAXRNN_HAS_AVX512 IsProcessorFeaturePresent(41)  // PF_AVX512F_INSTRUCTIONS_AVAILABLE
#define JAXRNN_HAS_AVX2 IsProcessorFeaturePresent(40)    // PF_AVX2_INSTRUCTIONS_AVAILABLE
#else
#define JAXRNN_HAS_AVX512                                                    \
  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && \
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
#define JAXRNN_HAS_AVX2 __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
#endif

// CMakeLists.txt defines a macro for each instruction set in the library.
extern const Build build_avx512, build_avx2, build_portable;
extern const NarrowKernels build_avx512bf16, build_portablebf16;

std::vector<const Build*> builds() {
  std::vector<const Build*> found;
#if defined(JAXRNN_WITH_avx512)
  if (JAXRNN_HAS_AVX512) found.push_back(&build_avx512);
#endif
#if defined(JAXRNN_WITH_avx2)
  if (JAXRNN_HAS_AVX2) found.push_back(&build_avx2);
#endif
#if defined(JAXRNN_WITH_portable)
  found.push_back(&build_portable);
#endif
  return found;
}

const NarrowKernels* narrow_kernels(const Build& build) {
#if defined(JAXRNN_WITH_avx512) && defined(JAXRNN_WITH_avx512bf16)
  if (&build == &build_avx512 && __builtin_cpu_supports("avx512bf16")) return &build_avx512bf16;
#endif
#if defined(JAXRNN_WITH_portable) && defined(JAXRNN_WITH_portablebf16)
  if (&build == &build_portable) return &build_portablebf16;
#endif
  (void)build;
  return nullptr;
}

namespace {

// Existing steps, the step before each of them, and the rows of each group.
struct Work {
  std::vector<int32_t> order, begin, previous, steps;

  Schedule schedule(const Shape& shape) const {
    const bool masked = !previous.empty();
    return {order.data(), begin.data(), masked ? previous.data() : nullptr,
            masked ? steps.data() : nullptr,
            masked ? int64_t(steps.size()) : shape.steps * shape.batch};
  }
};

Work plan_work(const Shape& shape, const uint8_t* mask, int count) {
  const int64_t batch = shape.batch;
  std::vector<int64_t> length(size_t(batch), shape.steps);
  Work work;
  if (mask) {
    std::fill(length.begin(), length.end(), 0);
    std::vector<int32_t> last(size_t(batch), kFromCarry);
    work.previous.assign(size_t(std::max<int64_t>(1, shape.steps * batch)), -1);
    for (int64_t i = 0; i < shape.steps; ++i)
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t at = shape.time(i) * batch + b;
        if (!mask[at]) continue;
        work.previous[size_t(at)] = mask[at] == kReset ? kFromInitial : last[size_t(b)];
        last[size_t(b)] = int32_t(at);
        ++length[size_t(b)];
        work.steps.push_back(int32_t(at));
      }
  }
  // Longest first, each to the group with the least work.
  std::vector<int32_t> longest(static_cast<size_t>(batch));
  std::iota(longest.begin(), longest.end(), 0);
  std::stable_sort(longest.begin(), longest.end(),
                   [&](int32_t a, int32_t b) { return length[size_t(a)] > length[size_t(b)]; });
  std::vector<std::vector<int32_t>> groups(static_cast<size_t>(count));
  std::vector<int64_t> load(size_t(count), 0);
  for (int32_t b : longest) {
    size_t best = 0;
    for (size_t g = 1; g < groups.size(); ++g)
      if (std::make_pair(load[g], groups[g].size()) <
          std::make_pair(load[best], groups[best].size()))
        best = g;
    groups[best].push_back(b);
    load[best] += length[size_t(b)];
  }
  work.begin.push_back(0);
  for (auto& group : groups) {
    std::sort(group.begin(), group.end());
    work.order.insert(work.order.end(), group.begin(), group.end());
    work.begin.push_back(int32_t(work.order.size()));
  }
  return work;
}

// Divide the rows if there are enough to fill the blocks of every thread, which needs no waiting.
// With few rows, divide the units instead, if a step is long enough to make the waiting worthwhile;
// the recurrent weights of one thread then fit its cache. One thread for each 32 kB of weights and
// row of a step, and for 16 units: more would wait longer than they save.
template <class T>
Plan choose_plan(const Build& build, CellKind cell, const Shape& shape, int wanted) {
  const int64_t weights =
      shape.hidden * (gates(cell) * shape.outputs() + shape.projected) * int64_t(sizeof(T));
  const bool many_rows = shape.batch >= 2 * build.rows * wanted;
  const bool can_split_rows = shape.batch >= wanted;
  const int64_t rows = std::max<int64_t>(1, shape.batch);
  const bool large = weights > (can_split_rows ? kSecondLevel : kFirstLevel);
  const int64_t useful =
      std::min((weights * rows + kFirstLevel - 1) / kFirstLevel, (shape.hidden + 15) / 16);
  if (!many_rows && large) return {1, int(std::min<int64_t>(wanted, useful))};
  return {int(std::min<int64_t>(wanted, rows)), 1};
}

double seconds_of_work(CellKind cell, const Shape& shape, int passes) {
  const double products = 2. * double(shape.hidden) *
                          double(gates(cell) * (shape.inputs + shape.outputs()) + shape.projected);
  return double(passes) * double(shape.steps * shape.batch) * products / 40e9;
}

// Threads for a call, and how long to wait for them.
struct Effort {
  int threads;
  std::chrono::microseconds patience;
};

// A tenth of the time that one thread would need, but at least so many microseconds.
std::chrono::microseconds patience(double work, int64_t least) {
  return std::chrono::microseconds(std::clamp<int64_t>(int64_t(work * 1e5), least, 2000));
}

// A call wakes all threads if it is long enough.
Effort effort_of_call(double work, const Pool& pool) {
  return {work < 60e-6 ? 1 : pool.threads, patience(work, 20)};
}

template <class T, class Call, class Memory, class Kernel>
void run_call(const Build& build, const Call& call, const Pool& pool, int passes, Memory memory,
              Kernel kernel) {
  const double work = seconds_of_work(call.cell, call.shape, passes);
  const Effort effort = effort_of_call(work, pool);
  Plan plan = choose_plan<T>(build, call.cell, call.shape, effort.threads);
  const Work rows = plan_work(call.shape, call.mask, plan.groups);
  const Schedule schedule = rows.schedule(call.shape);
  std::unique_ptr<Workspace> workspace;
  auto prepare = [&](int members) {
    plan.members = members;
    int64_t bytes[kSlots] = {};
    memory(call, plan, bytes);
    workspace = std::make_unique<Workspace>(plan, bytes);
  };
  auto job = [&](int member) { kernel(call, plan, schedule, *workspace, member); };
  // The forward pass has no work but the walk.
  const bool walks = std::is_same<Call, Forward<T>>::value;
  const int threads = walks ? std::max(plan.groups, plan.together) : effort.threads;
  Team::run(pool, threads, effort.patience, prepare, job);
}

template <class T>
const Kernels<T>& table(const Build& build) {
  if constexpr (sizeof(T) == 4)
    return build.f32;
  else
    return build.f64;
}

const NarrowKernels& narrow_or_throw(const Build& build) {
  const NarrowKernels* kernels = narrow_kernels(build);
  if (!kernels) throw std::logic_error("there are no products in bfloat16");
  return *kernels;
}

// Calls f with the kernels for a call.
template <class T, class Call, class F>
void with_kernels(const Build& build, const Call& call, F f) {
  if constexpr (std::is_same<T, float>::value)
    if (call.narrow) {
      return f(narrow_or_throw(build));
    }
  f(table<T>(build));
}

// Packing the weights costs as much as the products of several rows. Without it each step costs
// more, the sums of lanes above all where rows are short.
template <class T>
bool is_direct(const Forward<T>& call) {
  const Shape& s = call.shape;
  const int64_t rows = s.steps * s.batch;
  const int64_t most = s.steps > 4 ? 8 : std::clamp<int64_t>(s.hidden / 4, 8, kDirectRows);
  return !call.mask && !call.w_hr && !call.narrow && rows > 0 && rows <= most;
}

// Runs job(workspace, member, members) without shared memory.
template <class Job>
void run_job(const Pool& pool, const Effort& effort, Job job) {
  std::unique_ptr<Workspace> workspace;
  int together = 1;
  auto prepare = [&](int members) {
    together = members;
    workspace = std::make_unique<Workspace>(members);
  };
  Team::run(pool, effort.threads, effort.patience, prepare,
            [&](int member) { job(*workspace, member, together); });
}

template <class T>
void run_direct(const Build& build, const Forward<T>& call, const Pool& pool) {
  run_job(pool, effort_of_call(seconds_of_work(call.cell, call.shape, 1), pool),
          [&](Workspace& workspace, int member, int members) {
            table<T>(build).direct(call, workspace, member, members);
          });
}

double seconds_of_product(int64_t a, int64_t b, int64_t c) {
  return 2. * double(a) * double(b) * double(c) / 40e9;
}

using Clock = std::chrono::steady_clock;

// When products in loops take one thread: for a while after waiting for others cost more than they
// can save, since another program holds a core or the threads sleep between the products.
class Patience {
 public:
  bool at_end(Clock::time_point now) const {
    return now.time_since_epoch().count() < until_.load(std::memory_order_relaxed);
  }

  // After a product: the time lost by waiting, and that of the caller's own share.
  void learn(Clock::duration lost, Clock::duration own, Clock::time_point now) {
    if (lost <= 2 * own) return before_.store(0, std::memory_order_relaxed);
    const Clock::rep before = before_.exchange(lost.count(), std::memory_order_relaxed);
    // The first wait may have woken the threads.
    if (before == 0 && lost < std::chrono::microseconds(500)) return;
    before_.store(0, std::memory_order_relaxed);
    until_.store(now.time_since_epoch().count() + 8 * (before + lost.count()),
                 std::memory_order_relaxed);
  }

 private:
  std::atomic<Clock::rep> until_{0}, before_{0};
};

Patience for_helpers;

// A product in a loop takes one thread for each 16 microseconds of work.
template <class Job>
void run_product(const Pool& pool, double work, Job job) {
  const auto start = Clock::now();
  const double most = for_helpers.at_end(start) ? 1 : pool.threads;
  const int wanted = int(std::clamp(work / 16e-6, 1., most));
  Clock::time_point begin, done;
  run_job(pool, {wanted, patience(work, 50)}, [&](Workspace& workspace, int member, int members) {
    if (member == 0) begin = Clock::now();
    job(workspace, member, members);
    if (member == 0) done = Clock::now();
  });
  const auto end = Clock::now();
  if (wanted > 1) for_helpers.learn((begin - start) + (end - done), done - begin, end);
}

}  // namespace

template <class T>
void run(const Build& build, const Forward<T>& call, const Pool& pool) {
  if (is_direct(call)) return run_direct<T>(build, call, pool);
  with_kernels<T>(build, call, [&](const auto& kernels) {
    run_call<T>(build, call, pool, 1, kernels.forward_memory, kernels.forward);
  });
}

template <class T>
void run(const Build& build, const Adjoint<T>& call, const Pool& pool) {
  with_kernels<T>(build, call, [&](const auto& kernels) {
    run_call<T>(build, call, pool, 1 + (call.dw_hh != nullptr) + (call.dx != nullptr),
                kernels.adjoint_memory, kernels.adjoint);
  });
}

void run(const Build& build, const Rounding& call, const Pool& pool) {
  const NarrowKernels& kernels = narrow_or_throw(build);
  const double bytes_per_second = 20e9;
  run_job(pool, effort_of_call(double(call.n) * 6 / bytes_per_second, pool),
          [&](Workspace&, int member, int members) {
            constexpr int64_t together = 32;  // elements that no two members may share
            const int64_t parts = (call.n + together - 1) / together;
            const int64_t begin = parts * member / members * together;
            const int64_t end = std::min(call.n, parts * (member + 1) / members * together);
            kernels.round({end - begin, call.from + begin, call.to + begin});
          });
}

template <class T>
void run(const Build& build, const Packing<T>& call) {
  table<T>(build).pack(call);
}

template <class T>
void run(const Build& build, const Matmul<T>& call, const Pool& pool) {
  run_product(
      pool, seconds_of_product(call.rows, call.depth + call.inputs, call.columns),
      [&](Workspace&, int member, int members) { table<T>(build).matmul(call, member, members); });
}

template <class T>
void run(const Build& build, const OuterProducts<T>& call, const Pool& pool) {
  run_product(pool, seconds_of_product(call.rows, call.features, call.columns),
              [&](Workspace& workspace, int member, int members) {
                table<T>(build).outer(call, workspace, member, members);
              });
}

template void run(const Build&, const Forward<float>&, const Pool&);
template void run(const Build&, const Forward<double>&, const Pool&);
template void run(const Build&, const Adjoint<float>&, const Pool&);
template void run(const Build&, const Adjoint<double>&, const Pool&);
template void run(const Build&, const Packing<float>&);
template void run(const Build&, const Packing<double>&);
template void run(const Build&, const Matmul<float>&, const Pool&);
template void run(const Build&, const Matmul<double>&, const Pool&);
template void run(const Build&, const OuterProducts<float>&, const Pool&);
template void run(const Build&, const OuterProducts<double>&, const Pool&);

}  // namespace jaxrnn
