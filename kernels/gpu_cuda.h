// SPDX-License-Identifier: Apache-2.0
// Launches of each function of kernels/gpu.h by itself, so that a test sees that it does the same
// for both compilers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace penstock::kernels {

// out[i]: what each function makes of (a[i], b[i], c[i]), as bits. All are [n], on the device.
struct GpuFloatResults {
  float fma, square_root, quotient, product, sum, multiplied_then_added, from_f16;
  std::int32_t rounded, dot4;
  std::uint32_t f16_saturated, picked_bytes;
};
cudaError_t GpuFloatCuda(const float* a, const float* b, const float* c, std::int32_t n,
                         GpuFloatResults* out, cudaStream_t stream);

// One warp; all are [32], on the device.
struct GpuWarpResults {
  std::int32_t from_lane_5, from_other_half;
  std::int32_t picked;  // Lane i: that of index 7 i + 3.
  double reversed;
  std::uint32_t odd_values;        // Ballot.
  std::uint32_t lowest_bit, bits;  // Of the value's.
};
cudaError_t GpuWarpCuda(const std::int32_t* values, GpuWarpResults* out, cudaStream_t stream);

// out->xor_of ^= of[0] ^ of[1] ^ ..., a block for each and a thread for each bit; the sums += those
// bits, 40 further left for sum64. On the device.
struct GpuAtomicResults {
  std::uint64_t sum64;
  std::uint32_t xor_of, sum;
};
struct GpuSquares {
  static constexpr unsigned kCount = 40;
  std::uint32_t of[kCount];
  static constexpr GpuSquares Make() {
    GpuSquares squares{};
    for (std::uint32_t i = 0; i < kCount; ++i) squares.of[i] = i * i;
    return squares;
  }
};
cudaError_t GpuAtomicCuda(GpuAtomicResults* out, cudaStream_t stream);

// d [16, 8] = c [16, 8] + a [16, columns] * b [columns, 8] with columns 32 or 16, by one warp. a: row
// after row; b: column after column; c and d: row after row.
cudaError_t GpuMmaCuda(const std::int8_t* a, const std::int8_t* b, const std::int32_t* c,
                       std::int32_t columns, std::int32_t* d, cudaStream_t stream);

// Copies x to y, both [n, 4], block by block through two stages of asynchronous copies; rows from
// `live` on become zeros.
cudaError_t GpuCopyCuda(const float* x, std::int32_t n, std::int32_t live, float* y,
                        cudaStream_t stream);

}  // namespace penstock::kernels
