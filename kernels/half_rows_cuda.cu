// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu.h"
//
#include "kernels/bf16_cuda.h"
#include "kernels/half_rows_cuda.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 8;  // 16 bytes of the narrow side.

GPU_DEVICE std::uint32_t Narrow(float x, bool bf16) {
  return bf16 ? ToBF16Cuda(x) : gpu::ToF16Saturated(x);
}
GPU_DEVICE float Widen(std::uint32_t bits, bool bf16) {
  return bf16 ? gpu::FloatFromBits(bits << 16) : gpu::FromF16(static_cast<std::uint16_t>(bits));
}
GPU_DEVICE std::int64_t FirstOfThread() {
  return (std::int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x)) * kEach;
}

// One thread per kEach values.
GPU_KERNEL(kThreads, 4)
NarrowKernel(const float* x, std::int64_t n, bool bf16, std::byte* out) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const std::int64_t first = FirstOfThread();
  if (first >= n) return;
  const float4 a = gpu::Load<float4>(x + first);
  const float4 b = gpu::Load<float4>(x + first + 4);
  gpu::Store(out + 2 * first, uint4{Narrow(a.x, bf16) | Narrow(a.y, bf16) << 16,
                                    Narrow(a.z, bf16) | Narrow(a.w, bf16) << 16,
                                    Narrow(b.x, bf16) | Narrow(b.y, bf16) << 16,
                                    Narrow(b.z, bf16) | Narrow(b.w, bf16) << 16});
}

// One thread per kEach values.
GPU_KERNEL(kThreads, 4)
WidenKernel(const std::byte* x, std::int64_t n, bool bf16, float* out) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const std::int64_t first = FirstOfThread();
  if (first >= n) return;
  const uint4 v = gpu::Load<uint4>(x + 2 * first);
  gpu::Store(out + first, float4{Widen(v.x & 0xffff, bf16), Widen(v.x >> 16, bf16),
                                 Widen(v.y & 0xffff, bf16), Widen(v.y >> 16, bf16)});
  gpu::Store(out + first + 4, float4{Widen(v.z & 0xffff, bf16), Widen(v.z >> 16, bf16),
                                     Widen(v.w & 0xffff, bf16), Widen(v.w >> 16, bf16)});
}

dim3 BlocksFor(std::int64_t n) {
  constexpr std::int64_t kPerBlock = std::int64_t{kThreads} * kEach;
  return dim3(static_cast<unsigned>((n + kPerBlock - 1) / kPerBlock));
}

}  // namespace

cudaError_t NarrowCuda(const float* x, std::int64_t n, KvDtype dtype, std::byte* out,
                       cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GPU_LAUNCH_EARLY(NarrowKernel, BlocksFor(n), dim3(kThreads), 0, stream, x, n,
                   dtype == KvDtype::kBF16, out);
  return cudaGetLastError();
}

cudaError_t WidenCuda(const std::byte* x, std::int64_t n, KvDtype dtype, float* out,
                      cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GPU_LAUNCH_EARLY(WidenKernel, BlocksFor(n), dim3(kThreads), 0, stream, x, n,
                   dtype == KvDtype::kBF16, out);
  return cudaGetLastError();
}

}  // namespace penstock::kernels
