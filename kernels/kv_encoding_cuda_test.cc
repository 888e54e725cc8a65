// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_encoding_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/seed_testing.h"
#include "kernels/cuda_kv_block.h"
#include "kernels/cuda_testing.h"
#include "kernels/elementwise.h"
#include "kernels/kv_encoding.h"

namespace penstock::kernels {
namespace {

constexpr KvQuantWay kInt8 = {KvQuantWay::kInt8Rows, 8};
constexpr KvQuantWay kGroups4 = {KvQuantWay::kGroups, 4};
constexpr KvQuantWay kGroups2 = {KvQuantWay::kGroups, 2};
constexpr KvQuantWay kChannels4 = {KvQuantWay::kChannels, 4};
constexpr KvQuantWay kChannels2 = {KvQuantWay::kChannels, 2};
// Those of int8, k8v4, kivi4 and kivi2.
constexpr KvEncoding kEncodings[] = {
    {kInt8, kInt8}, {kInt8, kGroups4}, {kChannels4, kGroups4}, {kChannels2, kGroups2}};

PageLayout Layout(KvDtype dtype, std::int32_t k_dim, std::int32_t v_dim, std::int32_t block_tokens,
                  std::int32_t page_tokens) {
  return *PageLayout::Make(
      {.cache_layers = 2, .kv_heads = 2, .k_dim = k_dim, .v_dim = v_dim, .dtype = dtype},
      block_tokens, page_tokens);
}

// Values that are all of the same size, some of them zeros of either sign or the same again.
std::vector<float> Values(std::mt19937& random, std::size_t n, float size) {
  std::vector<float> values(n);
  for (float& x : values) {
    const auto part = static_cast<float>(random() % 20001) / 10000 - 1;
    x = random() % 8 == 0 ? std::copysign(0.0f, part) : part * size;
    if (random() % 8 == 0) x = size;
  }
  return values;
}

std::vector<std::byte> Slab(const PageLayout& layout, std::mt19937& random, float size) {
  const std::size_t element = BytesPerElement(layout.group.dtype);
  std::vector<std::byte> slab(layout.slab_bytes(), std::byte{0xff});
  const std::vector<float> values = Values(random, layout.block_bytes() / element, size);
  NarrowRow(layout.group.dtype, values.data(), static_cast<std::int32_t>(values.size()),
            slab.data(), nullptr);
  return slab;
}

void ExpectReference(const KvEncoding& encoding, const PageLayout& layout,
                     const std::vector<std::byte>& slab) {
  const KvGroup& group = layout.group;
  SCOPED_TRACE(absl::StrCat("keys ", encoding.keys.kind, " values ", encoding.values.kind, " bits ",
                            encoding.values.bits, " dtype ", static_cast<int>(group.dtype),
                            " k_dim ", group.k_dim, " v_dim ", group.v_dim, " block ",
                            layout.block_tokens, " page ", layout.page_tokens));
  std::vector<std::byte> want(EncodedBlockBytes(encoding, layout));
  EncodeBlock(encoding, layout, slab.data(), want.data());
  const DeviceBuffer<std::byte> device_slab(slab);
  DeviceBuffer<std::byte> out(want.size());
  const KvPlanes planes(encoding, layout);
  const std::size_t layers = static_cast<std::size_t>(group.cache_layers);
  const std::size_t faults = layers * planes.layer_bytes();
  ForEachSchedule([&] {
    out.Poison();
    ASSERT_TRUE(Ran(static_cast<cudaError_t>(
        EncodeKvCuda(CudaKvBlockOf(encoding, layout), device_slab.data(), out.data(), nullptr))));
    const std::vector<std::byte> got = out.Get();
    for (std::size_t unit = 0; unit < layers * 2 * planes.heads; ++unit) {
      ASSERT_EQ(got[faults + unit], want[faults + unit]) << "unit " << unit;
      if (want[faults + unit] != std::byte{0}) continue;
      const bool keys = unit % 2 == 0;
      const auto head = static_cast<std::int32_t>(unit / 2 % planes.heads);
      const std::size_t layer = unit / 2 / planes.heads * planes.layer_bytes();
      const auto same = [&](std::size_t at, std::size_t bytes) {
        return std::memcmp(&got[layer + at], &want[layer + at], bytes) == 0;
      };
      ASSERT_TRUE(same(planes.RangesAt(keys, head), planes.ranges(keys))) << "unit " << unit;
      ASSERT_TRUE(same(planes.CodesAt(keys, head), planes.codes(keys))) << "unit " << unit;
    }
  });
}

TEST(KvEncodingCudaTest, WaysDtypesAndDims) {
  struct Case {
    std::int32_t k_dim, v_dim, block_tokens, page_tokens;
  };
  std::mt19937 random(1);
  for (const KvEncoding& encoding : kEncodings) {
    for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32}) {
      for (const Case& c : {Case{128, 128, 32, 32}, Case{64, 72, 16, 4}, Case{8, 40, 8, 8},
                            Case{24, 200, 64, 16}}) {
        const PageLayout layout = Layout(dtype, c.k_dim, c.v_dim, c.block_tokens, c.page_tokens);
        ExpectReference(encoding, layout, Slab(layout, random, 4));
      }
    }
  }
}

// Where scales round, end, or are not.
TEST(KvEncodingCudaTest, Magnitudes) {
  std::mt19937 random(2);
  for (const KvEncoding& encoding : kEncodings) {
    for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kF32}) {
      const PageLayout layout = Layout(dtype, 32, 40, 8, 8);
      for (const float size : {65504.0f, 30000.0f, 1e-3f, 1e-5f, 1e-7f, 1e-20f, 0.0f, -3.0f}) {
        ExpectReference(encoding, layout, Slab(layout, random, size));
      }
    }
  }
}

TEST(KvEncodingCudaTest, WhatCannotBeTakenIsToldOfItsUnitAlone) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(3);
  for (const KvEncoding& encoding : kEncodings) {
    const PageLayout layout = Layout(KvDtype::kF32, 40, 64, 16, 8);
    const std::size_t floats = layout.block_bytes() / sizeof(float);
    for (const float odd : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
                            std::nextafter(65504.0f, kInfinity), -1e30f}) {
      std::vector<std::byte> slab = Slab(layout, random, 2);
      std::memcpy(&slab[sizeof(float) * (random() % floats)], &odd, sizeof(odd));
      ExpectReference(encoding, layout, slab);
    }
  }
}

TEST(KvEncodingCudaTest, RandomBlocks) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    const auto below = [&](unsigned n) { return static_cast<std::int32_t>(random() % n); };
    const std::int32_t block_tokens = 8 << below(5);
    const PageLayout layout = Layout(kKvDtypes[below(3)], 8 * (1 + below(20)), 8 * (1 + below(20)),
                                     block_tokens, std::min(block_tokens, 1 << below(6)));
    const float size = std::ldexp(1.0f, below(40) - 24);
    ExpectReference(kEncodings[seed % std::size(kEncodings)], layout, Slab(layout, random, size));
    if (HasFailure()) break;
  }
}

// The layers of a block: any codes, and ranges that are finite.
std::vector<std::byte> AnyLayers(const KvEncoding& encoding, const PageLayout& layout,
                                 std::mt19937& random) {
  const KvPlanes planes(encoding, layout);
  std::vector<std::byte> in;
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer) {
    for (std::size_t p = 0; p < 4; ++p) {
      for (std::size_t i = 0; i < planes.bytes[p]; ++i) {
        auto byte = static_cast<std::uint8_t>(random());
        // An F16's upper byte: not with all bits of an exponent.
        if (p % 2 == 1 && i % 2 == 1 && (byte & 0x7c) == 0x7c)
          byte &= random() % 2 == 0 ? 0xbb : 0x80;
        in.push_back(static_cast<std::byte>(byte));
      }
    }
  }
  return in;
}

void ExpectDecoded(const KvEncoding& encoding, const PageLayout& layout,
                   const std::vector<std::byte>& in) {
  SCOPED_TRACE(absl::StrCat("keys ", encoding.keys.kind, " values ", encoding.values.kind, " bits ",
                            encoding.values.bits, " dtype ", static_cast<int>(layout.group.dtype),
                            " k_dim ", layout.group.k_dim, " v_dim ", layout.group.v_dim, " block ",
                            layout.block_tokens, " page ", layout.page_tokens));
  std::vector<std::byte> want(layout.slab_bytes(), std::byte{0xff});
  DecodeBlock(encoding, layout, in, want.data());
  const DeviceBuffer<std::byte> device_in(in);
  DeviceBuffer<std::byte> slab(want.size());
  ForEachSchedule([&] {
    slab.Poison();
    ASSERT_TRUE(Ran(static_cast<cudaError_t>(
        DecodeKvCuda(CudaKvBlockOf(encoding, layout), device_in.data(), slab.data(), nullptr))));
    const std::vector<std::byte> got = slab.Get();
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got[i], want[i]) << "byte " << i;
  });
}

TEST(KvEncodingCudaTest, DecodesAsTheHostDoes) {
  struct Case {
    std::int32_t k_dim, v_dim, block_tokens, page_tokens;
  };
  std::mt19937 random(4);
  for (const KvEncoding& encoding : kEncodings) {
    for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32}) {
      for (const Case& c : {Case{128, 128, 32, 32}, Case{64, 72, 16, 4}, Case{8, 40, 8, 8},
                            Case{24, 200, 64, 16}, Case{16, 8, 8, 1}}) {
        const PageLayout layout = Layout(dtype, c.k_dim, c.v_dim, c.block_tokens, c.page_tokens);
        ExpectDecoded(encoding, layout, AnyLayers(encoding, layout, random));
        // As it is made.
        std::vector<std::byte> encoded(EncodedBlockBytes(encoding, layout));
        EncodeBlock(encoding, layout, Slab(layout, random, 4).data(), encoded.data());
        encoded.resize(2 * KvPlanes(encoding, layout).layer_bytes());
        ExpectDecoded(encoding, layout, encoded);
      }
    }
  }
}

// Ranges that are no numbers are refused by who reads a frame; if not, they harm nothing else.
TEST(KvEncodingCudaTest, AnyRangesWriteTheSlabAlone) {
  std::mt19937 random(5);
  for (const KvEncoding& encoding : kEncodings) {
    const PageLayout layout = Layout(KvDtype::kF16, 40, 72, 16, 8);
    std::vector<std::byte> in(2 * KvPlanes(encoding, layout).layer_bytes());
    for (std::byte& b : in) b = static_cast<std::byte>(random() % 4 == 0 ? 0xff : random());
    const DeviceBuffer<std::byte> device_in(in);
    DeviceBuffer<std::byte> slab(layout.slab_bytes());
    ForEachSchedule([&] {
      slab.Poison();
      ASSERT_TRUE(Ran(static_cast<cudaError_t>(
          DecodeKvCuda(CudaKvBlockOf(encoding, layout), device_in.data(), slab.data(), nullptr))));
      const std::vector<std::byte> got = slab.Get();
      for (std::size_t i = layout.block_bytes(); i < got.size(); ++i) {
        ASSERT_EQ(got[i], std::byte{0xff}) << "byte " << i;
      }
    });
  }
}

TEST(KvEncodingCudaTest, ShortBlocksAreRefused) {
  const PageLayout layout = Layout(KvDtype::kF16, 32, 32, 4, 4);
  EXPECT_EQ(DecodeKvCuda(CudaKvBlockOf(kEncodings[0], layout), nullptr, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(EncodeKvCuda(CudaKvBlockOf(kEncodings[0], layout), nullptr, nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace penstock::kernels
