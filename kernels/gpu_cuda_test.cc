// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu_cuda.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "base/float16.h"
#include "kernels/cuda_testing.h"

namespace penstock::kernels {
namespace {

std::uint32_t Bits(float x) { return std::bit_cast<std::uint32_t>(x); }
// All NaN are one: their bits are the processor's own.
std::uint32_t Same(float x) { return std::isnan(x) ? 0x7fc00000u : Bits(x); }

std::vector<float> Floats(std::uint32_t seed, std::size_t n) {
  std::mt19937 random(seed);
  const float edges[] = {0.0f,
                         -0.0f,
                         0.5f,
                         1.5f,
                         2.5f,
                         -2.5f,
                         65504,
                         65519.996f,
                         65520,
                         -65520,
                         1e30f,
                         0x1p-126f,
                         0x1p-149f,
                         0x1.8p-25f,
                         0x1p-24f,
                         2147483520.0f,
                         0x1p31f,
                         -0x1p31f,
                         std::numeric_limits<float>::infinity(),
                         0x1.fffffep127f};
  std::vector<float> values;
  for (std::size_t i = 0; i < n; ++i) {
    switch (random() % 4) {
      case 0:
        values.push_back(edges[random() % std::size(edges)]);
        break;
      case 1:
        values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
        break;
      default:
        values.push_back(std::ldexp(static_cast<float>(random() % 65537) - 32768,
                                    -static_cast<int>(random() % 16)));
    }
  }
  return values;
}

std::int32_t Nearest(float x) {
  if (std::isnan(x)) return 0;
  if (x >= 0x1p31f) return std::numeric_limits<std::int32_t>::max();
  if (x <= -0x1p31f) return std::numeric_limits<std::int32_t>::min();
  return static_cast<std::int32_t>(std::nearbyint(x));
}

TEST(GpuTest, ArithmeticIsIeee) {
  constexpr std::size_t kCount = 20000;
  const std::vector<float> a = Floats(1, kCount), b = Floats(2, kCount), c = Floats(3, kCount);
  const DeviceBuffer<float> device_a(a), device_b(b), device_c(c);
  DeviceBuffer<GpuFloatResults> out(kCount);
  ASSERT_TRUE(Ran(GpuFloatCuda(device_a.data(), device_b.data(), device_c.data(), kCount,
                               out.data(), nullptr)));
  const std::vector<GpuFloatResults> got = out.Get();
  for (std::size_t i = 0; i < kCount; ++i) {
    SCOPED_TRACE(testing::Message() << std::hexfloat << a[i] << " " << b[i] << " " << c[i]);
    EXPECT_EQ(Same(got[i].fma), Same(std::fma(a[i], b[i], c[i])));
    EXPECT_EQ(Same(got[i].square_root), Same(std::sqrt(a[i])));
    EXPECT_EQ(Same(got[i].quotient), Same(a[i] / b[i]));
    const float product = a[i] * b[i];
    EXPECT_EQ(Same(got[i].product), Same(product));
    EXPECT_EQ(Same(got[i].sum), Same(a[i] + b[i]));
    EXPECT_EQ(Same(got[i].multiplied_then_added), Same(product + c[i]));
    EXPECT_EQ(Same(got[i].from_f16),
              Same(ToFloat(F16{static_cast<std::uint16_t>(Bits(a[i]) >> 16)})));
    EXPECT_EQ(got[i].rounded, Nearest(a[i]));
    std::int32_t dot = static_cast<std::int32_t>(Bits(c[i]) & 0xffff);
    for (unsigned k = 0; k < 32; k += 8) {
      dot += static_cast<std::int8_t>(Bits(a[i]) >> k) * static_cast<std::int8_t>(Bits(b[i]) >> k);
    }
    EXPECT_EQ(got[i].dot4, dot);
    const std::uint32_t sources[] = {Bits(a[i]), Bits(b[i])};
    std::uint32_t bytes = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const std::uint32_t from = Bits(c[i]) >> (4 * k) & 7;
      bytes |= (sources[from / 4] >> (8 * (from % 4)) & 255) << (8 * k);
    }
    EXPECT_EQ(got[i].picked_bytes, bytes);
    if (!std::isnan(a[i])) {
      EXPECT_EQ(got[i].f16_saturated, static_cast<std::uint16_t>(ToF16Saturated(a[i])));
    }
    if (HasFailure()) break;
  }
}

TEST(GpuTest, WarpOperations) {
  std::vector<std::int32_t> values;
  for (std::int32_t lane = 0; lane < 32; ++lane) values.push_back(lane * lane - 40);
  const DeviceBuffer<std::int32_t> in(values);
  DeviceBuffer<GpuWarpResults> out(32);
  ForEachSchedule([&] {
    out.Poison();
    ASSERT_TRUE(Ran(GpuWarpCuda(in.data(), out.data(), nullptr)));
    const std::vector<GpuWarpResults> got = out.Get();
    for (std::size_t lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(got[lane].from_lane_5, -15);
      EXPECT_EQ(got[lane].from_other_half, values[lane ^ 16]);
      EXPECT_EQ(got[lane].reversed, values[31 - lane]);
      EXPECT_EQ(got[lane].picked, values[(7 * lane + 3) % 32]);
      EXPECT_EQ(got[lane].odd_values, 0xaaaaaaaau);
      const auto bits = static_cast<std::uint32_t>(values[lane]);
      EXPECT_EQ(got[lane].lowest_bit, static_cast<std::uint32_t>(std::countr_zero(bits)));
      EXPECT_EQ(got[lane].bits, static_cast<std::uint32_t>(std::popcount(bits)));
    }
  });
}

TEST(GpuTest, AtomicsAndTables) {
  const GpuAtomicResults before = {.sum64 = 0x123456789abc, .xor_of = 0x12345678, .sum = 77};
  GpuAtomicResults want = before;
  for (std::uint32_t i = 0; i < GpuSquares::kCount; ++i) {
    want.xor_of ^= i * i;
    want.sum += i * i;
    want.sum64 += std::uint64_t{i * i} << 40;
  }
  DeviceBuffer<GpuAtomicResults> out(1);
  ForEachSchedule([&] {
    out.Set(std::vector<GpuAtomicResults>{before});
    ASSERT_TRUE(Ran(GpuAtomicCuda(out.data(), nullptr)));
    EXPECT_EQ(out.Get()[0].xor_of, want.xor_of);
    EXPECT_EQ(out.Get()[0].sum, want.sum);
    EXPECT_EQ(out.Get()[0].sum64, want.sum64);
  });
}

TEST(GpuTest, TensorCoresMultiplyInt8Exactly) {
  for (const int columns : {16, 32}) {
    for (std::uint32_t seed = 0; seed < 5; ++seed) {
      SCOPED_TRACE(testing::Message() << "columns=" << columns << " seed=" << seed);
      std::mt19937 random(seed);
      std::vector<std::int8_t> a(static_cast<std::size_t>(16 * columns)),
          b(static_cast<std::size_t>(8 * columns));
      std::vector<std::int32_t> c(16 * 8);
      // The first seed: the largest sums there can be.
      for (auto& x : a) x = seed == 0 ? std::int8_t{-128} : static_cast<std::int8_t>(random());
      for (auto& x : b) x = seed == 0 ? std::int8_t{-128} : static_cast<std::int8_t>(random());
      for (auto& x : c) x = static_cast<std::int32_t>(random() % 2000000) - 1000000;
      std::vector<std::int32_t> want = c;
      for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 8; ++column) {
          for (int k = 0; k < columns; ++k) {
            want[static_cast<std::size_t>(row * 8 + column)] +=
                a[static_cast<std::size_t>(row * columns + k)] *
                b[static_cast<std::size_t>(column * columns + k)];
          }
        }
      }
      const DeviceBuffer<std::int8_t> device_a(a), device_b(b);
      const DeviceBuffer<std::int32_t> device_c(c);
      DeviceBuffer<std::int32_t> d(c.size());
      ForEachSchedule([&] {
        d.Poison();
        ASSERT_TRUE(Ran(GpuMmaCuda(device_a.data(), device_b.data(), device_c.data(), columns,
                                   d.data(), nullptr)));
        EXPECT_EQ(d.Get(), want);
      });
    }
  }
}

TEST(GpuTest, AsynchronousCopies) {
  for (const int n : {1, 63, 64, 65, 300}) {
    for (const int live : {0, n / 2, n}) {
      SCOPED_TRACE(testing::Message() << "n=" << n << " live=" << live);
      std::vector<float> values(static_cast<std::size_t>(4 * n)), want(values.size(), 0.0f);
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(i) + 0.5f;
        if (i < static_cast<std::size_t>(4 * live)) want[i] = values[i];
      }
      const DeviceBuffer<float> x(values);
      DeviceBuffer<float> y(values.size());
      ForEachSchedule([&] {
        y.Poison();
        ASSERT_TRUE(Ran(GpuCopyCuda(x.data(), n, live, y.data(), nullptr)));
        EXPECT_EQ(y.Get(), want);
      });
    }
  }
}

}  // namespace
}  // namespace penstock::kernels
