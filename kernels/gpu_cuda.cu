// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu.h"
#include "kernels/gpu_cuda.h"

namespace penstock::kernels {
namespace {

using namespace gpu;

// One thread per element.
GPU_KERNEL(128, 1)
FloatKernel(const float* a, const float* b, const float* c, std::int32_t n, GpuFloatResults* out) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  GpuFloatResults r;
  r.fma = Fma(a[i], b[i], c[i]);
  r.square_root = Sqrt(a[i]);
  r.quotient = Divide(a[i], b[i]);
  r.product = a[i] * b[i];
  r.sum = a[i] + b[i];
  r.multiplied_then_added = a[i] * b[i] + c[i];
  const std::uint32_t bits = BitsFromFloat(a[i]);
  r.from_f16 = FromF16(static_cast<std::uint16_t>(bits >> 16));
  r.rounded = RoundToInt(a[i]);
  r.dot4 = Dot4(static_cast<int>(bits), static_cast<int>(BitsFromFloat(b[i])),
                static_cast<int>(BitsFromFloat(c[i]) & 0xffff));
  r.picked_bytes = PickBytes(bits, BitsFromFloat(b[i]), BitsFromFloat(c[i]) & 0x7777);
  r.f16_saturated = ToF16Saturated(FloatFromBits(bits));
  out[i] = r;
}

GPU_TABLE(GpuSquares, kSquares) = GpuSquares::Make();

// As many warps as there are blocks, each lane for bit `lane` of the warp's square.
GPU_KERNEL(32, 1) AtomicKernel(GpuAtomicResults* out) {
  const std::uint32_t bit = kSquares.of[blockIdx.x] & 1u << threadIdx.x;
  AtomicXor(&out->xor_of, bit);
  AtomicAdd(&out->sum, bit);
  AtomicAdd64(&out->sum64, std::uint64_t{bit} << 40);
}

// One warp.
GPU_KERNEL(32, 1) WarpKernel(const std::int32_t* values, GpuWarpResults* out) {
  const std::int32_t value = values[threadIdx.x];
  GpuWarpResults r;
  r.from_lane_5 = Shfl(value, 5);
  r.from_other_half = ShflXor(value, 16);
  r.reversed = Shfl(static_cast<double>(value), 31 - static_cast<int>(threadIdx.x));
  r.picked = Pick(value, 7 * threadIdx.x + 3);
  r.odd_values = Ballot(value % 2 != 0);
  r.lowest_bit = LowestBit(static_cast<std::uint32_t>(value));
  r.bits = CountBits(static_cast<std::uint32_t>(value));
  out[threadIdx.x] = r;
}

GPU_DEVICE std::uint32_t Word(const std::int8_t* p) { return Load<std::uint32_t>(p); }

// One warp makes the product.
GPU_KERNEL(32, 1)
MmaKernel(const std::int8_t* a, const std::int8_t* b, const std::int32_t* c, std::int32_t columns,
          std::int32_t* d) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  int sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  const std::int8_t* low = a + g * columns + 4 * t;
  const std::int8_t* high = low + 8 * columns;
  const std::int8_t* column = b + g * columns + 4 * t;
  if (columns == 32) {
    const std::uint32_t fragment[4] = {Word(low), Word(high), Word(low + 16), Word(high + 16)};
    MmaInt8(sum, fragment, Word(column), Word(column + 16));
  } else {
    MmaInt8Half(sum, Word(low), Word(high), Word(column));
  }
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

constexpr int kCopyRows = 64;

// One block copies all rows, one row per thread and step; the next step's copies are on their way
// while this one's rows are written, by another thread than the one that copied them.
GPU_KERNEL(kCopyRows, 1)
CopyKernel(const float* x, std::int32_t n, std::int32_t live, float* y) {
  GPU_DYNAMIC_SHARED(bytes);
  auto* stages = reinterpret_cast<float4*>(bytes);  // [2, kCopyRows]
  const int thread = static_cast<int>(threadIdx.x);
  const int steps = (n + kCopyRows - 1) / kCopyRows;
  const auto begin = [&](int step) {
    const int row = step * kCopyRows + thread;
    if (step < steps) {
      CopyAsync16(&stages[step % 2 * kCopyRows + thread], x + 4 * row, row < n && row < live);
    }
    CopyAsyncCommit();
  };
  begin(0);
  for (int step = 0; step < steps; ++step) {
    begin(step + 1);
    CopyAsyncWait<1>();
    SyncThreads();
    const int other = kCopyRows - 1 - thread;
    const int row = step * kCopyRows + other;
    if (row < n) Store(y + 4 * row, Load<float4>(&stages[step % 2 * kCopyRows + other]));
    SyncThreads();
  }
}

}  // namespace

cudaError_t GpuFloatCuda(const float* a, const float* b, const float* c, std::int32_t n,
                         GpuFloatResults* out, cudaStream_t stream) {
  GPU_LAUNCH(FloatKernel, dim3(static_cast<unsigned>(n + 127) / 128), dim3(128), 0, stream, a, b, c,
             n, out);
  return cudaGetLastError();
}

cudaError_t GpuWarpCuda(const std::int32_t* values, GpuWarpResults* out, cudaStream_t stream) {
  GPU_LAUNCH(WarpKernel, dim3(1), dim3(32), 0, stream, values, out);
  return cudaGetLastError();
}

cudaError_t GpuAtomicCuda(GpuAtomicResults* out, cudaStream_t stream) {
  GPU_LAUNCH(AtomicKernel, dim3(GpuSquares::kCount), dim3(32), 0, stream, out);
  return cudaGetLastError();
}

cudaError_t GpuMmaCuda(const std::int8_t* a, const std::int8_t* b, const std::int32_t* c,
                       std::int32_t columns, std::int32_t* d, cudaStream_t stream) {
  GPU_LAUNCH(MmaKernel, dim3(1), dim3(32), 0, stream, a, b, c, columns, d);
  return cudaGetLastError();
}

cudaError_t GpuCopyCuda(const float* x, std::int32_t n, std::int32_t live, float* y,
                        cudaStream_t stream) {
  GPU_LAUNCH(CopyKernel, dim3(1), dim3(kCopyRows), 2 * kCopyRows * sizeof(float4), stream, x, n,
             live, y);
  return cudaGetLastError();
}

}  // namespace penstock::kernels
