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
#include "base/status.h"
#include "kernels/linear_testing.h"

namespace penstock::kernels {
namespace {

class Case {
 public:
  Case(WeightFormat format, std::int32_t rows, std::int32_t weight_rows, std::int32_t cols,
       Magnitudes magnitudes, std::uint32_t seed)
      : product_(format, rows, weight_rows, cols, magnitudes, seed) {}

  std::vector<float> Run(MultiplyPanelsFn run) const {
    return Run(run, 0, (matrix().rows + kPanelRows - 1) / kPanelRows);
  }
  // Outputs that are not computed stay at kUntouched.
  std::vector<float> Run(MultiplyPanelsFn run, std::int32_t panel_begin,
                         std::int32_t panel_end) const {
    std::vector<float> y(static_cast<std::size_t>(rows()) * y_stride(), kUntouched);
    run(matrix(), x(), rows(), panel_begin, panel_end, y.data(), y_stride());
    return y;
  }

  // The product of the dequantized weights and activations, and the sum of its terms' magnitudes.
  std::pair<double, double> Exact(std::int32_t r, std::int32_t n) const {
    std::vector<float> w(matrix().cols);
    UnpackRow(matrix(), n, w);
    const Activations row = x().From(r);
    const double largest = product_.LargestWeight();
    double sum = 0;
    double magnitude = 0;
    for (std::int32_t k = 0; k < matrix().cols; ++k) {
      const double v =
          matrix().takes_int8() ? double{row.q[k] * 1.0} * row.scale[k / 32] : row.f32[k];
      sum += v * w[k];
      // Levels and minima cancel inside a weight, so the terms are larger than the weight.
      magnitude += std::abs(v) * (std::abs(w[k]) + largest);
    }
    return {sum, magnitude};
  }

  // One row alone: must give the same bits as in the batch.
  std::vector<float> RunRow(MultiplyPanelsFn run, std::int32_t r) const {
    std::vector<float> y(y_stride(), kUntouched);
    run(matrix(), x().From(r), 1, 0, (matrix().rows + kPanelRows - 1) / kPanelRows, y.data(),
        y_stride());
    return y;
  }

  std::int64_t y_stride() const { return matrix().rows + 3; }
  std::int32_t rows() const { return product_.rows(); }
  const PackedMatrix& matrix() const { return product_.matrix(); }

  static constexpr float kUntouched = -12345.0f;

 private:
  const Activations& x() const { return product_.x(); }

  RandomProduct product_;
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

INSTANTIATE_TEST_SUITE_P(Formats, LinearFormatTest, testing::ValuesIn(kWeightFormats),
                         [](const auto& param) { return std::string(Info(param.param).name); });

}  // namespace
}  // namespace penstock::kernels
