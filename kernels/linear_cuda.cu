// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_cuda.h"
#include "kernels/linear_cuda_kernels.h"
#include "kernels/packed_layout.h"
#include "kernels/rows_cuda.h"

namespace penstock::kernels {
namespace linear_cuda {

std::int32_t CutIntoTiles(Products& products, std::int32_t panels) {
  std::int32_t tiles = 0;
  for (std::int32_t i = 0; i < products.count; ++i) {
    Product& product = products.product[i];
    product.tile_begin = tiles;
    tiles += (product.w_rows + panels * kPanelRows - 1) / (panels * kPanelRows);
  }
  return tiles;
}

namespace {

// Only the outputs of `format`.
Products Gather(WeightFormat format, std::span<const LinearOutput> outputs, const Activations& x,
                std::int32_t rows) {
  Products products = {};
  for (const LinearOutput& output : outputs) {
    const PackedMatrix& w = *output.matrix;
    if (w.format != format || w.rows == 0) continue;
    products.product[products.count++] = {w.data, output.bias, output.y, w.rows, 0, output.add};
  }
  products.format = format;
  products.cols = x.cols;
  products.rows = rows;
  products.f32 = x.f32;
  products.q = x.q;
  products.scale = x.scale;
  products.sum = x.sum;
  return products;
}

cudaError_t Multiply(const Products& products, cudaStream_t stream) {
  if (products.count == 0) return cudaSuccess;
  if (KindOf(products.format) == ProductKind::kFloat) {
    return products.rows <= kFloatFewRowsMax ? FloatFewRows(products, stream)
                                             : FloatManyRows(products, stream);
  }
  if (products.rows <= kFewRowsMax) return FewRows(products, stream);
  if (products.rows <= kGroupRowsMax) return GroupRows(products, stream);
  // Wide tiles where they fill a GPU of some hundred SMs twice.
  std::int64_t tiles = 0;
  for (std::int32_t i = 0; i < products.count; ++i) {
    tiles += std::int64_t{(products.product[i].w_rows + 127) / 128} * ((products.rows + 127) / 128);
  }
  return tiles >= 250 ? ManyRowsWide(products, stream) : ManyRows(products, stream);
}

}  // namespace
}  // namespace linear_cuda

cudaError_t LinearCuda(std::span<const LinearOutput> outputs, const Activations& x,
                       std::int32_t rows, cudaStream_t stream) {
  if (outputs.size() > kCudaLinearOutputsMax || rows < 0) return cudaErrorInvalidValue;
  for (const LinearOutput& output : outputs) {
    const bool has_input = output.matrix->takes_int8()
                               ? x.q != nullptr && x.scale != nullptr && x.sum != nullptr
                               : x.f32 != nullptr;
    if (output.matrix->cols != x.cols || (rows > 0 && !has_input)) return cudaErrorInvalidValue;
  }
  if (rows == 0) return cudaSuccess;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const WeightFormat format = outputs[i].matrix->format;
    bool done = false;
    for (std::size_t before = 0; before < i; ++before) {
      done = done || outputs[before].matrix->format == format;
    }
    if (done) continue;
    const cudaError_t error =
        linear_cuda::Multiply(linear_cuda::Gather(format, outputs.subspan(i), x, rows), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t GatedLinearCuda(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                            const PackedMatrix& up, Activation activation, const Activations& out,
                            float* scratch, cudaStream_t stream) {
  if (gate.rows != up.rows || gate.rows != out.cols) return cudaErrorInvalidValue;
  float* gate_y = scratch;
  float* up_y = scratch + std::int64_t{rows} * gate.rows;
  const LinearOutput outputs[] = {{&gate, nullptr, gate_y}, {&up, nullptr, up_y}};
  if (const cudaError_t error = LinearCuda(outputs, x, rows, stream); error != cudaSuccess) {
    return error;
  }
  return GateRowsCuda(gate_y, up_y, activation, rows, out, stream);
}

}  // namespace penstock::kernels
