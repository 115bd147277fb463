// The kernels' own source on a CPU: every thread of a GPU is a fiber, and what threads do together (an MMA,
// a shuffle, a barrier) is a rendezvous. For the tests, which define INSTANCES, the file that lists the
// instances to build as rows {"forward<...>", [](const Arguments& p) { forward<...>(p); }}.
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#error "The emulator switches fibers in x86-64 assembly."
#endif

#define JAXRNN_EMULATED
#define DEVICE inline
typedef unsigned int u32;
typedef unsigned short u16;
struct Word4 {
  u32 x, y, z, w;
};

namespace {

struct Barrier {
  int arrived = 0;
  long generation = 0;
};
struct Warp {
  int arrived = 0;
  long generation = 0;
  u32 words[32][6];
  float sums[32][4], values[32], others[32];
};
struct Cluster;
struct Cta {
  std::vector<unsigned char> smem;
  Barrier barrier, second;
  Cluster* cluster;
  int id, threads;
};
struct Cluster {
  Barrier barrier;
  std::vector<Cta*> ctas;
  int threads = 0;
};
struct Fiber {
  void* stack_pointer;
  int thread;
  Cta* cta;
  Warp* warp;
  bool done = false;
};

Fiber* current;
void* scheduler;
long progress;  // rises with every step that can let another fiber go on
const char* fault = nullptr;

}  // namespace

extern "C" void jaxrnn_switch_fiber(void** save, void* to);
asm(R"(
.globl jaxrnn_switch_fiber
.type jaxrnn_switch_fiber,@function
jaxrnn_switch_fiber:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
)");

namespace {

void yield() { jaxrnn_switch_fiber(&current->stack_pointer, scheduler); }

void wait_for(Barrier& barrier, int threads) {
  const long generation = barrier.generation;
  progress++;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.generation++;
  } else {
    while (barrier.generation == generation) yield();
  }
}

template <class T>
void check_alignment(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) & 15) fault = "a misaligned access of 16 bytes";
}

}  // namespace

#define YIELD() yield()
#define THREAD (current->thread)
#define CTA (current->cta->id)
#define SMEM (reinterpret_cast<float*>(current->cta->smem.data()))

static Word4 load_shared_result(const u32* p) {
  check_alignment(p);
  Word4 v;
  memcpy(&v, p, 16);
  return v;
}
static Word4 load_constant(const u32* p) { return load_shared_result(p); }
static Word4 load_smem(const float* p) { return load_shared_result(reinterpret_cast<const u32*>(p)); }
static void store_smem(float* p, float a, float b, float c, float d) {
  check_alignment(p);
  const float values[4] = {a, b, c, d};
  memcpy(p, values, 16);
}
static void store_shared_result(u32* p, u32 v) {
  *p = v;
  progress++;
}
static void prefetch(const void* p) { (void)*static_cast<const volatile char*>(p); }
static u32 bits_of(float x) {
  u32 u;
  memcpy(&u, &x, 4);
  return u;
}
static float float_of(u32 x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
static u16 to_bf16(float x) {
  const u32 u = bits_of(x);
  return x != x ? 0x7FFF : u16((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
static u32 pack_bf16(float low, float high) { return to_bf16(low) | u32(to_bf16(high)) << 16; }

// The fragments are laid out as PTX defines them for m16n8k16 (bf16) and m16n8k8 (TF32).
template <bool IS_BF16>
static void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  Warp& warp = *current->warp;
  const int lane = current->thread & 31;
  const u32 words[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(warp.words[lane], words, sizeof words);
  memcpy(warp.sums[lane], d, sizeof d);
  const long generation = warp.generation;
  progress++;
  if (++warp.arrived < 32) {
    while (warp.generation == generation) yield();
    memcpy(d, warp.sums[lane], sizeof d);
    return;
  }
  constexpr int K = IS_BF16 ? 16 : 8;
  static float a[16][16], b[16][8];
  const auto number = [](u32 x, int half) {
    return IS_BF16 ? float_of(half ? x & 0xFFFF0000u : x << 16) : float_of(x & ~0x1FFFu);
  };
  for (int t = 0; t < 32; t++) {
    const int row = t / 4, q = t % 4;
    for (int i = 0; i < 4; i++)
      for (int e = 0; e < (IS_BF16 ? 2 : 1); e++)
        a[row + 8 * (i & 1)][IS_BF16 ? q * 2 + e + 8 * (i >> 1) : q + 4 * (i >> 1)] = number(warp.words[t][i], e);
    for (int i = 0; i < 2; i++)
      for (int e = 0; e < (IS_BF16 ? 2 : 1); e++)
        b[IS_BF16 ? q * 2 + e + 8 * i : q + 4 * i][row] = number(warp.words[t][4 + i], e);
  }
  for (int t = 0; t < 32; t++)
    for (int i = 0; i < 4; i++) {
      float& sum = warp.sums[t][i];
      for (int k = 0; k < K; k++) sum += a[t / 4 + 8 * (i >> 1)][k] * b[k][t % 4 * 2 + (i & 1)];
    }
  warp.arrived = 0;
  warp.generation++;
  memcpy(d, warp.sums[lane], sizeof d);
}

static float shuffle_xor(float v, int mask) {
  Warp& warp = *current->warp;
  const int lane = current->thread & 31;
  warp.values[lane] = v;
  const long generation = warp.generation;
  progress++;
  if (++warp.arrived == 32) {
    memcpy(warp.others, warp.values, sizeof warp.others);
    warp.arrived = 0;
    warp.generation++;
  } else {
    while (warp.generation == generation) yield();
  }
  return warp.others[lane ^ mask];
}
static u32 add_anew(u32 a, u32 b) { return a + b; }
static float exp2_fast(float x) { return exp2f(x); }
static float reciprocal(float x) { return 1.f / x; }
static void sync_cta() { wait_for(current->cta->barrier, current->cta->threads); }
static void sync_warp() {}
static void pass_second(int threads) {
  Barrier& second = current->cta->second;
  progress++;
  if (++second.arrived < threads) return;
  second.arrived = 0;
  second.generation++;
}
static void wait_second(int threads) { wait_for(current->cta->second, threads); }
static void sync_cluster() { wait_for(current->cta->cluster->barrier, current->cta->cluster->threads); }
static u32 smem_address(const void* p) {
  return u32(static_cast<const unsigned char*>(p) - current->cta->smem.data());
}
static u32 address_in_peer(u32 address, int rank) { return address | u32(rank) << 24; }
static void store_in_peer(u32 address, float a, float b, float c, float d) {
  const float values[4] = {a, b, c, d};
  memcpy(current->cta->cluster->ctas[address >> 24]->smem.data() + (address & 0xFFFFFF), values, 16);
}
static void raise_flag(unsigned* flag) { *flag = 1; }

#include "alone.cuh"

using namespace jaxrnn::cuda;

namespace {

void (*kernel)(const Arguments&);
Arguments arguments;
const std::map<std::string, void (*)(const Arguments&)> instances = {
#include INSTANCES
};

void run_fiber() {
  kernel(arguments);
  current->done = true;
  progress++;
  while (true) yield();
}

constexpr size_t STACK = 128 * 1024;

}  // namespace

// Returns what went wrong, or null.
extern "C" const char* jaxrnn_emulate(const char* instance, int ctas, int threads, int cluster_size, int smem,
                                      const Arguments* a) {
  const auto found = instances.find(instance);
  if (found == instances.end()) return "no such instance";
  kernel = found->second;
  arguments = *a;
  fault = nullptr;
  std::vector<Cta> all(static_cast<size_t>(ctas));
  std::vector<Cluster> clusters(static_cast<size_t>(ctas / cluster_size));
  std::vector<Warp> warps(static_cast<size_t>(ctas * threads / 32));
  std::vector<Fiber> fibers(static_cast<size_t>(ctas * threads));
  void* memory = mmap(nullptr, STACK * fibers.size(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return "no memory for the fibers' stacks";
  for (size_t i = 0; i < all.size(); i++) {
    Cluster& cluster = clusters[i / size_t(cluster_size)];
    all[i].smem.assign(size_t(smem), 0xCD);
    all[i].id = int(i);
    all[i].threads = threads;
    all[i].cluster = &cluster;
    cluster.ctas.push_back(&all[i]);
    cluster.threads += threads;
    for (int t = 0; t < threads; t++) {
      const size_t number = i * size_t(threads) + size_t(t);
      Fiber& fiber = fibers[number];
      fiber.thread = t;
      fiber.cta = &all[i];
      fiber.warp = &warps[number / 32];
      void** top = reinterpret_cast<void**>(static_cast<char*>(memory) + STACK * (number + 1) - 64);
      *--top = nullptr;
      *--top = reinterpret_cast<void*>(run_fiber);
      for (int k = 0; k < 6; k++) *--top = nullptr;
      fiber.stack_pointer = top;
    }
  }
  size_t left = fibers.size();
  for (int idle = 0; left > 0 && fault == nullptr;) {
    const long before = progress;
    for (size_t w = 0; w < warps.size(); w++)
      for (long seen = -1; seen != progress;) {
        seen = progress;
        for (size_t lane = 0; lane < 32; lane++) {
          Fiber& fiber = fibers[w * 32 + lane];
          if (fiber.done) continue;
          current = &fiber;
          jaxrnn_switch_fiber(&scheduler, fiber.stack_pointer);
        }
      }
    left = 0;
    for (const Fiber& fiber : fibers) left += !fiber.done;
    idle = progress == before ? idle + 1 : 0;
    if (idle > a->patience + 8) fault = "nobody goes on";
  }
  munmap(memory, STACK * fibers.size());
  return fault;
}
