// SPDX-License-Identifier: Apache-2.0
#include "kernels/weight_format.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/file.h"

namespace penstock::kernels {
namespace {

constexpr int kFormats = 13;

struct Reader {
  const std::string& data;
  std::size_t at = 0;
  std::string Take(std::size_t n) {
    EXPECT_LE(at + n, data.size());
    at += n;
    return data.substr(at - n, n);
  }
  std::uint32_t U32() {
    std::uint32_t value = 0;
    std::memcpy(&value, Take(4).data(), 4);
    return value;
  }
};

// Made by tests/make_weight_goldens.py with ggml's own Python reference.
TEST(WeightFormatTest, DequantizesAsGgmlDoes) {
  auto data =
      ReadFile(std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/weight_format.bin", 1 << 20);
  ASSERT_TRUE(data.ok()) << data.status();
  Reader r{*data};
  ASSERT_EQ(r.U32(), static_cast<std::uint32_t>(kFormats));
  for (int f = 0; f < kFormats; ++f) {
    const WeightFormat format = static_cast<WeightFormat>(f);
    const std::string name = r.Take(r.U32());
    SCOPED_TRACE(name);
    EXPECT_EQ(Info(format).name, name);
    const std::uint32_t blocks = r.U32();
    EXPECT_EQ(r.U32(), static_cast<std::uint32_t>(Info(format).bytes));
    ASSERT_EQ(r.U32(), static_cast<std::uint32_t>(Info(format).block));
    const std::size_t n = std::size_t{blocks} * static_cast<std::size_t>(Info(format).block);
    ASSERT_GT(n, 0u);
    const std::string raw = r.Take(BytesOf(format, 1, static_cast<std::int64_t>(n)));
    const std::string want_bytes = r.Take(n * 4);
    std::vector<float> want(n), got(n);
    std::memcpy(want.data(), want_bytes.data(), want_bytes.size());
    DequantizeRow(format, reinterpret_cast<const std::byte*>(raw.data()), got);
    for (std::size_t i = 0; i < n; ++i) {
      if (std::isnan(want[i]) && std::isnan(got[i])) continue;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want[i]))
          << "weight " << i << ": " << got[i] << " for " << want[i];
    }
  }
  EXPECT_EQ(r.at, data->size());
}

TEST(WeightFormatTest, BytesOfCountsWholeBlocks) {
  EXPECT_EQ(BytesOf(WeightFormat::kF32, 3, 5), 60u);
  EXPECT_EQ(BytesOf(WeightFormat::kBF16, 3, 5), 30u);
  EXPECT_EQ(BytesOf(WeightFormat::kQ4_1, 2, 64), 80u);
  EXPECT_EQ(BytesOf(WeightFormat::kQ6_K, 2, 512), 840u);
  // A table of 2^24 rows of 2^17 weights is larger than 32 bits count.
  EXPECT_EQ(BytesOf(WeightFormat::kQ8_0, 1 << 24, 1 << 17), (std::size_t{1} << 36) * 34);
}

TEST(WeightFormatDeathTest, PartOfABlockIsOurBug) {
  EXPECT_DEATH((void)BytesOf(WeightFormat::kQ8_0, 1, 33), "");
}

}  // namespace
}  // namespace penstock::kernels
