// SPDX-License-Identifier: Apache-2.0
// What a GPU kernel file (*_cuda.cu) may use, for two compilers: nvcc, which makes it a GPU program,
// and g++ or clang, which make it a program of kernels/simt.h that runs on the CPU, checked. Kernel
// files include this first and write no PTX and no CUDA intrinsic of their own, so that both run one
// source.
//
//   GPU_KERNEL(threads_max, blocks_min) Name(args...) { ... }   a kernel and its launch bounds
//   GPU_LAUNCH(Name, grid, block, shared_bytes, stream, args...)   the only way to start one
//   GPU_LAUNCH_EARLY(...)            the same, but the kernel may start before those ahead of it in the
//                                    stream have ended: see WaitForEarlier
//   GPU_SHARED(T, name, n);          T name[n] in shared memory, undefined bytes at first
//   GPU_DYNAMIC_SHARED(name);        std::byte* name, the launch's shared_bytes, aligned to 128
//   GPU_TABLE(T, name) = value;      a constant that kernels index, in global memory
//   GPU_DEVICE                       marks functions that kernels call
//   GPU_UNROLL(n) for (...)          the loop unrolled n times
//   threadIdx, blockIdx, blockDim, gridDim as in CUDA
//
// Bits: no product and sum are contracted (nvcc -fmad=false, g++ -ffp-contract=off); a fused
// multiply-add is written gpu::Fma. Division and square root are those of IEEE 754. Subnormals are
// kept.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GPU_KERNEL(threads_max, blocks_min) \
  __global__ void __launch_bounds__(threads_max, blocks_min)
#define GPU_DEVICE __device__ __forceinline__
#define GPU_DYNAMIC_SHARED(name)                                \
  extern __shared__ __align__(128) unsigned char gpu_dynamic[]; \
  std::byte* const name = reinterpret_cast<std::byte*>(gpu_dynamic)
#define GPU_SHARED(T, name, n) __shared__ T name[n]
#define GPU_TABLE(T, name) __device__ constexpr T name
#define GPU_PRAGMA(text) _Pragma(#text)
#define GPU_UNROLL(n) GPU_PRAGMA(unroll n)
#define GPU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

#define GPU_LAUNCH_EARLY(kernel, grid, block, shared_bytes, stream, ...) \
  ::penstock::gpu::LaunchEarly(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace penstock::gpu {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Errors are left for cudaGetLastError.
template <typename... P, typename... A>
void LaunchEarly(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
                 cudaStream_t stream, const A&... args) {
  int device = 0;
  int major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    return;
  }
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = major >= 9 ? 1 : 0;  // GPUs before 9.0 do not know it.
  (void)cudaLaunchKernelEx(&config, kernel, args...);
}

// In a kernel of GPU_LAUNCH_EARLY, the kernels ahead may still run until WaitForEarlier returns: every
// thread calls it before it touches what any of them reads or writes. LetNextStart: once each block
// has called it or has ended, a next kernel of GPU_LAUNCH_EARLY may start.
GPU_DEVICE void WaitForEarlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
GPU_DEVICE void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n");
#endif
}

// All threads of the block. Orders shared and global memory among them.
GPU_DEVICE void SyncThreads() { __syncthreads(); }
// All lanes of `mask`. Orders memory among them.
GPU_DEVICE void SyncWarp(unsigned mask = kAllLanes) { __syncwarp(mask); }

// Every lane of the warp takes part; no order of memory.
template <typename T>
GPU_DEVICE T Shfl(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <typename T>
GPU_DEVICE T ShflXor(T value, int lanes) {
  return __shfl_xor_sync(kAllLanes, value, lanes);
}
// A table of one value per lane: that of lane index % 32.
template <typename T>
GPU_DEVICE T Pick(T value, std::uint32_t index) {
  return __shfl_sync(kAllLanes, value, static_cast<int>(index));
}
GPU_DEVICE unsigned Ballot(bool predicate) { return __ballot_sync(kAllLanes, predicate); }
// Of bits that are not 0, the lowest that is set; and how many are.
GPU_DEVICE unsigned LowestBit(unsigned bits) {
  return static_cast<unsigned>(__ffs(static_cast<int>(bits)) - 1);
}
GPU_DEVICE unsigned CountBits(unsigned bits) { return static_cast<unsigned>(__popc(bits)); }

GPU_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
GPU_DEVICE float Sqrt(float x) { return __fsqrt_rn(x); }
GPU_DEVICE float Divide(float a, float b) { return __fdiv_rn(a, b); }
// Nearest integer, ties to even.
GPU_DEVICE int RoundToInt(float x) { return __float2int_rn(x); }
GPU_DEVICE float FloatFromBits(std::uint32_t bits) { return __uint_as_float(bits); }
GPU_DEVICE std::uint32_t BitsFromFloat(float x) { return __float_as_uint(x); }
// As ToFloat and ToF16Saturated of base/float16.h.
GPU_DEVICE float FromF16(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
GPU_DEVICE std::uint16_t ToF16Saturated(float x) {
  const std::uint16_t bits = __half_as_ushort(__float2half_rn(x));
  const bool overflow =
      (bits & 0x7fff) == 0x7c00 && (__float_as_uint(x) & 0x7fffffffu) < 0x7f800000u;
  return overflow ? static_cast<std::uint16_t>((bits & 0x8000) | 0x7bff) : bits;
}

// Byte i of what is returned is byte (selector >> 4 i) & 7 of the eight of a and b, a's first.
GPU_DEVICE std::uint32_t PickBytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  return __byte_perm(a, b, selector);
}
// c + the sum of the products of the four signed bytes of a and b.
GPU_DEVICE int Dot4(int a, int b, int c) { return __dp4a(a, b, c); }

// Aligned vector accesses; Load*Once passes the caches by where it can (weights are read once).
template <typename T>
GPU_DEVICE T Load(const void* p) {
  return *static_cast<const T*>(p);
}
template <typename T>
GPU_DEVICE T LoadOnce(const void* p) {
  return __ldcs(static_cast<const T*>(p));
}
template <typename T>
GPU_DEVICE void Store(void* p, T value) {
  *static_cast<T*>(p) = value;
}

// *p ^= value and *p += value, whole beside others of their kind from any thread; they order no other
// memory. AtomicAdd64 is for global memory: in shared it is slow.
GPU_DEVICE void AtomicXor(std::uint32_t* p, std::uint32_t value) { atomicXor(p, value); }
GPU_DEVICE void AtomicAdd(std::uint32_t* p, std::uint32_t value) { atomicAdd(p, value); }
GPU_DEVICE void AtomicAdd64(std::uint64_t* p, std::uint64_t value) {
  static_assert(sizeof(unsigned long long) == sizeof(*p));
  atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(value));
}

// 16 bytes from global to shared memory, both aligned to 16; zeros where `live` is false. They are
// there after Commit and a Wait that leaves fewer groups pending, for the thread that asked; for
// others after a barrier, too.
GPU_DEVICE void CopyAsync16(void* shared, const void* global, bool live = true) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = live ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}
GPU_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int pending>
GPU_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Operands of an mma from shared memory: four matrices of 8 rows of 16 bytes, anywhere, each aligned
// to 16. Lane i names row i % 8 of matrix i / 8, and gets in r[m] bytes 4 (i % 4) to 4 (i % 4) + 3 of
// row i / 4 of matrix m.
GPU_DEVICE void LoadMatrices(std::uint32_t (&r)[4], const void* row) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// Tensor cores: d += a b for int8, exact in int32. Fragments as PTX ISA "mma.m16n8k32" has them:
// with g = lane / 4, t = lane % 4: a[0] row g, columns 4t..4t+3; a[1] row g + 8; a[2] row g, columns
// 16 + 4t..; a[3] row g + 8, those; b0 column g, rows 4t..4t+3; b1 rows 16 + 4t..; d[0], d[1] row g,
// columns 2t, 2t + 1; d[2], d[3] row g + 8.
GPU_DEVICE void MmaInt8(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                        std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// As MmaInt8 over 16 columns: a[0] row g, columns 4t..4t+3; a[1] row g + 8; b column g, rows 4t..
GPU_DEVICE void MmaInt8Half(int (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

}  // namespace penstock::gpu
#else
#include "kernels/simt.h"

#define GPU_UNROLL(n)
#endif

namespace penstock::gpu {

// What a launch with more than 48 KiB of dynamic shared memory needs first.
template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, std::size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

}  // namespace penstock::gpu
