// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iostream>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "base/status.h"

namespace penstock::kernels {
namespace {

constexpr WeightFormat kAll[] = {WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16,
                                 WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ5_0,
                                 WeightFormat::kQ5_1, WeightFormat::kQ8_0, WeightFormat::kQ2_K,
                                 WeightFormat::kQ3_K, WeightFormat::kQ4_K, WeightFormat::kQ5_K,
                                 WeightFormat::kQ6_K};

// What the numbers look like.
enum class Magnitudes {
  kUsual,
  kLargest,   // Every level, sub-scale and |q| at its largest, scales at 65504: overflows show.
  kSmallest,  // The other end of the levels, and all q = -127.
  kExtremeScales,  // f16 scales from subnormal to 65504, activation scales of every size.
};

// Where the f16 fields of a block lie, so that random bytes can be given sane scales.
std::vector<int> F16Offsets(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ4_0:
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ8_0:
      return {0};
    case WeightFormat::kQ4_1:
    case WeightFormat::kQ5_1:
    case WeightFormat::kQ4_K:
    case WeightFormat::kQ5_K:
      return {0, 2};
    case WeightFormat::kQ2_K:
      return {80, 82};
    case WeightFormat::kQ3_K:
      return {108};
    case WeightFormat::kQ6_K:
      return {208};
    default:
      return {};
  }
}

class Case {
 public:
  Case(WeightFormat format, std::int32_t rows, std::int32_t weight_rows, std::int32_t cols,
       Magnitudes magnitudes, std::uint32_t seed)
      : random_(seed), magnitudes_(magnitudes), rows_(rows) {
    matrix_ = {format, weight_rows, cols, nullptr};
    MakeWeights();
    MakeActivations();
  }

  std::vector<float> Run(MultiplyPanelsFn run) const {
    return Run(run, 0, (matrix_.rows + kPanelRows - 1) / kPanelRows);
  }
  // Outputs that are not computed stay at kUntouched.
  std::vector<float> Run(MultiplyPanelsFn run, std::int32_t panel_begin,
                         std::int32_t panel_end) const {
    std::vector<float> y(static_cast<std::size_t>(rows_) * y_stride(), kUntouched);
    run(matrix_, x_, rows_, panel_begin, panel_end, y.data(), y_stride());
    return y;
  }

  // The product of the dequantized weights and activations, and the sum of its terms' magnitudes.
  std::pair<double, double> Exact(std::int32_t r, std::int32_t n) const {
    std::vector<float> w(matrix_.cols);
    UnpackRow(matrix_, n, w);
    const Activations x = x_.From(r);
    double sum = 0;
    double magnitude = 0;
    for (std::int32_t k = 0; k < matrix_.cols; ++k) {
      const double v = matrix_.takes_int8() ? double{x.q[k] * 1.0} * x.scale[k / 32] : x.f32[k];
      sum += v * w[k];
      // Levels and minima cancel inside a weight, so the terms are larger than the weight.
      magnitude += std::abs(v) * (std::abs(w[k]) + largest_);
    }
    return {sum, magnitude};
  }

  // One row alone: must give the same bits as in the batch.
  std::vector<float> RunRow(MultiplyPanelsFn run, std::int32_t r) const {
    std::vector<float> y(y_stride(), kUntouched);
    run(matrix_, x_.From(r), 1, 0, (matrix_.rows + kPanelRows - 1) / kPanelRows, y.data(),
        y_stride());
    return y;
  }

  std::int64_t y_stride() const { return matrix_.rows + 3; }
  std::int32_t rows() const { return rows_; }
  const PackedMatrix& matrix() const { return matrix_; }

  static constexpr float kUntouched = -12345.0f;

 private:
  float RandomScale() {
    switch (magnitudes_) {
      case Magnitudes::kUsual:
        return std::uniform_real_distribution<float>(-0.1f, 0.1f)(random_);
      case Magnitudes::kExtremeScales: {
        constexpr float kScales[] = {0.0f,     -0.0f, 0x1p-24f,  -0x1p-24f, 1023 * 0x1p-24f,
                                     0x1p-14f, 1.0f,  -65504.0f, 65504.0f,  0.333f};
        return kScales[random_() % std::size(kScales)];
      }
      default:
        return 65504.0f;
    }
  }

  void MakeWeights() {
    const WeightFormat format = matrix_.format;
    const WeightFormatInfo& info = Info(format);
    std::vector<std::byte> file(BytesOf(format, matrix_.rows, matrix_.cols));
    if (info.block == 1) {
      MakeFloatWeights(file);
    } else {
      for (std::byte& b : file) {
        b = magnitudes_ == Magnitudes::kLargest    ? std::byte{0xff}
            : magnitudes_ == Magnitudes::kSmallest ? std::byte{0x00}
                                                   : static_cast<std::byte>(random_());
      }
      for (std::size_t at = 0; at < file.size(); at += info.bytes) {
        if (format == WeightFormat::kQ8_0 && magnitudes_ != Magnitudes::kUsual) {
          const int level = magnitudes_ == Magnitudes::kLargest ? 127 : -128;
          std::memset(file.data() + at + 2, level, 32);
        }
        for (const int offset : F16Offsets(format)) {
          const F16 scale = ToF16(RandomScale());
          std::memcpy(file.data() + at + offset, &scale, sizeof(scale));
        }
      }
    }
    storage_.assign(PackedBytes(format, matrix_.rows, matrix_.cols) + 64, std::byte{0});
    auto* aligned = reinterpret_cast<std::byte*>(
        (reinterpret_cast<std::uintptr_t>(storage_.data()) + 63) / 64 * 64);
    PackRows(format, matrix_.rows, matrix_.cols, 0, file, aligned);
    matrix_.data = aligned;
    std::vector<float> row(matrix_.cols);
    for (std::int32_t n = 0; n < matrix_.rows; ++n) {
      UnpackRow(matrix_, n, row);
      for (const float w : row) largest_ = std::max(largest_, std::abs(double{w}));
    }
  }

  void MakeFloatWeights(std::vector<std::byte>& file) {
    const std::size_t bytes = Info(matrix_.format).bytes;
    for (std::size_t at = 0; at < file.size(); at += bytes) {
      const float value = RandomScale();
      const F16 half = ToF16(value);
      const BF16 brain = ToBF16(value);
      const void* from = &value;
      if (matrix_.format == WeightFormat::kF16) from = &half;
      if (matrix_.format == WeightFormat::kBF16) from = &brain;
      std::memcpy(file.data() + at, from, bytes);
    }
  }

  void MakeActivations() {
    x_.cols = matrix_.cols;
    const std::int32_t blocks = x_.blocks();
    f32_.resize(static_cast<std::size_t>(rows_) * matrix_.cols);
    q_.resize(static_cast<std::size_t>(rows_) * blocks * 32);
    scale_.resize(static_cast<std::size_t>(rows_) * blocks);
    sum_.resize(scale_.size());
    for (float& f : f32_) f = std::normal_distribution<float>(0, 1)(random_);
    for (std::int8_t& q : q_) {
      q = magnitudes_ == Magnitudes::kLargest    ? std::int8_t{127}
          : magnitudes_ == Magnitudes::kSmallest ? std::int8_t{-127}
                                                 : static_cast<std::int8_t>(random_() % 255 - 127);
    }
    for (std::size_t b = 0; b < scale_.size(); ++b) {
      constexpr float kScales[] = {0.0f, 1.2e-38f, 1e-10f, 1.0f, 1e5f, 1e20f};
      scale_[b] = magnitudes_ == Magnitudes::kExtremeScales
                      ? kScales[random_() % std::size(kScales)]
                      : std::uniform_real_distribution<float>(0.001f, 0.1f)(random_);
      for (int c = 0; c < 32; ++c) sum_[b] += q_[b * 32 + c];
    }
    x_.f32 = f32_.data();
    x_.q = q_.data();
    x_.scale = scale_.data();
    x_.sum = sum_.data();
  }

  std::mt19937 random_;
  Magnitudes magnitudes_;
  std::int32_t rows_;
  PackedMatrix matrix_;
  double largest_ = 0;
  std::vector<std::byte> storage_;
  std::vector<float> f32_;
  std::vector<std::int8_t> q_;
  std::vector<float> scale_;
  std::vector<std::int32_t> sum_;
  Activations x_;
};

void ExpectSameBits(const std::vector<float>& want, const std::vector<float>& got) {
  ASSERT_EQ(want.size(), got.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(want[i]), std::bit_cast<std::uint32_t>(got[i]))
        << "at " << i << ": " << want[i] << " vs " << got[i];
  }
}

TEST(LinearTest, PrintsItsTargets) {
  ASSERT_FALSE(MultiplyPanelsTargets().empty());
  EXPECT_EQ(MultiplyPanelsTargets().front().name, "scalar");
  for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
    std::cout << "MultiplyPanels runs here as " << target.name << "\n";
  }
}

class LinearFormatTest : public testing::TestWithParam<WeightFormat> {
 protected:
  std::int32_t block() const { return Info(GetParam()).block; }
};

TEST_P(LinearFormatTest, ScalarIsTheExactProductWithinRounding) {
  for (const std::int32_t blocks : {1, 3}) {
    const std::int32_t cols = block() == 1 ? 50 * blocks + 1 : block() * blocks;
    const Case c(GetParam(), 3, 21, cols, Magnitudes::kUsual, 5);
    const std::vector<float> y = c.Run(MultiplyPanelsTargets().front().run);
    for (std::int32_t r = 0; r < 3; ++r) {
      for (std::int32_t n = 0; n < 21; ++n) {
        const auto [want, magnitude] = c.Exact(r, n);
        // Each of at most cols roundings loses 2^-24 of a partial sum no larger than `magnitude`.
        EXPECT_NEAR(y[r * c.y_stride() + n], want, magnitude * cols * 0x1p-24)
            << "row " << r << " weight row " << n;
      }
    }
  }
}

TEST_P(LinearFormatTest, EveryTargetHasTheBitsOfTheScalar) {
  std::vector<std::int32_t> row_counts;
  for (std::int32_t r = 1; r <= 20; ++r) row_counts.push_back(r);
  row_counts.insert(row_counts.end(), {33, 64});
  for (const std::int32_t rows : row_counts) {
    for (const std::int32_t weight_rows : {1, 8, 16, 23, 48}) {
      for (const std::int32_t blocks : {1, 2, 5}) {
        const std::int32_t cols = block() == 1 ? 7 * blocks : block() * blocks;
        const Case c(GetParam(), rows, weight_rows, cols, Magnitudes::kUsual, 1);
        const std::vector<float> want = c.Run(MultiplyPanelsTargets().front().run);
        for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
          SCOPED_TRACE(absl::StrCat(ToAbsl(target.name), " rows=", rows,
                                    " weight rows=", weight_rows, " cols=", cols));
          ASSERT_NO_FATAL_FAILURE(ExpectSameBits(want, c.Run(target.run)));
        }
      }
    }
  }
}

TEST_P(LinearFormatTest, ExtremesDoNotOverflow) {
  for (const Magnitudes magnitudes :
       {Magnitudes::kLargest, Magnitudes::kSmallest, Magnitudes::kExtremeScales}) {
    for (const std::int32_t rows : {1, 2, 3, 4, 5, 8, 13}) {
      const std::int32_t cols = block() == 1 ? 65 : std::max(block(), 64);
      const Case c(GetParam(), rows, 35, cols, magnitudes, 3);
      const std::vector<float> want = c.Run(MultiplyPanelsTargets().front().run);
      for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
        SCOPED_TRACE(absl::StrCat(ToAbsl(target.name), " rows=", rows,
                                  " magnitudes=", static_cast<int>(magnitudes)));
        ASSERT_NO_FATAL_FAILURE(ExpectSameBits(want, c.Run(target.run)));
      }
    }
  }
}

// More columns than a chunk, more rows than a group: where partial sums wait in y.
TEST_P(LinearFormatTest, LongRowsAndManyRowsHaveTheSameBits) {
  struct Shape {
    std::int32_t rows;
    std::int32_t weight_rows;
    std::int32_t cols;
  };
  for (const Shape& s :
       {Shape{2, 18, 512 * 32 + 256}, Shape{9, 18, 5 * 1024 + 256}, Shape{300, 17, 256}}) {
    const Case c(GetParam(), s.rows, s.weight_rows, s.cols, Magnitudes::kUsual, 9);
    const std::vector<float> want = c.Run(MultiplyPanelsTargets().front().run);
    for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
      SCOPED_TRACE(absl::StrCat(ToAbsl(target.name), " rows=", s.rows, " cols=", s.cols));
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(want, c.Run(target.run)));
    }
  }
}

TEST_P(LinearFormatTest, ARowAloneAndAnySplitOfPanelsGiveTheSameBits) {
  const Case c(GetParam(), 37, 70, block() == 1 ? 100 : 512, Magnitudes::kUsual, 2);
  for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
    SCOPED_TRACE(ToAbsl(target.name));
    const std::vector<float> want = c.Run(target.run);
    for (const std::int32_t r : {0, 7, 36}) {
      const std::vector<float> row = c.RunRow(target.run, r);
      const auto begin = want.begin() + r * c.y_stride();
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits({begin, begin + c.y_stride()}, row));
    }
    // Panels 1..3 only: their columns, and nothing else.
    const std::vector<float> part = c.Run(target.run, 1, 3);
    for (std::int32_t r = 0; r < c.rows(); ++r) {
      for (std::int32_t n = 0; n < c.y_stride(); ++n) {
        const std::size_t at = r * c.y_stride() + n;
        EXPECT_EQ(part[at], n >= 16 && n < 48 ? want[at] : Case::kUntouched);
      }
    }
  }
}

TEST_P(LinearFormatTest, NothingToDoTouchesNothing) {
  const Case c(GetParam(), 2, 16, block() * 2, Magnitudes::kUsual, 2);
  for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
    for (const float y : c.Run(target.run, 1, 1)) EXPECT_EQ(y, Case::kUntouched);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, LinearFormatTest, testing::ValuesIn(kAll),
                         [](const auto& param) { return std::string(Info(param.param).name); });

}  // namespace
}  // namespace penstock::kernels
