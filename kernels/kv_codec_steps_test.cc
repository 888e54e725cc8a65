// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_steps.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "kernels/kv_codec_scalar.h"
#include "kernels/kv_codec_steps_targets.h"

namespace penstock::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::byte kGuard{0xA5};
constexpr std::int16_t kCodeGuard = 0x5A5A;
constexpr KvDtype kDtypes[] = {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32};
constexpr float kSizes[] = {0, 1e-42f, 1e-20f, 3e-8f, 1e-6f, 1e-3f, 1, 50, 65504};

// Values up to `size`, some of them zeros of either sign; columns of different spread, one far from
// zero, and now and then one value far from its column's others.
Bytes RandomMatrix(const KvMatrix& shape, float size, std::mt19937& random) {
  const std::size_t n = static_cast<std::size_t>(shape.rows) * static_cast<std::size_t>(shape.dim);
  Bytes x(n * BytesPerElement(shape.dtype));
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t column = i % static_cast<std::size_t>(shape.dim);
    float value = uniform(random) * size * std::ldexp(1.0f, -static_cast<int>(column % 7));
    if (random() % 16 == 0) value = random() % 2 == 0 ? 0.0f : -0.0f;
    if (random() % 200 == 0) value = uniform(random) * size;
    if (column == 3) value = size - std::abs(value) / 64;
    // Towards zero, so that none leaves the range.
    if (shape.dtype == KvDtype::kBF16) {
      value = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & 0xFFFF0000u);
    }
    kv_scalar::Store(shape.dtype, value, x.data(), i);
  }
  return x;
}

struct Planes {
  Bytes steps;
  std::vector<std::int8_t> offsets;
  std::vector<std::int16_t> codes;
  std::vector<std::int32_t> tops;
  bool operator==(const Planes&) const = default;
};

std::size_t Count(const KvMatrix& s) {
  return static_cast<std::size_t>(s.rows) * static_cast<std::size_t>(s.dim);
}

Planes Room(const KvMatrix& shape, bool keys) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  Planes p{Bytes((keys ? 2 : static_cast<std::size_t>(shape.rows)) + 1, kGuard),
           std::vector<std::int8_t>(dim + 1, 0x5A),
           std::vector<std::int16_t>(Count(shape) + 1, kCodeGuard),
           std::vector<std::int32_t>(dim + 1, -1)};
  if (!keys) p.offsets.assign(dim, 0);
  return p;
}

Planes Quantize(const KvStepsTarget& target, bool keys, const KvMatrix& shape, float level,
                const Bytes& x) {
  Planes p = Room(shape, keys);
  if (keys) {
    target.quantize_keys(shape, level, x.data(), p.steps.data(), p.offsets.data(), p.codes.data(),
                         p.tops.data());
  } else {
    target.quantize_values(shape, level, x.data(), p.steps.data(), p.codes.data(), p.tops.data());
  }
  return p;
}

Bytes Back(const KvStepsTarget& target, bool keys, const KvMatrix& shape, const Planes& p) {
  Bytes x(Count(shape) * BytesPerElement(shape.dtype) + 1, kGuard);
  if (keys) {
    target.dequantize_keys(shape, p.steps.data(), p.offsets.data(), p.codes.data(), x.data());
  } else {
    target.dequantize_values(shape, p.steps.data(), p.codes.data(), x.data());
  }
  return x;
}

double StepAt(bool keys, const Planes& p, std::size_t row) {
  if (keys) return ToFloat(F16{kv_scalar::LoadHalf(p.steps.data(), 0)});
  const auto bits = std::to_integer<unsigned>(p.steps[row]) << kKvStepByteShift;
  return ToFloat(F16{static_cast<std::uint16_t>(bits)});
}

// Calls check(keys, shape, level, x) for all of them.
template <typename Check>
void ForAll(Check check) {
  std::mt19937 random(1);
  for (const bool keys : {true, false}) {
    for (const KvDtype dtype : kDtypes) {
      for (const std::int32_t dim : {8, 16, 24, 32, 40, 64, 96, 128, 256}) {
        for (const std::int32_t rows : {1, 2, 3, 16, 32, 64}) {
          for (const float size : kSizes) {
            for (const float level : {0.15f, 1.0f}) {
              const KvMatrix shape{dtype, rows, dim};
              SCOPED_TRACE(absl::StrCat(keys ? "keys " : "values ", std::string(ToString(dtype)),
                                        " [", rows, ", ", dim, "] size=", size, " level=", level));
              check(keys, shape, level, RandomMatrix(shape, size, random));
              if (testing::Test::HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(KvStepsTest, PrintsTargets) {
  for (const KvStepsTarget& target : KvStepsTargets()) std::cout << "ran: " << target.name << "\n";
  EXPECT_EQ(KvStepsTargets()[0].name, "scalar");
}

TEST(KvStepsTest, TargetsAgree) {
  ForAll([](bool keys, const KvMatrix& shape, float level, const Bytes& x) {
    const KvStepsTarget& scalar = KvStepsTargets()[0];
    const Planes want = Quantize(scalar, keys, shape, level, x);
    EXPECT_EQ(want.steps.back(), kGuard);
    EXPECT_EQ(want.codes.back(), kCodeGuard);
    EXPECT_EQ(want.tops.back(), -1);
    EXPECT_EQ(want.offsets.back(), keys ? 0x5A : 0);
    const Bytes want_back = Back(scalar, keys, shape, want);
    EXPECT_EQ(want_back.back(), kGuard);
    for (const KvStepsTarget& target : KvStepsTargets().subspan(1)) {
      SCOPED_TRACE(std::string(target.name));
      EXPECT_EQ(Quantize(target, keys, shape, level, x), want);
      EXPECT_EQ(Back(target, keys, shape, want), want_back);
    }
  });
}

TEST(KvStepsTest, EachValueComesBackWithinHalfAStep) {
  ForAll([](bool keys, const KvMatrix& shape, float level, const Bytes& x) {
    const KvStepsTarget& scalar = KvStepsTargets()[0];
    const Planes planes = Quantize(scalar, keys, shape, level, x);
    const Bytes back = Back(scalar, keys, shape, planes);
    const auto dim = static_cast<std::size_t>(shape.dim);
    for (std::size_t i = 0; i < Count(shape); ++i) {
      const double step = StepAt(keys, planes, i / dim);
      const double value = kv_scalar::Load(shape.dtype, x.data(), i);
      // What rounding the result to its type adds, and the product before it was rounded.
      const double unit = shape.dtype == KvDtype::kBF16 ? 0x1p-8 : 0x1p-11;
      const double rounding = std::abs(value) * (unit * 1.01 + 0x1p-22) + step * unit + 0x1p-25;
      ASSERT_LE(std::abs(kv_scalar::Load(shape.dtype, back.data(), i) - value), step / 2 + rounding)
          << i;
      ASSERT_LE(std::abs(planes.codes[i]), planes.tops[i % dim]) << i;
      ASSERT_LE(planes.tops[i % dim], kKvStepCodeMax) << i;
    }
  });
}

// Bytes of other origin: any code and offset with any finite step, none of which may give NaN.
TEST(KvStepsTest, TargetsAgreeOnAnyCodes) {
  std::mt19937 random(2);
  for (const bool keys : {true, false}) {
    for (const KvDtype dtype : kDtypes) {
      const KvMatrix shape{dtype, 16, 64};
      for (int round = 0; round < 100; ++round) {
        Planes planes = Room(shape, keys);
        for (std::int16_t& code : planes.codes) code = static_cast<std::int16_t>(random());
        for (std::int8_t& offset : planes.offsets) offset = static_cast<std::int8_t>(random());
        for (std::byte& step : planes.steps) {
          step = static_cast<std::byte>(random() % (keys ? 0x7C : kKvStepByteMax + 1));
        }
        const Bytes want = Back(KvStepsTargets()[0], keys, shape, planes);
        EXPECT_TRUE(std::isfinite(MaxMagnitude(dtype, want.data(), Count(shape))));
        for (const KvStepsTarget& target : KvStepsTargets().subspan(1)) {
          ASSERT_EQ(Back(target, keys, shape, planes), want) << target.name;
        }
      }
    }
  }
}

// Columns that are all the same lose nothing for it: steps are never too small for their codes.
TEST(KvStepsTest, ConstantColumnsKeepTheirValues) {
  const KvMatrix shape{KvDtype::kF32, 32, 64};
  Bytes x(Count(shape) * 4);
  for (std::size_t i = 0; i < Count(shape); ++i) {
    kv_scalar::Store(shape.dtype, static_cast<float>(i % 64) - 20, x.data(), i);
  }
  const KvStepsTarget& best = KvStepsTargets().back();
  const Bytes back = Back(best, true, shape, Quantize(best, true, shape, 0.5f, x));
  for (std::size_t i = 0; i < Count(shape); ++i) {
    EXPECT_NEAR(kv_scalar::Load(shape.dtype, back.data(), i), static_cast<float>(i % 64) - 20,
                43 / kKvStepsMax);
  }
}

}  // namespace
}  // namespace penstock::kernels
