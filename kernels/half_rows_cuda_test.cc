// SPDX-License-Identifier: Apache-2.0
#include "kernels/half_rows_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_testing.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {
namespace {

TEST(HalfRowsCudaTest, IsTheScalarThereAndBack) {
  std::mt19937 random(1);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16}) {
    for (const std::int64_t n : {8, 16, 2040, 2048, 2056, 5000}) {
      SCOPED_TRACE(absl::StrCat("dtype ", static_cast<int>(dtype), " n ", n));
      std::vector<float> x(static_cast<std::size_t>(n));
      for (float& v : x) {
        const float size = std::exp2(static_cast<float>(static_cast<int>(random() % 60) - 30));
        v = std::uniform_real_distribution<float>(-size, size)(random);
      }
      const float edges[] = {0.0f,      -0.0f,      65519.0f, 65520.0f,
                             kInfinity, -kInfinity, 1e-40f,   std::nanf("")};
      std::copy(std::begin(edges), std::end(edges), x.begin());
      std::vector<std::byte> want(2 * x.size());
      NarrowRow(dtype, x.data(), static_cast<std::int32_t>(n), want.data(), nullptr);
      std::vector<float> wide(x.size());
      WidenRow(dtype, want.data(), nullptr, static_cast<std::int32_t>(n), wide.data());
      const DeviceBuffer<float> device_x(x);
      const DeviceBuffer<std::byte> device_want(want);
      DeviceBuffer<std::byte> narrow(want.size());
      DeviceBuffer<float> back(x.size());
      ForEachSchedule([&] {
        narrow.Poison();
        back.Poison();
        ASSERT_TRUE(Ran(NarrowCuda(device_x.data(), n, dtype, narrow.data(), nullptr)));
        ASSERT_TRUE(Ran(WidenCuda(device_want.data(), n, dtype, back.data(), nullptr)));
        std::vector<float> got(x.size());
        WidenRow(dtype, narrow.Get().data(), nullptr, static_cast<std::int32_t>(n), got.data());
        ExpectSameBits(wide, got);
        ExpectSameBits(wide, back.Get());
      });
    }
  }
}

}  // namespace
}  // namespace penstock::kernels
