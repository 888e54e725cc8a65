// SPDX-License-Identifier: Apache-2.0
#include "engine/self_check.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/status.h"

namespace penstock::engine {
namespace {

using kernels::Activations;
using kernels::PackedMatrix;

constexpr std::int32_t kMatrixRows = 128;
constexpr std::uint32_t kSeed = 1;

// Of each format and number of columns, one.
std::vector<PackedMatrix> Kinds(const Weights& weights) {
  std::vector<PackedMatrix> kinds;
  std::set<std::pair<kernels::WeightFormat, std::int32_t>> seen;
  const auto add = [&](PackedMatrix matrix) {
    if (matrix.data == nullptr || !seen.emplace(matrix.format, matrix.cols).second) return;
    matrix.rows = std::min(matrix.rows, kMatrixRows);
    kinds.push_back(matrix);
  };
  for (const LayerWeights& layer : weights.layers) {
    for (const PackedMatrix* const matrix :
         {&layer.q, &layer.k, &layer.v, &layer.gate, &layer.up}) {
      add(*matrix);
    }
    for (const PackedMatrix& matrix : layer.o) add(matrix);
    for (const PackedMatrix& matrix : layer.down) add(matrix);
  }
  add(weights.head);
  return kinds;
}

// Device memory of batches of up to kSelfCheckRows.back() rows.
class Batch {
 public:
  static absl::StatusOr<Batch> Make(Device& device, const PackedMatrix& matrix) {
    constexpr std::size_t kRows = kSelfCheckRows.back();
    Batch batch;
    const Activations shape = {.cols = matrix.cols};
    const std::size_t floats = kRows * static_cast<std::size_t>(matrix.cols);
    const std::size_t blocks = kRows * static_cast<std::size_t>(shape.blocks());
    ASSIGN_OR_RETURN(batch.x_, device.Allocate(floats * sizeof(float)));
    ASSIGN_OR_RETURN(batch.taken_, device.Allocate(floats * sizeof(float)));
    ASSIGN_OR_RETURN(batch.q_, device.Allocate(blocks * 32));
    ASSIGN_OR_RETURN(batch.scale_, device.Allocate(blocks * sizeof(float)));
    ASSIGN_OR_RETURN(batch.sum_, device.Allocate(blocks * sizeof(std::int32_t)));
    ASSIGN_OR_RETURN(
        batch.y_, device.Allocate(kRows * sizeof(float) * static_cast<std::size_t>(matrix.rows)));
    batch.matrix_ = matrix;
    return batch;
  }

  // y of the first and the last of `rows` rows, which are the same, among others. [2, matrix rows]
  absl::StatusOr<std::vector<float>> Run(kernels::Ops& ops, std::int32_t rows) {
    const auto cols = static_cast<std::size_t>(matrix_.cols);
    const auto last = static_cast<std::size_t>(rows - 1);
    std::mt19937 random(kSeed);
    std::vector<float> x(static_cast<std::size_t>(rows) * cols);
    for (float& value : x) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    std::copy_n(x.begin(), cols, x.begin() + static_cast<std::ptrdiff_t>(last * cols));
    Stream& stream = ops.stream();
    stream.Copy(x_->data(), reinterpret_cast<const std::byte*>(x.data()), x.size() * sizeof(float));

    Activations in = {.cols = matrix_.cols};
    if (matrix_.takes_int8()) {
      in.q = reinterpret_cast<std::int8_t*>(q_->data());
      in.scale = At(scale_);
      in.sum = reinterpret_cast<std::int32_t*>(sum_->data());
    } else {
      in.f32 = At(taken_);
    }
    ops.TakeColumns(At(x_), matrix_.cols, 0, rows, in);
    const kernels::LinearOutput out[] = {{.matrix = &matrix_, .y = At(y_)}};
    ops.Linear(in, rows, out);
    const auto width = static_cast<std::size_t>(matrix_.rows);
    std::vector<float> y(2 * width);
    stream.Copy(reinterpret_cast<std::byte*>(y.data()), y_->data(), width * sizeof(float));
    stream.Copy(reinterpret_cast<std::byte*>(y.data() + width),
                y_->data() + last * width * sizeof(float), width * sizeof(float));
    RETURN_IF_ERROR(stream.Synchronize());
    return y;
  }

 private:
  static float* At(const std::unique_ptr<DeviceMemory>& memory) {
    return reinterpret_cast<float*>(memory->data());
  }

  PackedMatrix matrix_;
  // [rows, cols], as floats and as Activations has them.
  std::unique_ptr<DeviceMemory> x_, taken_, q_, scale_, sum_;
  std::unique_ptr<DeviceMemory> y_;  // [rows, matrix rows]
};

absl::Status CheckMatrix(Device& device, kernels::Ops& ops, const PackedMatrix& matrix) {
  ASSIGN_OR_RETURN(Batch batch, Batch::Make(device, matrix));
  std::vector<float> alone;
  const auto width = static_cast<std::size_t>(matrix.rows);
  for (const std::int32_t rows : kSelfCheckRows) {
    ASSIGN_OR_RETURN(const std::vector<float> y, batch.Run(ops, rows));
    if (alone.empty()) alone.assign(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(width));
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto want = std::bit_cast<std::uint32_t>(alone[i % width]);
      const auto got = std::bit_cast<std::uint32_t>(y[i]);
      if (got == want) continue;
      return absl::FailedPreconditionError(absl::StrFormat(
          "%s gives a row other bits in a batch than alone: column %d of a product with a matrix "
          "of %d columns in %s is %.9g (%08x) as row %d of %d, %.9g (%08x) alone; its answers "
          "would "
          "depend on who else asks",
          device.Describe(), i % width, matrix.cols, std::string(kernels::Info(matrix.format).name),
          y[i], got, i < width ? 0 : rows - 1, rows, alone[i % width], want));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRowsAlike(Device& device, kernels::Ops& ops, const Weights& weights) {
  for (const PackedMatrix& matrix : Kinds(weights)) {
    RETURN_IF_ERROR(CheckMatrix(device, ops, matrix));
  }
  return absl::OkStatus();
}

}  // namespace penstock::engine
