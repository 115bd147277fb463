// Threads that work on one call, and their shared memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernel.h"

namespace jaxrnn {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins for a short while, then yields: the thread that is waited for may need this core, and
// threads that share one pay for each spin.
template <class Condition>
void spin_until(Condition condition) {
  for (int i = 0; !condition(); ++i) {
    if (i < 100)
      pause();
    else
      std::this_thread::yield();
  }
}

class Barrier {
 public:
  void reset(int members) { members_ = members; }

  void wait() {
    if (members_ == 1) return;
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else {
      spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
    }
  }

 private:
  int members_ = 1;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

// Memory of a call, 64-byte aligned and without values. Fresh pages cost a call more than its
// packed weights, so some memory is kept for the next call.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept : block_(std::exchange(other.block_, {})) {}
  Memory& operator=(Memory&&) = delete;
  void* get() const { return block_.at; }

  struct Block {
    void* at = nullptr;
    size_t size = 0;
  };

 private:
  Block block_;
};

class Workspace {
 public:
  explicit Workspace(int members) : private_(size_t(members)) { all_.reset(members); }
  Workspace(const Plan& plan, const int64_t (&bytes)[kSlots]) : private_(size_t(plan.members)) {
    all_.reset(plan.members);
    group_.reset(plan.parts());
    for (int64_t n : bytes) shared_.emplace_back(n);
  }

  Barrier all_, group_;
  std::vector<Memory> shared_;
  std::vector<std::vector<Memory>> private_;
};

// Runs tasks on up to `threads` threads at once, including the caller.
struct Pool {
  int threads;
  std::function<void(std::function<void()>)> schedule;
};

// Runs job(member) on all threads that join within `patience`, including the caller. It never waits
// for a thread that is busy elsewhere, so it cannot deadlock. `prepare` is called once, when the
// number of members is known.
//
// XLA runs independent calls at the same time, such as the two directions of a layer. Such calls
// divide the threads among them, and do not wait for threads of other calls.
class Team {
 public:
  static void run(const Pool& pool, int wanted, std::chrono::microseconds patience,
                  const std::function<void(int)>& prepare, const std::function<void(int)>& job) {
    if (wanted <= 1) {
      prepare(1);
      return job(0);
    }
    struct Counted {
      Counted() { calls_.fetch_add(1, std::memory_order_relaxed); }
      ~Counted() { calls_.fetch_sub(1, std::memory_order_relaxed); }
    } counted;
    const auto share = [wanted, all = pool.threads] {
      return std::clamp(all / std::max(1, calls_.load(std::memory_order_relaxed)), 1, wanted);
    };
    auto team = std::make_shared<Team>();
    const auto caller = std::this_thread::get_id();
    for (int i = 1; i < wanted; ++i)
      pool.schedule([team, caller, share, &job] {
        if (std::this_thread::get_id() != caller) team->join(share(), job);
      });
    const auto deadline = std::chrono::steady_clock::now() + patience;
    spin_until([&] {
      return team->state_.load(std::memory_order_acquire) >= share() ||
             std::chrono::steady_clock::now() > deadline;
    });
    const int members = team->state_.fetch_or(kClosed, std::memory_order_acq_rel);
    prepare(members);
    team->go_.store(true, std::memory_order_release);
    job(0);
    spin_until([&] { return team->done_.load(std::memory_order_acquire) == members - 1; });
  }

 private:
  static constexpr int kClosed = 1 << 30;

  // A task that starts too late finds the team closed and does not touch the caller's data.
  void join(int share, const std::function<void(int)>& job) {
    int state = state_.load(std::memory_order_acquire);
    do {
      if (state & kClosed || state >= share) return;
    } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel));
    spin_until([&] { return go_.load(std::memory_order_acquire); });
    job(state);
    done_.fetch_add(1, std::memory_order_release);
  }

  static inline std::atomic<int> calls_{0};  // calls that want several threads, in this process
  std::atomic<int> state_{1};
  std::atomic<bool> go_{false};
  std::atomic<int> done_{0};
};

// Kernels for the instruction sets of this machine, fastest first.
std::vector<const Build*> builds();

// The kernels with products in bfloat16, or null if the build or this machine has none.
const NarrowKernels* narrow_kernels(const Build& build);

// Runs the whole sequence, forward or backward, on the threads of a pool.
template <class T>
void run(const Build& build, const Forward<T>& call, const Pool& pool);
template <class T>
void run(const Build& build, const Adjoint<T>& call, const Pool& pool);

void run(const Build& build, const Rounding& call, const Pool& pool);

template <class T>
void run(const Build& build, const Packing<T>& call);
template <class T>
void run(const Build& build, const Matmul<T>& call, const Pool& pool);
template <class T>
void run(const Build& build, const OuterProducts<T>& call, const Pool& pool);

}  // namespace jaxrnn
