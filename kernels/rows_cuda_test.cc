// SPDX-License-Identifier: Apache-2.0
#include "kernels/rows_cuda.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_testing.h"
#include "kernels/elementwise_targets.h"
#include "kernels/linear_testing.h"

namespace penstock::kernels {
namespace {

#if defined(PENSTOCK_REAL_GPU)
constexpr std::int32_t kColsMost = 14336;
constexpr std::int32_t kRowsMost = 300;
#else
constexpr std::int32_t kColsMost = 4200;  // A piece of a row in shared memory, and a second one.
constexpr std::int32_t kRowsMost = 3;
#endif

struct Shape {
  std::int32_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1},   {2, 15},   {1, 16},
                             {3, 33},  {1, 64},   {2, 96},
                             {1, 700}, {1, 4096}, {kRowsMost, kColsMost}};
constexpr float kSizes[] = {1e-42f, 1e-20f, 1.0f, 1e5f, 1e18f};

std::vector<float> Random(std::size_t n, float size, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-size, size);
  std::vector<float> values(n);
  for (float& v : values) v = uniform(random);
  // Blocks of zeros, and of zeros but one.
  for (std::size_t i = 32; i < n && i < 64; ++i) values[i] = i == 40 ? -size : 0;
  return values;
}

// Activations in both forms, on the device, and what the CPU makes of float rows.
class Forms {
 public:
  Forms(std::int32_t rows, std::int32_t cols)
      : rows_(rows),
        cols_(cols),
        blocks_((cols + 31) / 32),
        f32_(Count(cols)),
        q_(Count(blocks_ * 32)),
        scale_(Count(blocks_)),
        sum_(Count(blocks_)) {}

  Activations view() { return {cols_, f32_.data(), q_.data(), scale_.data(), sum_.data()}; }

  void ExpectInt8Of(const std::vector<float>& rows) const {
    std::vector<std::int8_t> q(q_.size());
    std::vector<float> scale(scale_.size());
    std::vector<std::int32_t> sum(sum_.size());
    for (std::int64_t r = 0; r < rows_; ++r) {
      QuantizeRowTargets().front().run(rows.data() + r * cols_, cols_, q.data() + r * blocks_ * 32,
                                       scale.data() + r * blocks_, sum.data() + r * blocks_);
    }
    EXPECT_EQ(q, q_.Get());
    EXPECT_EQ(sum, sum_.Get());
    ExpectSameBits(scale, scale_.Get());
  }
  void ExpectFloats(const std::vector<float>& rows) const { ExpectSameBits(rows, f32_.Get()); }

 private:
  std::size_t Count(std::int32_t per_row) const {
    return static_cast<std::size_t>(rows_) * static_cast<std::size_t>(per_row);
  }

  std::int32_t rows_;
  std::int32_t cols_;
  std::int32_t blocks_;
  DeviceBuffer<float> f32_;
  DeviceBuffer<std::int8_t> q_;
  DeviceBuffer<float> scale_;
  DeviceBuffer<std::int32_t> sum_;
};

template <typename Check>
void ForShapesAndSizes(const Check& check) {
  for (const Shape& s : kShapes) {
    for (const float size : kSizes) {
      SCOPED_TRACE(absl::StrCat("rows=", s.rows, " cols=", s.cols, " size=", size));
      check(s.rows, s.cols, size);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

std::vector<float> Normed(const std::vector<float>& x, const std::vector<float>& w,
                          std::int32_t rows, std::int32_t cols) {
  std::vector<float> y(x.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    kElementwiseScalar.rms_norm(x.data() + r * cols, w.data(), cols, 1e-5f, y.data() + r * cols);
  }
  return y;
}

TEST(RowsCudaTest, QuantizeRowsIsTheScalar) {
  ForShapesAndSizes([](std::int32_t rows, std::int32_t cols, float size) {
    const std::vector<float> x = Random(std::size_t{1} * rows * cols, size, 1);
    const DeviceBuffer<float> device_x(x);
    Forms out(rows, cols);
    ASSERT_TRUE(Ran(QuantizeRowsCuda(device_x.data(), rows, out.view(), nullptr)));
    out.ExpectInt8Of(x);
  });
}

TEST(RowsCudaTest, RmsNormIsTheScalarInEachForm) {
  ForShapesAndSizes([](std::int32_t rows, std::int32_t cols, float size) {
    const std::vector<float> x = Random(std::size_t{1} * rows * cols, size, 2);
    const std::vector<float> w = Random(static_cast<std::size_t>(cols), 1, 3);
    const std::vector<float> want = Normed(x, w, rows, cols);
    const DeviceBuffer<float> device_x(x), device_w(w);
    Forms both(rows, cols), floats(rows, cols), int8(rows, cols);
    ASSERT_TRUE(
        Ran(RmsNormCuda(device_x.data(), device_w.data(), 1e-5f, rows, both.view(), nullptr)));
    both.ExpectFloats(want);
    both.ExpectInt8Of(want);
    const Activations only_floats = {cols, floats.view().f32, nullptr, nullptr, nullptr};
    ASSERT_TRUE(
        Ran(RmsNormCuda(device_x.data(), device_w.data(), 1e-5f, rows, only_floats, nullptr)));
    floats.ExpectFloats(want);
    Activations only_int8 = int8.view();
    only_int8.f32 = nullptr;
    ASSERT_TRUE(
        Ran(RmsNormCuda(device_x.data(), device_w.data(), 1e-5f, rows, only_int8, nullptr)));
    int8.ExpectInt8Of(want);
  });
}

TEST(RowsCudaTest, RmsNormAddIsTheScalar) {
  ForShapesAndSizes([](std::int32_t rows, std::int32_t cols, float size) {
    const std::vector<float> y = Random(std::size_t{1} * rows * cols, size, 4);
    const std::vector<float> w = Random(static_cast<std::size_t>(cols), 1, 5);
    std::vector<float> x = Random(y.size(), 1, 6);
    const DeviceBuffer<float> device_y(y), device_w(w);
    DeviceBuffer<float> device_x(x);
    ASSERT_TRUE(Ran(RmsNormAddCuda(device_y.data(), device_w.data(), 1e-5f, rows, cols,
                                   device_x.data(), nullptr)));
    const std::vector<float> normed = Normed(y, w, rows, cols);
    kElementwiseScalar.add(normed.data(), static_cast<std::int32_t>(x.size()), x.data());
    ExpectSameBits(x, device_x.Get());
  });
}

// Columns from inside a row, at a block's border and off it.
TEST(RowsCudaTest, TakeColumnsIsACopyInEachForm) {
  ForShapesAndSizes([](std::int32_t rows, std::int32_t cols, float size) {
    const std::vector<float> x = Random(std::size_t{1} * rows * cols, size, 9);
    const DeviceBuffer<float> device_x(x);
    for (const std::int32_t first : {0, cols / 3, cols / 2 / 32 * 32}) {
      const std::int32_t taken = (cols - first + 1) / 2;
      std::vector<float> want;
      for (std::int32_t r = 0; r < rows; ++r) {
        const auto from = x.begin() + std::ptrdiff_t{r} * cols + first;
        want.insert(want.end(), from, from + taken);
      }
      Forms both(rows, taken);
      ASSERT_TRUE(Ran(TakeColumnsCuda(device_x.data(), cols, first, rows, both.view(), nullptr)));
      both.ExpectFloats(want);
      both.ExpectInt8Of(want);
    }
  });
}

TEST(RowsCudaTest, SumPartsAddsInOrder) {
  ForShapesAndSizes([](std::int32_t rows, std::int32_t cols, float size) {
    const std::int32_t n = rows * cols;
    for (const std::int32_t count : {1, 2, 3, 8}) {
      const std::vector<float> parts = Random(std::size_t{1} * count * n, size, 10);
      std::vector<float> sum(parts.begin(), parts.begin() + n);
      for (std::int32_t c = 1; c < count; ++c) {
        kElementwiseScalar.add(parts.data() + std::ptrdiff_t{c} * n, n, sum.data());
      }
      std::vector<float> added = Random(sum.size(), 1, 11);
      const DeviceBuffer<float> device_parts(parts);
      DeviceBuffer<float> y(added), fresh(added);
      ASSERT_TRUE(Ran(SumPartsCuda(device_parts.data(), count, n, false, fresh.data(), nullptr)));
      ExpectSameBits(sum, fresh.Get());
      ASSERT_TRUE(Ran(SumPartsCuda(device_parts.data(), count, n, true, y.data(), nullptr)));
      kElementwiseScalar.add(sum.data(), n, added.data());
      ExpectSameBits(added, y.Get());
    }
  });
}

TEST(RowsCudaTest, GateRowsIsTheScalar) {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    SCOPED_TRACE(absl::StrCat("activation ", static_cast<int>(activation)));
    ForShapesAndSizes([activation](std::int32_t rows, std::int32_t cols, float size) {
      std::vector<float> gate = Random(std::size_t{1} * rows * cols, size, 7);
      const std::vector<float> up = Random(gate.size(), 1, 8);
      const DeviceBuffer<float> device_gate(gate), device_up(up);
      Forms out(rows, cols);
      ASSERT_TRUE(Ran(GateRowsCuda(device_gate.data(), device_up.data(), activation, rows,
                                   out.view(), nullptr)));
      kElementwiseScalar.gated_activation(activation, up.data(),
                                          static_cast<std::int32_t>(gate.size()), gate.data());
      out.ExpectFloats(gate);
      if (size < 1e10f) out.ExpectInt8Of(gate);  // Finite.
    });
  }
}

// Where exp turns: its ends, and every magnitude between.
TEST(RowsCudaTest, ActivationsAreTheScalarsAtEveryMagnitude) {
  std::vector<float> gate;
  for (float x = 1e-6f; x < 200; x *= 1.01f) gate.insert(gate.end(), {x, -x});
  for (const float end : {87.3f, 88.37f}) {
    for (float x = end - 1e-4f; x < end + 1e-4f; x = std::nextafter(x, 1e9f)) {
      gate.insert(gate.end(), {x, -x});
    }
  }
  const auto cols = static_cast<std::int32_t>(gate.size());
  const std::vector<float> up(gate.size(), 1);
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    const DeviceBuffer<float> device_gate(gate), device_up(up);
    Forms out(1, cols);
    ASSERT_TRUE(Ran(
        GateRowsCuda(device_gate.data(), device_up.data(), activation, 1, out.view(), nullptr)));
    std::vector<float> want = gate;
    kElementwiseScalar.gated_activation(activation, up.data(), cols, want.data());
    out.ExpectFloats(want);
  }
}

TEST(RowsCudaTest, GatherRowsCopies) {
  const std::vector<float> x = Random(5 * 300, 1, 9);
  const std::vector<std::int32_t> index = {4, 0, 4, 2};
  const DeviceBuffer<float> device_x(x);
  const DeviceBuffer<std::int32_t> device_index(index);
  DeviceBuffer<float> out(index.size() * 300);
  ASSERT_TRUE(
      Ran(GatherRowsCuda(device_x.data(), 300, device_index.data(), 4, out.data(), nullptr)));
  std::vector<float> want;
  for (const std::int32_t i : index) {
    want.insert(want.end(), x.begin() + i * 300, x.begin() + (i + 1) * 300);
  }
  ExpectSameBits(want, out.Get());
}

TEST(RowsCudaTest, EmbedIsUnpackRowForEveryFormat) {
  for (const WeightFormat format : kWeightFormats) {
    for (const Magnitudes magnitudes : {Magnitudes::kUsual, Magnitudes::kExtremeScales}) {
      for (const float scale : {1.0f, 11.3f}) {
        SCOPED_TRACE(absl::StrCat("format ", static_cast<int>(format), " scale=", scale));
        const RandomProduct product(format, 1, 37, 512, magnitudes, 10);
        const PackedMatrix& table = product.matrix();
        const std::vector<std::int32_t> tokens = {36, 0, 15, 16, 36};
        std::vector<float> want(tokens.size() * 512);
        for (std::size_t r = 0; r < tokens.size(); ++r) {
          const std::span<float> row(want.data() + r * 512, 512);
          UnpackRow(table, tokens[r], row);
          if (scale != 1) {
            for (float& v : row) v *= scale;
          }
        }
        const DeviceBuffer<std::byte> data(
            std::span<const std::byte>(table.data, PackedBytes(format, table.rows, table.cols)));
        const DeviceBuffer<std::int32_t> device_tokens(tokens);
        DeviceBuffer<float> x(want.size());
        PackedMatrix device_table = table;
        device_table.data = data.data();
        ASSERT_TRUE(
            Ran(EmbedCuda(device_table, device_tokens.data(), 5, scale, x.data(), nullptr)));
        ASSERT_NO_FATAL_FAILURE(ExpectSameBits(want, x.Get()));
      }
    }
  }
}

// The kernels with barriers and shuffles.
TEST(RowsCudaTest, AllSchedulesGiveTheSame) {
  const std::vector<float> x = Random(2 * 600, 1, 11);
  const std::vector<float> w = Random(600, 1, 12);
  const std::vector<float> want = Normed(x, w, 2, 600);
  const DeviceBuffer<float> device_x(x), device_w(w);
  ForEachSchedule([&] {
    Forms out(2, 600);
    ASSERT_TRUE(Ran(RmsNormCuda(device_x.data(), device_w.data(), 1e-5f, 2, out.view(), nullptr)));
    out.ExpectFloats(want);
    out.ExpectInt8Of(want);
  });
}

TEST(RowsCudaTest, NoRowsTouchNothing) {
  const Activations none;
  EXPECT_TRUE(Ran(RmsNormCuda(nullptr, nullptr, 1e-5f, 0, none, nullptr)));
  EXPECT_TRUE(Ran(RmsNormAddCuda(nullptr, nullptr, 1e-5f, 0, 32, nullptr, nullptr)));
  EXPECT_TRUE(Ran(QuantizeRowsCuda(nullptr, 0, none, nullptr)));
  EXPECT_TRUE(Ran(GateRowsCuda(nullptr, nullptr, Activation::kSilu, 0, none, nullptr)));
  EXPECT_TRUE(Ran(GatherRowsCuda(nullptr, 32, nullptr, 0, nullptr, nullptr)));
  EXPECT_TRUE(Ran(EmbedCuda({}, nullptr, 0, 1, nullptr, nullptr)));
}

}  // namespace
}  // namespace penstock::kernels
