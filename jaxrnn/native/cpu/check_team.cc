// Checks of what the kernels share: the choice among them, memory, threads.
#include <cstdio>

#include "check.h"

using namespace jaxrnn;

// Few rows without a mask read the weights in place; all others run on packed weights.
int check_choice() {
  static bool direct;
  Build spy = *builds().back();
  spy.f32.direct = [](const Forward<float>&, Workspace&, int, int) { direct = true; };
  spy.f32.forward = [](const Forward<float>&, const Plan&, const Schedule&, Workspace&, int) {
    direct = false;
  };
  const Pool alone{1, nullptr};
  const std::vector<uint8_t> mask(size_t(2 * kDirectRows), 1);
  int failures = 0;
  auto expect = [&](int64_t steps, int64_t batch, int64_t hidden, bool masked, bool wanted) {
    Forward<float> call{};
    call.cell = CellKind::lstm, call.shape = {steps, batch, 3, hidden};
    call.mask = masked ? mask.data() : nullptr;
    direct = !wanted;
    jaxrnn::run(spy, call, alone);
    if (direct == wanted) return;
    std::printf("T %ld B %ld H %ld: the wrong kernel\n", long(steps), long(batch), long(hidden));
    ++failures;
  };
  expect(1, 1, 4, false, true);
  expect(1, 1, 4, true, false);
  expect(8, 1, 4, false, true);
  expect(2, 4, 4, false, true);
  expect(1, 9, 4, false, false);
  expect(1, 16, 64, false, true);
  expect(1, 17, 64, false, false);
  expect(1, kDirectRows, 256, false, true);
  expect(4, kDirectRows / 4, 256, false, true);
  expect(5, 2, 256, false, false);
  expect(1, kDirectRows + 1, 256, false, false);
  expect(0, 1, 4, false, false);
  return failures;
}

// Eight threads divide the rows, or up to as many as its weights and units allow walk one set.
int check_plan() {
  static Plan found;
  Build spy = *builds().back();
  spy.f32.forward = [](const Forward<float>&, const Plan& plan, const Schedule&, Workspace&, int) {
    found = plan;
  };
  const Pool pool{8, [](const std::function<void()>&) {}};
  int failures = 0;
  auto expect = [&](int64_t batch, int64_t hidden, int groups, int together) {
    Forward<float> call{};
    call.cell = CellKind::lstm, call.shape = {1000, batch, 3, hidden};
    jaxrnn::run(spy, call, pool);
    if (found.groups == groups && found.together == together) return;
    std::printf("B %ld H %ld: %d groups, %d together\n", long(batch), long(hidden), found.groups,
                found.together);
    ++failures;
  };
  expect(1, 32, 1, 1);
  expect(1, 64, 1, 2);
  expect(1, 128, 1, 8);
  expect(3, 64, 1, 4);
  expect(8, 64, 8, 1);
  expect(8, 256, 1, 8);
  expect(200, 256, 8, 1);
  return failures;
}

// After a product that had to wait for another thread, the next ones take one thread for a while.
int check_patience() {
  static int found;
  static std::chrono::milliseconds late;
  Build spy = *builds().back();
  spy.f32.matmul = [](const Matmul<float>&, int member, int members) {
    if (member == 0) found = members;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if (member > 0) std::this_thread::sleep_for(late);
  };
  Matmul<float> call{};
  call.rows = call.depth = call.columns = 740;  // 20 ms at 40 Gflop/s
  auto members = [&](int milliseconds) {
    late = std::chrono::milliseconds(milliseconds);
    Threads workers(2, 2);
    jaxrnn::run(spy, call, workers.pool);
    return found;
  };
  auto comes = [&](int milliseconds) {
    for (int i = 0; i < 10000; ++i)
      if (members(milliseconds) == 2) return true;
    std::printf("no second thread\n");
    return false;
  };
  if (!comes(0) || !comes(20)) return 1;
  for (int i = 0; i < 20; ++i)
    if (members(0) != 1) return std::printf("a second thread after a late one\n"), 1;
  std::this_thread::sleep_for(std::chrono::milliseconds(8 * 40));
  return !comes(0);
}

// Threads share the elements without touching each other's; an odd number of them ends in half a
// pair.
int check_rounding() {
  int failures = 0;
  for (const Build* build : builds()) {
    if (!narrow_kernels(*build)) continue;
    for (int64_t n : {0, 1, 31, 33, 300001})
      for (int threads : {1, 2, 5}) {
        std::vector<float> from(size_t(n), 1.f);
        std::vector<uint16_t> to(size_t(n) + 1, 7);
        for (int64_t i = 0; i < n; ++i) from[size_t(i)] += float(i % 5) / 512;
        Threads workers(threads, threads);
        jaxrnn::run(*build, Rounding{n, from.data(), to.data()}, workers.pool);
        // Halves of the last bit, 2^-7, are rounded to even.
        constexpr uint16_t rounded[] = {0x3F80, 0x3F80, 0x3F80, 0x3F81, 0x3F81};
        int64_t i = 0;
        while (i < n && to[size_t(i)] == rounded[i % 5]) ++i;
        if (i == n && to[size_t(n)] == 7) continue;
        std::printf("%s, %ld elements, %d threads: wrong at %ld\n", build->name, long(n), threads,
                    long(i));
        ++failures;
      }
  }
  return failures;
}

// Memory of recent calls is kept, however many others there were before.
int check_memory() {
  for (int64_t i = 0; i < 100; ++i) Memory(int64_t(64 << 10) + i * 4096);
  for (int64_t i = 0; i < 10; ++i) {
    std::vector<Memory> held;
    for (int64_t k = 0; k < 12; ++k) held.emplace_back((int64_t(1) << 20) + k * 4096);
  }
  constexpr int64_t size = int64_t(8) << 20;
  void* const first = Memory(size).get();
  const std::vector<char> other(static_cast<size_t>(size));  // takes the place of what is free
  if (Memory(size).get() == first) return 0;
  std::printf("the memory of the last call is not kept\n");
  return 1;
}
