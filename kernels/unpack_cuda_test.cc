// SPDX-License-Identifier: Apache-2.0
#include "kernels/unpack_cuda.h"

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "kernels/cuda_testing.h"
#include "kernels/dense_format.h"
#include "kernels/linear_testing.h"

namespace penstock::kernels {
namespace {

std::size_t ElementBytes(WeightFormat dense) { return dense == WeightFormat::kF32 ? 4 : 2; }

// One of a row's elements, as bytes.
void Append(WeightFormat dense, float value, std::vector<std::byte>& to) {
  const F16 half = ToF16Saturated(value);
  const BF16 brain = ToBF16(value);
  const void* from = &value;
  if (dense == WeightFormat::kF16) from = &half;
  if (dense == WeightFormat::kBF16) from = &brain;
  const auto* const bytes = static_cast<const std::byte*>(from);
  to.insert(to.end(), bytes, bytes + ElementBytes(dense));
}

// Rows with what nobody wrote between them.
std::vector<std::byte> Dense(WeightFormat dense, const std::vector<std::vector<float>>& rows,
                             std::size_t stride) {
  std::vector<std::byte> all;
  for (const std::vector<float>& row : rows) {
    for (const float value : row) Append(dense, value, all);
    all.resize(all.size() + (stride - row.size()) * ElementBytes(dense), std::byte{0xff});
  }
  return all;
}

std::vector<std::vector<float>> Unpacked(const PackedMatrix& matrix) {
  std::vector<std::vector<float>> rows;
  for (std::int32_t r = 0; r < matrix.rows; ++r) {
    rows.emplace_back(static_cast<std::size_t>(matrix.cols));
    UnpackRow(matrix, r, rows.back());
  }
  return rows;
}

TEST(UnpackCudaTest, RowsAreUnpackRowsOfEveryFormat) {
  for (const WeightFormat format : kWeightFormats) {
    const WeightFormat dense = DenseFormat(format);
    for (const Magnitudes magnitudes : {Magnitudes::kUsual, Magnitudes::kExtremeScales}) {
      for (const std::int32_t rows : {1, 16, 37}) {
        const std::int32_t block = Info(format).block;
        for (const std::int32_t cols : {block == 1 ? 1 : block, block == 1 ? 133 : 3 * block}) {
          SCOPED_TRACE(
              absl::StrCat(std::string(Info(format).name), " rows=", rows, " cols=", cols));
          const RandomProduct product(format, 1, rows, cols, magnitudes, 5);
          const PackedMatrix& matrix = product.matrix();
          const std::int32_t stride = (cols + 7) / 8 * 8 + 8;
          const auto want = Dense(dense, Unpacked(matrix), static_cast<std::size_t>(stride));
          const DeviceBuffer<std::byte> data(
              std::span<const std::byte>(matrix.data, PackedBytes(format, rows, cols)));
          DeviceBuffer<std::byte> out(want.size());
          PackedMatrix on_device = matrix;
          on_device.data = data.data();
          ASSERT_TRUE(Ran(UnpackRowsCuda(on_device, out.data(), stride, nullptr)));
          ASSERT_EQ(out.Get(), want);
        }
      }
    }
  }
}

TEST(UnpackCudaTest, RoundsActivationsInBothForms) {
  for (const std::int32_t cols : {1, 31, 64, 1030}) {
    for (const WeightFormat format : {WeightFormat::kF16, WeightFormat::kBF16}) {
      SCOPED_TRACE(absl::StrCat("cols=", cols, " format=", static_cast<int>(format)));
      constexpr std::int32_t kRows = 3;
      const auto n = static_cast<std::size_t>(kRows * cols);
      std::vector<float> x(n);
      for (std::size_t i = 0; i < n; ++i) {  // Some beyond F16, some that are a tie.
        x[i] = i % 7 == 0 ? 1e6f : static_cast<float>(i) * 0.37f - 20.0f + 1.0f / 2048;
      }
      Activations shape = {.cols = cols};
      const auto blocks = static_cast<std::size_t>(shape.blocks());
      std::vector<std::int8_t> q(kRows * blocks * 32);
      std::vector<float> scale(kRows * blocks);
      std::vector<std::int32_t> sum(kRows * blocks);
      std::vector<std::vector<float>> floats, levels;
      for (std::size_t r = 0; r < kRows; ++r) {
        const float* const row = x.data() + r * static_cast<std::size_t>(cols);
        QuantizeRow(row, cols, &q[r * blocks * 32], &scale[r * blocks], &sum[r * blocks]);
        floats.emplace_back(row, row + cols);
        levels.emplace_back();
        for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
          levels.back().push_back(static_cast<float>(q[r * blocks * 32 + c]) *
                                  scale[r * blocks + c / 32]);
        }
      }
      const std::int32_t stride = (cols + 1) / 2 * 2 + 6;
      DeviceBuffer<float> device_x(x), device_scale(scale);
      DeviceBuffer<std::int8_t> device_q(q);
      DeviceBuffer<std::byte> out(static_cast<std::size_t>(kRows * stride) * 2);
      Activations in = {.cols = cols, .q = device_q.data(), .scale = device_scale.data()};
      ASSERT_TRUE(Ran(RoundRowsCuda(in, kRows, format, out.data(), stride, nullptr)));
      ASSERT_EQ(out.Get(), Dense(format, levels, static_cast<std::size_t>(stride)));
      out.Poison();
      in.f32 = device_x.data();  // Which is taken where it is there.
      ASSERT_TRUE(Ran(RoundRowsCuda(in, kRows, format, out.data(), stride, nullptr)));
      ASSERT_EQ(out.Get(), Dense(format, floats, static_cast<std::size_t>(stride)));
    }
  }
}

TEST(UnpackCudaTest, RefusesWhatDoesNotFit) {
  DeviceBuffer<std::byte> out(64);
  const PackedMatrix matrix = {.format = WeightFormat::kF16, .rows = 1, .cols = 8};
  const Activations x = {.cols = 8};
  for (const std::int32_t stride : {6, 9}) {
    EXPECT_EQ(UnpackRowsCuda(matrix, out.data(), stride, nullptr), cudaErrorInvalidValue);
    EXPECT_EQ(RoundRowsCuda(x, 1, WeightFormat::kF16, out.data(), stride, nullptr),
              cudaErrorInvalidValue);
  }
  EXPECT_EQ(RoundRowsCuda(x, 1, WeightFormat::kF32, out.data(), 8, nullptr), cudaErrorInvalidValue);
  EXPECT_TRUE(Ran(RoundRowsCuda(x, 0, WeightFormat::kF16, out.data(), 8, nullptr)));
}

}  // namespace
}  // namespace penstock::kernels
