// Instructions that C++ has no name for, on words of 32 bits: two bf16 numbers or one float.
//
// The emulator defines the same functions for a CPU before it includes this file.
#pragma once

#ifndef JAXRNN_EMULATED
typedef unsigned int u32;
typedef unsigned short u16;
#define DEVICE __device__ __forceinline__
#define YIELD()
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HOPPER(...)
#else
#define HOPPER(...) __VA_ARGS__
#endif

struct Word4 {
  u32 x, y, z, w;
};

// Another CTA may still be writing these words.
DEVICE Word4 load_shared_result(const u32* p) {
  Word4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
DEVICE void store_shared_result(u32* p, u32 v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
DEVICE Word4 load_constant(const u32* p) {
  Word4 v;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

DEVICE u32 smem_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE Word4 load_smem(const float* p) {
  Word4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(smem_address(p))
               : "memory");
  return v;
}
DEVICE void store_smem(float* p, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(smem_address(p)), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
}

// D += A B on the tensor cores: A 16 rows, B 8 columns, 8 words of K.
template <bool IS_BF16>
DEVICE void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  if (IS_BF16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// a + b, computed anew wherever it is written: the compiler keeps no copy in a register.
DEVICE u32 add_anew(u32 a, u32 b) {
  u32 r;
  asm volatile("add.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE u32 pack_bf16(float low, float high) {
  u32 d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
DEVICE u16 to_bf16(float x) {
  u16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }

DEVICE void sync_cta() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// A second barrier of the CTA: some warps pass it at once, the others wait for them.
DEVICE void pass_second(int threads) { asm volatile("bar.arrive 1, %0;" ::"r"(threads) : "memory"); }
DEVICE void wait_second(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }
DEVICE void sync_cluster() {
  HOPPER(asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
         asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");)
}
// The address, in the shared memory of another CTA of the cluster, of what is at `address` here.
DEVICE u32 address_in_peer(u32 address, int rank) {
  u32 r = 0;
  HOPPER(asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));)
  return r;
}
DEVICE void store_in_peer(u32 address, float a, float b, float c, float d) {
  HOPPER(asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(a), "f"(b), "f"(c), "f"(d)
                      : "memory");)
}
// The host reads this flag while other work runs.
DEVICE void raise_flag(u32* flag) { asm volatile("st.relaxed.sys.global.u32 [%0], 1;" ::"l"(flag) : "memory"); }

#define THREAD ((int)threadIdx.x)
#define CTA ((int)blockIdx.x)
extern __shared__ __align__(16) unsigned char jaxrnn_smem[];
#define SMEM ((float*)jaxrnn_smem)
#endif
