// SPDX-License-Identifier: Apache-2.0
// The kernels behind LinearCuda, for linear_cuda.cu; one file each. All give the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/activations.h"
#include "kernels/linear_cuda.h"
#include "kernels/packed_matrix.h"

namespace penstock::kernels::linear_cuda {

// Outputs of one format, and their common input, as kernels take them.
struct Product {
  const std::byte* data;
  const float* bias;
  float* y;
  std::int32_t w_rows;
  std::int32_t tile_begin;  // Among the tiles of the launch: tiles of a kernel's own size.
  bool add;
};
struct Products {
  Product product[kCudaLinearOutputsMax];
  std::int32_t count;
  WeightFormat format;
  std::int32_t cols;
  std::int32_t rows;        // Of x.
  const float* f32;         // [rows, cols] for float formats
  const std::int8_t* q;     // [rows, blocks * 32] otherwise
  const float* scale;       // [rows, blocks]
  const std::int32_t* sum;  // [rows, blocks]
};

// run(std::integral_constant of the format), for an int8 format.
template <typename Run>
cudaError_t WithInt8Format(WeightFormat format, const Run& run) {
  switch (format) {
#define PENSTOCK_CASE(name) \
  case WeightFormat::name:  \
    return run(std::integral_constant<WeightFormat, WeightFormat::name>())
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
    default:
      return cudaErrorInvalidValue;
  }
}

// The same for F32, F16 and BF16.
template <typename Run>
cudaError_t WithFloatFormat(WeightFormat format, const Run& run) {
  switch (format) {
    case WeightFormat::kF32:
      return run(std::integral_constant<WeightFormat, WeightFormat::kF32>());
    case WeightFormat::kF16:
      return run(std::integral_constant<WeightFormat, WeightFormat::kF16>());
    case WeightFormat::kBF16:
      return run(std::integral_constant<WeightFormat, WeightFormat::kBF16>());
    default:
      return cudaErrorInvalidValue;
  }
}

// Fills tile_begin for tiles of `panels` panels and returns how many tiles there are.
std::int32_t CutIntoTiles(Products& products, std::int32_t panels);

inline constexpr std::int32_t kFewRowsMax = 8;
inline constexpr std::int32_t kGroupRowsMax = 16;
inline constexpr std::int32_t kFloatFewRowsMax = 16;

// Int8 formats, rows <= kFewRowsMax: reads the weights once, at the speed of memory. Nine to
// sixteen rows take two calls where panels are few.
cudaError_t FewRows(Products products, cudaStream_t stream);
// Int8 formats, any rows, sixteen at a time; for nine to sixteen where panels are many.
cudaError_t GroupRows(Products products, cudaStream_t stream);
// Int8 formats, any rows: tiles of 64 x 64 outputs on tensor cores.
cudaError_t ManyRows(Products products, cudaStream_t stream);
// The same with tiles of kWidePanels panels and kWideRows rows; of Q2_K as ManyRows.
inline constexpr std::int32_t kWidePanels = 8;
inline constexpr std::int32_t kWideRows = 128;
cudaError_t ManyRowsWide(Products products, cudaStream_t stream);
// F32, F16, BF16, any rows; for up to some 16.
cudaError_t FloatFewRows(Products products, cudaStream_t stream);
// F32, F16, BF16, any rows: tiles of 64 x 64 outputs.
cudaError_t FloatManyRows(Products products, cudaStream_t stream);

}  // namespace penstock::kernels::linear_cuda
