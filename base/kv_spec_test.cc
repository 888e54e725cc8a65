// SPDX-License-Identifier: Apache-2.0
#include "base/kv_spec.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace penstock {
namespace {

KvGroup Group() {
  return {.window_tokens = 0, .cache_layers = 30, .kv_heads = 3, .k_dim = 64, .v_dim = 64};
}

TEST(KvSpecTest, DtypesParseBackAndHaveTheirSize) {
  struct Case {
    KvDtype dtype;
    const char* text;
    std::size_t bytes;
  };
  for (const Case& c : {Case{KvDtype::kF16, "f16", 2}, Case{KvDtype::kBF16, "bf16", 2},
                        Case{KvDtype::kF32, "f32", 4}, Case{KvDtype::kInt8, "int8", 1}}) {
    EXPECT_EQ(ToString(c.dtype), c.text);
    EXPECT_EQ(ParseKvDtype(c.text).value(), c.dtype);
    EXPECT_EQ(BytesPerElement(c.dtype), c.bytes);
  }
  for (const char* text : {"", "F16", "int4", "f16 "}) {
    const absl::Status status = ParseKvDtype(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(std::string(status.message()).find("must be f16, bf16, f32 or int8"),
              std::string::npos);
  }
}

TEST(KvSpecTest, BytesPerTokenSumsTheGroups) {
  KvSpec spec;
  EXPECT_EQ(spec.BytesPerToken(), 0u);
  spec.groups.push_back(Group());
  EXPECT_EQ(spec.BytesPerToken(), 30u * 3 * (64 + 64) * 2);
  spec.groups.push_back({.window_tokens = 512,
                         .cache_layers = 2,
                         .kv_heads = 1,
                         .k_dim = 192,
                         .v_dim = 128,
                         .dtype = KvDtype::kF32});
  EXPECT_EQ(spec.BytesPerToken(), 30u * 3 * 128 * 2 + 2u * 1 * (192 + 128) * 4);
  spec.groups[1].dtype = KvDtype::kInt8;
  EXPECT_EQ(spec.BytesPerToken(), 30u * 3 * 128 * 2 + 2u * 1 * (192 + 2 + 128 + 2));
}

TEST(KvSpecTest, MakeNamesFieldLimitAndValue) {
  constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();
  constexpr std::int32_t kMin = std::numeric_limits<std::int32_t>::min();
  struct Case {
    const char* want;  // Part of the message.
    std::int32_t block_tokens = 32;
    std::int32_t page_tokens = 32;
    KvGroup group = Group();
  };
  KvGroup no_layers = Group(), many_layers = Group(), no_heads = Group(), window = Group(),
          k_small = Group(), k_odd = Group(), v_large = Group(), v_negative = Group(),
          int8 = Group();
  no_layers.cache_layers = 0;
  many_layers.cache_layers = kMax;
  no_heads.kv_heads = -1;
  window.window_tokens = -1;
  k_small.k_dim = 0;
  k_odd.k_dim = 63;
  v_large.v_dim = 1032;
  v_negative.v_dim = kMin;
  int8.dtype = KvDtype::kInt8;
  for (const Case& c : {
           Case{"block_tokens must be from 1 to 1024, got 0", 0},
           Case{"block_tokens must be from 1 to 1024, got -2147483648", kMin},
           Case{"block_tokens must be from 1 to 1024, got 2048", 2048},
           Case{"block_tokens must be a power of two, got 24", 24, 8},
           Case{"page_tokens must be from 1 to 32, got 0", 32, 0},
           Case{"page_tokens must be from 1 to 32, got 64", 32, 64},
           Case{"page_tokens must divide block_tokens (32), got 24", 32, 24},
           Case{"page_tokens must be a multiple of 4 with int8 KV, got 2", 32, 2, int8},
           Case{"cache_layers must be from 1 to 4096, got 0", 32, 32, no_layers},
           Case{"cache_layers must be from 1 to 4096, got 2147483647", 32, 32, many_layers},
           Case{"kv_heads must be from 1 to 4096, got -1", 32, 32, no_heads},
           Case{"window_tokens must be from 0 to 1073741824, got -1", 32, 32, window},
           Case{"k_dim must be from 8 to 1024, got 0", 32, 32, k_small},
           Case{"k_dim must be a multiple of 8, got 63", 32, 32, k_odd},
           Case{"v_dim must be from 8 to 1024, got 1032", 32, 32, v_large},
           Case{"v_dim must be from 8 to 1024, got -2147483648", 32, 32, v_negative},
       }) {
    const absl::Status status = PageLayout::Make(c.group, c.block_tokens, c.page_tokens).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.want;
    EXPECT_EQ(std::string(status.message()), c.want);
  }
}

// Walks a slab in the order that the header states and finds every page where PageOffset says.
TEST(KvSpecTest, PagesFillTheSlabWithoutHoles) {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kF32, KvDtype::kInt8}) {
    for (const std::int32_t page_tokens : {1, 4, 8, 32}) {
      if (dtype == KvDtype::kInt8 && page_tokens == 1) continue;
      KvGroup group = {.cache_layers = 3, .kv_heads = 2, .k_dim = 24, .v_dim = 16, .dtype = dtype};
      const PageLayout layout = PageLayout::Make(group, 32, page_tokens).value();
      EXPECT_EQ(layout.k_bytes(), std::size_t{24} * page_tokens * BytesPerElement(dtype));
      EXPECT_EQ(layout.v_bytes(), std::size_t{16} * page_tokens * BytesPerElement(dtype));
      EXPECT_EQ(layout.page_bytes(),
                layout.k_bytes() + layout.v_bytes() + page_tokens * 2 * ScaleBytes(dtype));
      std::size_t offset = 0;
      for (std::int32_t layer = 0; layer < group.cache_layers; ++layer) {
        for (std::int32_t head = 0; head < group.kv_heads; ++head) {
          for (std::int32_t page = 0; page < 32 / page_tokens; ++page) {
            EXPECT_EQ(layout.PageOffset(layer, head, page), offset);
            offset += layout.page_bytes();
          }
        }
      }
      EXPECT_EQ(layout.block_bytes(), offset);
      EXPECT_EQ(
          layout.block_bytes(),
          std::size_t{32} * 3 * 2 * ((24 + 16) * BytesPerElement(dtype) + 2 * ScaleBytes(dtype)));
      EXPECT_GE(layout.slab_bytes(), offset);
      EXPECT_LT(layout.slab_bytes(), offset + 4096);
      EXPECT_EQ(layout.slab_bytes() % 4096, 0u);
    }
  }
}

TEST(KvSpecTest, PartsFillThePageWithoutHoles) {
  for (const KvDtype dtype : kKvDtypes) {
    SCOPED_TRACE(std::string(ToString(dtype)));
    const KvGroup group = {
        .cache_layers = 1, .kv_heads = 1, .k_dim = 24, .v_dim = 8, .dtype = dtype};
    const PageLayout layout = PageLayout::Make(group, 32, 4).value();
    std::size_t offset = 0;
    for (const PagePart& part : layout.Parts()) {
      EXPECT_EQ(part.offset, offset);
      offset += 4 * part.row_bytes;
    }
    EXPECT_EQ(layout.page_bytes(), offset);
    EXPECT_EQ(layout.page_bytes() % 16, 0u);
    EXPECT_EQ(layout.v_offset() % 16, 0u);
  }
  const KvGroup group = {
      .cache_layers = 1, .kv_heads = 1, .k_dim = 64, .v_dim = 32, .dtype = KvDtype::kInt8};
  const PageLayout layout = PageLayout::Make(group, 32, 16).value();
  EXPECT_EQ(layout.v_offset(), 16u * 64);
  EXPECT_EQ(layout.k_scales_offset(), 16u * (64 + 32));
  EXPECT_EQ(layout.v_scales_offset(), 16u * (64 + 32) + 16 * 2);
  EXPECT_EQ(layout.page_bytes(), 16u * (64 + 32) + 2 * 16 * 2);
}

TEST(KvSpecTest, LargestLayoutDoesNotOverflow) {
  const KvGroup group = {
      .cache_layers = 4096, .kv_heads = 4096, .k_dim = 1024, .v_dim = 1024, .dtype = KvDtype::kF32};
  const PageLayout layout = PageLayout::Make(group, 1024, 1).value();
  EXPECT_EQ(layout.block_bytes(), std::size_t{1} << 47);
  EXPECT_EQ(layout.PageOffset(4095, 4095, 1023), (std::size_t{1} << 47) - layout.page_bytes());
}

}  // namespace
}  // namespace penstock
