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

// Tiles with which large ones are faster than small ones, and groups than rows by eights: about as
// many, and three times as many, as an H100 has SMs.
constexpr std::int64_t kWideTilesMin = 100;
constexpr std::int64_t kTilesOfGroups = 400;

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

// The same for rows [begin, begin + rows) of x alone; int8 formats.
Products Slice(Products products, std::int32_t begin, std::int32_t rows) {
  const std::int64_t blocks = products.cols / kQuantBlock;
  products.q += begin * blocks * kQuantBlock;
  products.scale += begin * blocks;
  products.sum += begin * blocks;
  for (std::int32_t i = 0; i < products.count; ++i) {
    products.product[i].y += std::int64_t{begin} * products.product[i].w_rows;
  }
  products.rows = rows;
  return products;
}

// Tiles of `panels` panels and `rows` rows of x.
std::int64_t CountTiles(Products products, std::int32_t panels, std::int32_t rows) {
  return std::int64_t{CutIntoTiles(products, panels)} * ((products.rows + rows - 1) / rows);
}

cudaError_t Multiply(const Products& products, cudaStream_t stream) {
  if (products.count == 0) return cudaSuccess;
  if (KindOf(products.format) == ProductKind::kFloat) {
    return products.rows <= kFloatFewRowsMax ? FloatFewRows(products, stream)
                                             : FloatManyRows(products, stream);
  }
  if (products.rows <= kFewRowsMax) return FewRows(products, stream);
  if (products.rows <= kGroupRowsMax) {
    if (CountTiles(products, 1, kGroupRowsMax) > kTilesOfGroups) return GroupRows(products, stream);
    // Few panels leave a GPU idle, but for kernels that share the columns out, too; the second one
    // finds the weights in the L2 cache.
    const cudaError_t error = FewRows(Slice(products, 0, kFewRowsMax), stream);
    if (error != cudaSuccess) return error;
    return FewRows(Slice(products, kFewRowsMax, products.rows - kFewRowsMax), stream);
  }
  return CountTiles(products, kWidePanels, kWideRows) >= kWideTilesMin
             ? ManyRowsWide(products, stream)
             : ManyRows(products, stream);
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
