// SPDX-License-Identifier: Apache-2.0
// What a device and the host make together is what the host would have made.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/seed_testing.h"
#include "kernels/elementwise.h"
#include "kernels/kv_encoding.h"
#include "kvstore/codecs/codec.h"

namespace penstock::kvstore {
namespace {

using Bytes = std::vector<std::byte>;

constexpr KvDtype kDtypes[] = {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32};
constexpr CodecId kCodecs[] = {CodecId::kPlanes, CodecId::kPlanesZstd, CodecId::kInt8,
                               CodecId::kK8v4,   CodecId::kKivi4,      CodecId::kKivi2};

PageLayout Layout(KvDtype dtype, std::int32_t block_tokens, std::int32_t page_tokens) {
  return *PageLayout::Make(
      {.cache_layers = 3, .kv_heads = 2, .k_dim = 40, .v_dim = 64, .dtype = dtype}, block_tokens,
      page_tokens);
}

// Layer 1 has columns of unlike sizes; with `wild`, layer 2 is any bits that are numbers.
Bytes Slab(const PageLayout& layout, bool wild, std::mt19937& random) {
  Bytes slab(layout.slab_bytes());
  const std::size_t element = BytesPerElement(layout.group.dtype);
  const std::size_t values = layout.block_bytes() / element;
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < values; ++i) {
    const std::size_t layer = 3 * i / values;
    const int power = layer == 1   ? static_cast<int>(i % 8) * 2 - 8
                      : layer == 0 ? 0
                      : wild       ? static_cast<int>(random() % 28) - 14
                                   : 0;
    const float value = std::ldexp(normal(random), power);
    kernels::NarrowRow(layout.group.dtype, &value, 1, &slab[i * element], nullptr);
  }
  return slab;
}

FrameMeta MetaOf(CodecId id) {
  return {.key = {}, .loss = IsLossless(id) ? LossClass::kExact : LossClass::kKl2};
}

Bytes FrameOf(CodecId id, const PageLayout& layout, const Bytes& slab) {
  CodecScratch scratch;
  Bytes frame(FrameBytesMax(CodecOf(id), ShapeOf(layout), false));
  const auto bytes = EncodeFrame(CodecOf(id), MetaOf(id), layout, slab.data(), {}, scratch, frame);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  frame.resize(bytes.value_or(0));
  return frame;
}

absl::StatusOr<Bytes> FrameByDevice(CodecId id, const PageLayout& layout, const Bytes& slab) {
  CodecScratch scratch;
  const kernels::KvEncoding encoding = *EncodingOf(id);
  Bytes encoded(kernels::EncodedBlockBytes(encoding, layout));
  EXPECT_LE(encoded.size(), kernels::EncodedBlockBytesMax(layout));
  kernels::EncodeBlock(encoding, layout, slab.data(), encoded.data());
  Bytes frame(FrameBytesMax(CodecOf(id), ShapeOf(layout), false));
  const auto bytes =
      FrameEncoded(CodecOf(id), MetaOf(id), layout, encoded.data(), {}, scratch, frame);
  if (!bytes.ok()) return bytes.status();
  frame.resize(*bytes);
  return frame;
}

absl::StatusOr<kernels::EncodedBlock> ForDevice(const Frame& frame, const PageLayout& layout) {
  CodecScratch scratch;
  return EncodedOf(frame.header, layout, scratch, {frame.payload.begin(), frame.payload.end()});
}

TEST(OnDeviceTest, FramesAreTheHosts) {
  std::mt19937 random(1);
  for (const KvDtype dtype : kDtypes) {
    for (const CodecId id : kCodecs) {
      for (const bool wild : {false, true}) {
        SCOPED_TRACE(absl::StrCat(std::string(ToString(id)), static_cast<int>(dtype), wild));
        const PageLayout layout = Layout(dtype, 32, 8);
        const Bytes slab = Slab(layout, wild, random);
        const absl::StatusOr<Bytes> frame = FrameByDevice(id, layout, slab);
        if (frame.status().code() == absl::StatusCode::kResourceExhausted) {
          EXPECT_TRUE(wild && IsLossless(id)) << frame.status();
          continue;
        }
        ASSERT_TRUE(frame.ok()) << frame.status();
        EXPECT_EQ(*frame, FrameOf(id, layout, slab));
      }
    }
  }
}

TEST(OnDeviceTest, WhatHasTooManyEscapesIsToldApart) {
  std::mt19937 random(2);
  const PageLayout layout = Layout(KvDtype::kF16, 32, 32);
  EXPECT_EQ(FrameByDevice(CodecId::kPlanes, layout, Slab(layout, true, random)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(OnDeviceTest, DecodedBlocksAreTheHosts) {
  std::mt19937 random(3);
  for (const KvDtype dtype : kDtypes) {
    for (const CodecId id : kCodecs) {
      for (const bool wild : {false, true}) {
        SCOPED_TRACE(absl::StrCat(std::string(ToString(id)), static_cast<int>(dtype), wild));
        const PageLayout layout = Layout(dtype, 16, 4);
        const Bytes bytes = FrameOf(id, layout, Slab(layout, wild, random));
        const absl::StatusOr<Frame> frame = ParseFrame(bytes, {});
        ASSERT_TRUE(frame.ok()) << frame.status();
        CodecScratch scratch;
        Bytes want(layout.slab_bytes());
        ASSERT_TRUE(DecodeFrame(*frame, layout, scratch, want.data()).ok());
        const absl::StatusOr<kernels::EncodedBlock> encoded = ForDevice(*frame, layout);
        ASSERT_TRUE(encoded.ok()) << encoded.status();
        EXPECT_LE(encoded->bytes.size(), kernels::EncodedBytesMax(layout));
        Bytes got(layout.slab_bytes());
        kernels::DecodeBlock(encoded->encoding, layout, encoded->bytes, got.data());
        EXPECT_EQ(got, want);
      }
    }
  }
}

// Whatever the payload and the lengths of its planes: taken or refused as by the host, with its words,
// and if taken, the same slab.
TEST(OnDeviceTest, AnyPayloadIsTakenOrRefusedAsByTheHost) {
  int taken = 0;
  int refused = 0;
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    const CodecId id = kCodecs[seed % std::size(kCodecs)];
    const PageLayout layout = Layout(kDtypes[random() % 3], 8, 8);
    const Bytes bytes = FrameOf(id, layout, Slab(layout, random() % 2 == 0, random));
    absl::StatusOr<Frame> frame = ParseFrame(bytes, {});
    ASSERT_TRUE(frame.ok()) << frame.status();
    Bytes payload(frame->payload.begin(), frame->payload.end());
    for (std::uint32_t i = random() % 4; i > 0; --i) {
      payload[random() % payload.size()] = static_cast<std::byte>(random());
    }
    // Bytes go from one plane to another, or come from nowhere.
    std::vector<std::uint32_t>& lengths = frame->header.plane_bytes;
    if (random() % 3 == 0) {
      std::uint32_t& from = lengths[random() % lengths.size()];
      const std::uint32_t moved = std::min<std::uint32_t>(from, random() % 3);
      from -= moved;
      lengths[random() % lengths.size()] += random() % 2 == 0 ? moved : moved + 1;
    }
    payload.resize(frame->header.payload_bytes());
    frame->payload = payload;
    CodecScratch scratch;
    Bytes want(layout.slab_bytes());
    const absl::Status host = DecodeFrame(*frame, layout, scratch, want.data());
    const absl::StatusOr<kernels::EncodedBlock> encoded = ForDevice(*frame, layout);
    EXPECT_EQ(encoded.status(), host);
    (host.ok() ? taken : refused) += 1;
    if (!encoded.ok()) continue;
    EXPECT_LE(encoded->bytes.size(), kernels::EncodedBytesMax(layout));
    Bytes got(layout.slab_bytes());
    kernels::DecodeBlock(encoded->encoding, layout, encoded->bytes, got.data());
    EXPECT_EQ(got, want);
    if (HasFailure()) break;
  }
  EXPECT_GT(taken, 50);
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace penstock::kvstore
