// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu.h"
//
#include <type_traits>

#include "kernels/bf16_cuda.h"
#include "kernels/dense_format.h"
#include "kernels/packed_cuda.h"
#include "kernels/unpack_cuda.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 64;  // Of a thread block: two for each lane of a warp.
constexpr std::int32_t kGridRowsMax = 65535;

// F16 and BF16.
GPU_DEVICE std::uint32_t RoundPair(WeightFormat format, float a, float b) {
  const bool bf16 = format == WeightFormat::kBF16;
  const std::uint32_t low = bf16 ? ToBF16Cuda(a) : gpu::ToF16Saturated(a);
  const std::uint32_t high = bf16 ? ToBF16Cuda(b) : gpu::ToF16Saturated(b);
  return low | high << 16;
}

// Elements `column` and `column` + 1 of a row; the second one only where it is live.
GPU_DEVICE void StorePair(WeightFormat format, std::byte* row, int column, bool both, float a,
                          float b) {
  if (format == WeightFormat::kF32) {
    auto* const out = reinterpret_cast<float*>(row) + column;
    out[0] = a;
    if (both) out[1] = b;
    return;
  }
  auto* const out = reinterpret_cast<std::uint16_t*>(row) + column;
  const std::uint32_t pair = RoundPair(format, a, b);
  if (both) {
    gpu::Store<std::uint32_t>(out, pair);
  } else {
    *out = static_cast<std::uint16_t>(pair);
  }
}

// Thread block (x, y): 64 columns of panel y. One warp per row, two columns per lane: what the 16 rows
// read lies side by side, and each warp writes what lies side by side.
template <WeightFormat format>
GPU_KERNEL(kThreads, 4)
UnpackKernel(const PackedMatrix matrix, std::byte* out, std::int32_t out_stride) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  constexpr WeightFormat dense = DenseFormat(format);
  constexpr int element = dense == WeightFormat::kF32 ? 4 : 2;
  const int thread = static_cast<int>(threadIdx.x);
  const int column = static_cast<int>(blockIdx.x) * kColumns + thread % 32 * 2;
  if (column >= matrix.cols) return;
  const bool both = column + 1 < matrix.cols;
  const int panel = static_cast<int>(blockIdx.y) * kPanelRows;
  GPU_UNROLL(1)
  for (int row = panel + thread / 32; row < panel + kPanelRows; row += kThreads / 32) {
    if (row >= matrix.rows) return;
    const float a = WeightAt(format, matrix, row, column);
    const float b = both ? WeightAt(format, matrix, row, column + 1) : 0;
    StorePair(dense, out + std::int64_t{row} * out_stride * element, column, both, a, b);
  }
}

GPU_DEVICE float ValueAt(const Activations& x, std::int64_t row, int column) {
  if (x.f32 != nullptr) return x.f32[row * x.cols + column];
  const std::int64_t block = row * x.blocks() + column / kQuantBlock;
  return static_cast<float>(x.q[block * kQuantBlock + column % kQuantBlock]) * x.scale[block];
}

// Thread block (x, y): 512 columns of row y. Two columns per thread.
GPU_KERNEL(kThreads, 4)
RoundKernel(const Activations x, WeightFormat format, std::byte* out, std::int32_t out_stride) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const int column = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * 2;
  if (column >= x.cols) return;
  const std::int64_t row = blockIdx.y;
  const bool both = column + 1 < x.cols;
  const float a = ValueAt(x, row, column);
  const float b = both ? ValueAt(x, row, column + 1) : 0;
  StorePair(format, out + row * out_stride * 2, column, both, a, b);
}

unsigned CountOf(std::int32_t n, std::int32_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

template <WeightFormat format>
cudaError_t Unpack(const PackedMatrix& matrix, std::byte* out, std::int32_t out_stride,
                   cudaStream_t stream) {
  GPU_LAUNCH_EARLY(UnpackKernel<format>,
                   dim3(CountOf(matrix.cols, kColumns), CountOf(matrix.rows, kPanelRows)),
                   dim3(kThreads), 0, stream, matrix, out, out_stride);
  return cudaGetLastError();
}

}  // namespace

cudaError_t UnpackRowsCuda(const PackedMatrix& matrix, std::byte* out, std::int32_t out_stride,
                           cudaStream_t stream) {
  if (out_stride < matrix.cols || out_stride % 2 != 0 || matrix.rows > kGridRowsMax * kPanelRows) {
    return cudaErrorInvalidValue;
  }
  if (matrix.rows == 0 || matrix.cols == 0) return cudaSuccess;
  switch (matrix.format) {
#define PENSTOCK_CASE(name) \
  case WeightFormat::name:  \
    return Unpack<WeightFormat::name>(matrix, out, out_stride, stream)
    PENSTOCK_CASE(kF32);
    PENSTOCK_CASE(kF16);
    PENSTOCK_CASE(kBF16);
    PENSTOCK_CASE(kQ4_0);
    PENSTOCK_CASE(kQ4_1);
    PENSTOCK_CASE(kQ5_0);
    PENSTOCK_CASE(kQ5_1);
    PENSTOCK_CASE(kQ8_0);
    PENSTOCK_CASE(kQ2_K);
    PENSTOCK_CASE(kQ3_K);
    PENSTOCK_CASE(kQ4_K);
    PENSTOCK_CASE(kQ5_K);
    PENSTOCK_CASE(kQ6_K);
#undef PENSTOCK_CASE
  }
  return cudaErrorInvalidValue;
}

cudaError_t RoundRowsCuda(const Activations& x, std::int32_t rows, WeightFormat format,
                          std::byte* out, std::int32_t out_stride, cudaStream_t stream) {
  if ((format != WeightFormat::kF16 && format != WeightFormat::kBF16) || out_stride < x.cols ||
      out_stride % 2 != 0) {
    return cudaErrorInvalidValue;
  }
  for (std::int32_t begin = 0; begin < rows; begin += kGridRowsMax) {
    const std::int32_t count = rows - begin < kGridRowsMax ? rows - begin : kGridRowsMax;
    GPU_LAUNCH_EARLY(RoundKernel, dim3(CountOf(x.cols, 2 * kThreads), static_cast<unsigned>(count)),
                     dim3(kThreads), 0, stream, x.From(begin), format,
                     out + std::int64_t{begin} * out_stride * 2, out_stride);
  }
  return cudaGetLastError();
}

}  // namespace penstock::kernels
