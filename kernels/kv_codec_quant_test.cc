// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_quant.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <iostream>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "kernels/kv_codec_quant_targets.h"

namespace penstock::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::byte kGuard{0xA5};
constexpr KvDtype kDtypes[] = {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32};
constexpr float kSizes[] = {0, 1e-42f, 1e-20f, 3e-8f, 1e-6f, 1e-3f, 1, 50, 65504};

float Value(KvDtype dtype, const Bytes& x, std::size_t i) {
  if (dtype == KvDtype::kF32) {
    float value;
    std::memcpy(&value, x.data() + 4 * i, 4);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, x.data() + 2 * i, 2);
  return dtype == KvDtype::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
}

void SetValue(KvDtype dtype, float value, Bytes& x, std::size_t i) {
  if (dtype == KvDtype::kF32) {
    std::memcpy(x.data() + 4 * i, &value, 4);
    return;
  }
  // Towards zero, so that none leaves the range.
  const auto bits = dtype == KvDtype::kF16
                        ? static_cast<std::uint16_t>(ToF16Saturated(value))
                        : static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  std::memcpy(x.data() + 2 * i, &bits, 2);
}

// Values up to `size`, some of them zeros of either sign, some columns far from zero.
Bytes RandomMatrix(const KvMatrix& shape, float size, std::mt19937& random) {
  const std::size_t n = static_cast<std::size_t>(shape.rows) * static_cast<std::size_t>(shape.dim);
  Bytes x(n * BytesPerElement(shape.dtype));
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (std::size_t i = 0; i < n; ++i) {
    float value = uniform(random) * size;
    if (random() % 16 == 0) value = random() % 2 == 0 ? 0.0f : -0.0f;
    if (i % static_cast<std::size_t>(shape.dim) == 3) value = size - std::abs(value) / 64;
    SetValue(shape.dtype, value, x, i);
  }
  return x;
}

struct Planes {
  Bytes codes, scales, minima;
  bool operator==(const Planes&) const = default;
};

Planes Room(std::size_t codes, std::size_t ranges) {
  return {Bytes(codes + 1, kGuard), Bytes(2 * ranges + 1, kGuard), Bytes(2 * ranges + 1, kGuard)};
}

std::size_t Count(const KvMatrix& s) {
  return static_cast<std::size_t>(s.rows) * static_cast<std::size_t>(s.dim);
}

// One way to quantize, with any target.
struct Way {
  const char* name;
  int bits;  // 8: int8.
  bool channels;

  std::size_t Ranges(const KvMatrix& s) const {
    if (bits == 8) return static_cast<std::size_t>(s.rows);
    return channels ? static_cast<std::size_t>(s.dim)
                    : static_cast<std::size_t>(s.rows) * static_cast<std::size_t>(KvGroups(s.dim));
  }
  Planes Run(const KvQuantTarget& target, const KvMatrix& s, const Bytes& x) const {
    Planes p = Room(Count(s) * static_cast<std::size_t>(bits) / 8, Ranges(s));
    if (bits == 8) {
      target.quantize_int8(s, x.data(), p.codes.data(), p.scales.data());
    } else {
      (channels ? target.quantize_channels : target.quantize_groups)(
          bits, s, x.data(), p.codes.data(), p.scales.data(), p.minima.data());
    }
    return p;
  }
  Bytes Back(const KvQuantTarget& target, const KvMatrix& s, const Planes& p) const {
    Bytes x(Count(s) * BytesPerElement(s.dtype) + 1, kGuard);
    if (bits == 8) {
      target.dequantize_int8(s, p.codes.data(), p.scales.data(), x.data());
    } else {
      (channels ? target.dequantize_channels : target.dequantize_groups)(
          bits, s, p.codes.data(), p.scales.data(), p.minima.data(), x.data());
    }
    return x;
  }
  std::size_t RangeOf(const KvMatrix& s, std::size_t i) const {
    const auto dim = static_cast<std::size_t>(s.dim);
    if (bits == 8) return i / dim;
    if (channels) return i % dim;
    return i / dim * static_cast<std::size_t>(KvGroups(s.dim)) + i % dim / kKvGroupValues;
  }
};

constexpr Way kWays[] = {{"int8", 8, false},
                         {"groups4", 4, false},
                         {"groups2", 2, false},
                         {"channels4", 4, true},
                         {"channels2", 2, true}};

// Calls check(way, shape, x) for all of them.
template <typename Check>
void ForAll(Check check) {
  std::mt19937 random(1);
  for (const Way& way : kWays) {
    for (const KvDtype dtype : kDtypes) {
      for (const std::int32_t dim : {8, 16, 24, 32, 40, 64, 80, 96, 128, 256}) {
        for (const std::int32_t rows : {1, 2, 3, 16, 32, 64}) {
          for (const float size : kSizes) {
            const KvMatrix shape{dtype, rows, dim};
            const std::string_view text = ToString(dtype);
            SCOPED_TRACE(absl::StrCat(way.name, " ", std::string(text), " [", rows, ", ", dim,
                                      "] size=", size));
            check(way, shape, RandomMatrix(shape, size, random));
            if (testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(KvQuantTest, PrintsTargets) {
  for (const KvQuantTarget& target : KvQuantTargets()) std::cout << "ran: " << target.name << "\n";
  EXPECT_EQ(KvQuantTargets()[0].name, "scalar");
}

TEST(KvQuantTest, TargetsAgree) {
  ForAll([](const Way& way, const KvMatrix& shape, const Bytes& x) {
    const KvQuantTarget& scalar = KvQuantTargets()[0];
    const Planes want = way.Run(scalar, shape, x);
    EXPECT_EQ(want.codes.back(), kGuard);
    EXPECT_EQ(want.scales.back(), kGuard);
    EXPECT_EQ(want.minima.back(), kGuard);
    const Bytes want_back = way.Back(scalar, shape, want);
    EXPECT_EQ(want_back.back(), kGuard);
    for (const KvQuantTarget& target : KvQuantTargets().subspan(1)) {
      SCOPED_TRACE(std::string(target.name));
      EXPECT_EQ(way.Run(target, shape, x), want);
      EXPECT_EQ(way.Back(target, shape, want), want_back);
      EXPECT_EQ(target.max_bits(shape.dtype, x.data(), Count(shape)),
                scalar.max_bits(shape.dtype, x.data(), Count(shape)));
    }
  });
}

TEST(KvQuantTest, EachValueComesBackWithinHalfAScale) {
  ForAll([](const Way& way, const KvMatrix& shape, const Bytes& x) {
    const KvQuantTarget& scalar = KvQuantTargets()[0];
    const Planes planes = way.Run(scalar, shape, x);
    const Bytes back = way.Back(scalar, shape, planes);
    for (std::size_t i = 0; i < Count(shape); ++i) {
      const double scale = Value(KvDtype::kF16, planes.scales, way.RangeOf(shape, i));
      const double value = Value(shape.dtype, x, i);
      // What rounding the result to its type adds, and a little for the products on the way.
      const double step = shape.dtype == KvDtype::kBF16 ? 0x1p-8 : 0x1p-11;
      const double rounding = std::abs(value) * step * 1.01 + scale * (step + 1e-4) + 0x1p-25;
      ASSERT_LE(std::abs(Value(shape.dtype, back, i) - value), scale / 2 + rounding) << i;
    }
  });
}

// Bytes of other origin: any code with any finite scale, none of which may give NaN or overflow.
TEST(KvQuantTest, TargetsAgreeOnAnyCodes) {
  std::mt19937 random(2);
  for (const Way& way : kWays) {
    for (const KvDtype dtype : kDtypes) {
      const KvMatrix shape{dtype, 16, 64};
      SCOPED_TRACE(absl::StrCat(way.name, " ", std::string(ToString(dtype))));
      for (int round = 0; round < 100; ++round) {
        Planes planes =
            Room(Count(shape) * static_cast<std::size_t>(way.bits) / 8, way.Ranges(shape));
        for (std::byte& code : planes.codes) code = static_cast<std::byte>(random());
        for (Bytes* const halves : {&planes.scales, &planes.minima}) {
          for (std::size_t i = 0; i < way.Ranges(shape); ++i) {
            const auto bits = static_cast<std::uint16_t>(random());
            const auto finite = static_cast<std::uint16_t>((bits & 0x7C00) == 0x7C00 ? 0 : bits);
            std::memcpy(halves->data() + 2 * i, &finite, 2);
          }
        }
        const Bytes want = way.Back(KvQuantTargets()[0], shape, planes);
        EXPECT_TRUE(std::isfinite(MaxMagnitude(dtype, want.data(), Count(shape))));
        for (const KvQuantTarget& target : KvQuantTargets().subspan(1)) {
          ASSERT_EQ(way.Back(target, shape, planes), want) << target.name;
        }
      }
    }
  }
}

TEST(KvQuantTest, MaxMagnitudeFindsEveryPlace) {
  for (const KvDtype dtype : kDtypes) {
    for (std::size_t n : {8u, 16u, 24u, 64u, 104u}) {
      for (std::size_t at = 0; at < n; ++at) {
        Bytes x(n * BytesPerElement(dtype));
        SetValue(dtype, -2, x, at);
        EXPECT_EQ(MaxMagnitude(dtype, x.data(), n), 2);
        SetValue(dtype, -INFINITY, x, at);
        if (dtype != KvDtype::kF16) {  // SetValue saturates.
          EXPECT_TRUE(std::isinf(MaxMagnitude(dtype, x.data(), n)));
        }
        std::memset(x.data() + at * BytesPerElement(dtype), 0xFF, BytesPerElement(dtype));
        EXPECT_TRUE(std::isnan(MaxMagnitude(dtype, x.data(), n)));
      }
    }
  }
}

}  // namespace
}  // namespace penstock::kernels
