// SPDX-License-Identifier: Apache-2.0
#include "kvstore/codecs/codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "base/status.h"
#include "kernels/kv_encoding.h"

namespace penstock::kvstore {
namespace {

using Bytes = std::vector<std::byte>;

constexpr KvDtype kDtypes[] = {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32};

LossClass LossOf(CodecId id) { return IsLossless(id) ? LossClass::kExact : LossClass::kKl2; }

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
  const auto bits = dtype == KvDtype::kF16 ? static_cast<std::uint16_t>(ToF16(value))
                                           : static_cast<std::uint16_t>(ToBF16(value));
  std::memcpy(x.data() + 2 * i, &bits, 2);
}

enum class Content { kNormal, kUnevenColumns, kZeros, kAnyBits };

Bytes MakeSlab(const PageLayout& layout, Content content, std::mt19937& random) {
  Bytes slab(layout.block_bytes());
  if (content == Content::kZeros) return slab;
  const KvDtype dtype = layout.group.dtype;
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < slab.size() / BytesPerElement(dtype); ++i) {
    if (content == Content::kAnyBits) {
      const std::uint32_t bits = random();
      std::memcpy(slab.data() + i * BytesPerElement(dtype), &bits, BytesPerElement(dtype));
      continue;
    }
    const float scale =
        content == Content::kNormal ? 1 : std::ldexp(1.0f, static_cast<int>(i * 7 % 8) * 3 - 12);
    SetValue(dtype, scale * normal(random), slab, i);
  }
  return slab;
}

struct Encoded {
  absl::Status status;
  Bytes bytes;
};
Encoded Encode(CodecId id, const PageLayout& layout, const Bytes& slab) {
  CodecScratch scratch;
  const Codec& codec = CodecOf(id);
  Encoded encoded;
  encoded.bytes.resize(FrameBytesMax(codec, ShapeOf(layout), false));
  const absl::StatusOr<std::size_t> bytes =
      EncodeFrame(codec, {.key = {}, .loss = LossOf(id), .group = 0, .first_position = 0}, layout,
                  slab.data(), {}, scratch, encoded.bytes);
  encoded.status = bytes.status();
  encoded.bytes.resize(bytes.ok() ? *bytes : 0);
  return encoded;
}

absl::StatusOr<Bytes> Decode(const Bytes& bytes, const PageLayout& layout) {
  CodecScratch scratch;
  Bytes slab(layout.block_bytes() + 1, std::byte{0xA5});
  ASSIGN_OR_RETURN(const Frame frame,
                   ParseFrame(bytes, {.key = {}, .shape = ShapeOf(layout), .secret = {}}));
  RETURN_IF_ERROR(DecodeFrame(frame, layout, scratch, slab.data()));
  EXPECT_EQ(slab.back(), std::byte{0xA5});
  slab.pop_back();
  return slab;
}

PageLayout Layout(KvDtype dtype, std::int32_t layers, std::int32_t heads, std::int32_t k_dim,
                  std::int32_t v_dim, std::int32_t block_tokens, std::int32_t page_tokens) {
  const auto layout = PageLayout::Make({.window_tokens = 0,
                                        .cache_layers = layers,
                                        .kv_heads = heads,
                                        .k_dim = k_dim,
                                        .v_dim = v_dim,
                                        .dtype = dtype},
                                       block_tokens, page_tokens);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *layout;
}

// Calls check(layout) for shapes even and odd.
template <typename Check>
void ForAllShapes(Check check) {
  struct Shape {
    std::int32_t layers, heads, k_dim, v_dim, block_tokens, page_tokens;
  };
  constexpr Shape kShapes[] = {{1, 1, 8, 8, 1, 1},       {2, 1, 64, 64, 32, 32},
                               {1, 3, 64, 64, 32, 8},    {1, 8, 128, 128, 16, 16},
                               {1, 2, 256, 256, 64, 64}, {2, 5, 40, 72, 4, 2},
                               {1, 7, 96, 24, 2, 2},     {3, 2, 80, 128, 16, 4},
                               {1, 4, 8, 256, 64, 1},    {1, 1, 1024, 1016, 8, 8}};
  for (const KvDtype dtype : kDtypes) {
    for (const Shape& s : kShapes) {
      SCOPED_TRACE(absl::StrCat(std::string(ToString(dtype)), " layers=", s.layers,
                                " heads=", s.heads, " dims=", s.k_dim, "+", s.v_dim,
                                " tokens=", s.block_tokens, "/", s.page_tokens));
      check(Layout(dtype, s.layers, s.heads, s.k_dim, s.v_dim, s.block_tokens, s.page_tokens));
    }
  }
}

TEST(CodecTest, NamesComeBack) {
  for (const CodecId id : AllCodecs()) {
    EXPECT_EQ(*ParseCodecId(ToString(id)), id);
    EXPECT_EQ(CodecOf(id).id(), id);
  }
  EXPECT_FALSE(ParseCodecId("zip").ok());
}

TEST(CodecTest, LosslessOnesGiveEveryBitBack) {
  std::mt19937 random(1);
  ForAllShapes([&](const PageLayout& layout) {
    for (const Content content :
         {Content::kNormal, Content::kUnevenColumns, Content::kZeros, Content::kAnyBits}) {
      const Bytes slab = MakeSlab(layout, content, random);
      for (const CodecId id : {CodecId::kRaw, CodecId::kPlanes, CodecId::kPlanesZstd}) {
        SCOPED_TRACE(
            absl::StrCat(std::string(ToString(id)), " content ", static_cast<int>(content)));
        const Encoded encoded = Encode(id, layout, slab);
        ASSERT_TRUE(encoded.status.ok()) << encoded.status;
        const auto back = Decode(encoded.bytes, layout);
        ASSERT_TRUE(back.ok()) << back.status();
        EXPECT_TRUE(*back == slab);
        // Nothing gets longer but by its header.
        EXPECT_LE(encoded.bytes.size(), slab.size() + FramePayloadAt(FrameHeaderBytes(
                                                          layout.group.cache_layers, 5, false)));
      }
    }
  });
}

TEST(CodecTest, LossyOnesStayInTheirSteps) {
  std::mt19937 random(2);
  ForAllShapes([&](const PageLayout& layout) {
    const Bytes slab = MakeSlab(layout, Content::kNormal, random);
    const std::size_t values = slab.size() / BytesPerElement(layout.group.dtype);
    // Of values from -6 to 6, in steps of F16's precision.
    for (const auto& [id, step] : {std::pair{CodecId::kInt8, 6.0 / 127},
                                   {CodecId::kK8v4, 12.0 / 15},
                                   {CodecId::kKivi4, 12.0 / 15},
                                   {CodecId::kKivi2, 12.0 / 3},
                                   {CodecId::kAnsFine, 0.5},
                                   {CodecId::kAnsMedium, 1.0},
                                   {CodecId::kAnsCoarse, 2.0}}) {
      SCOPED_TRACE(std::string(ToString(id)));
      const Encoded encoded = Encode(id, layout, slab);
      ASSERT_TRUE(encoded.status.ok()) << encoded.status;
      const auto back = Decode(encoded.bytes, layout);
      ASSERT_TRUE(back.ok()) << back.status();
      for (std::size_t i = 0; i < values; ++i) {
        const float was = Value(layout.group.dtype, slab, i);
        ASSERT_LE(std::abs(was), 6);
        ASSERT_NEAR(Value(layout.group.dtype, *back, i), was, step / 2 * 1.01 + 0x1p-7) << i;
      }
    }
  });
}

// A page's size is its pool's matter.
TEST(CodecTest, PagesOfAnySizeMakeTheSameFrame) {
  std::mt19937 random(3);
  const PageLayout whole = Layout(KvDtype::kF16, 2, 3, 64, 32, 16, 16);
  const PageLayout parts = Layout(KvDtype::kF16, 2, 3, 64, 32, 16, 4);
  const Bytes slab = MakeSlab(whole, Content::kNormal, random);
  for (const CodecId id : AllCodecs()) {
    const Encoded encoded = Encode(id, whole, slab);
    const auto other = Decode(encoded.bytes, parts);
    ASSERT_TRUE(other.ok()) << other.status();
    const auto same = Decode(encoded.bytes, whole);
    ASSERT_TRUE(same.ok()) << same.status();
    EXPECT_NE(*same, *other);
    const Encoded again = Encode(CodecId::kRaw, parts, *other);
    EXPECT_EQ(again.bytes, Encode(CodecId::kRaw, whole, *same).bytes);
  }
}

// Of int8 pages: levels and scales go with the rows they are of, and nothing but raw takes them.
TEST(CodecTest, Int8PagesGoRawAndTheirScalesWithThem) {
  std::mt19937 random(8);
  const PageLayout whole = Layout(KvDtype::kInt8, 2, 3, 64, 40, 16, 16);
  Bytes slab(whole.block_bytes());
  for (std::byte& byte : slab) byte = static_cast<std::byte>(random());
  const Encoded encoded = Encode(CodecId::kRaw, whole, slab);
  ASSERT_TRUE(encoded.status.ok()) << encoded.status;
  const auto same = Decode(encoded.bytes, whole);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(*same, slab);
  for (const std::int32_t page_tokens : {4, 8}) {
    SCOPED_TRACE(absl::StrCat("page_tokens=", page_tokens));
    const PageLayout parts = Layout(KvDtype::kInt8, 2, 3, 64, 40, 16, page_tokens);
    const auto other = Decode(encoded.bytes, parts);
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_EQ(Encode(CodecId::kRaw, parts, *other).bytes, encoded.bytes);
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t head = 0; head < 3; ++head) {
        for (std::int32_t token = 0; token < 16; ++token) {
          const std::size_t from = whole.PageOffset(layer, head, 0);
          const std::size_t to = parts.PageOffset(layer, head, token / page_tokens);
          const auto row = static_cast<std::size_t>(token);
          const auto in_page = static_cast<std::size_t>(token % page_tokens);
          const auto equal = [&](std::size_t a, std::size_t b, std::size_t bytes) {
            return std::memcmp(slab.data() + from + a, other->data() + to + b, bytes) == 0;
          };
          EXPECT_TRUE(equal(64 * row, 64 * in_page, 64)) << token;
          EXPECT_TRUE(equal(whole.v_offset() + 40 * row, parts.v_offset() + 40 * in_page, 40))
              << token;
          EXPECT_TRUE(
              equal(whole.k_scales_offset() + 2 * row, parts.k_scales_offset() + 2 * in_page, 2))
              << token;
          EXPECT_TRUE(
              equal(whole.v_scales_offset() + 2 * row, parts.v_scales_offset() + 2 * in_page, 2))
              << token;
        }
      }
    }
  }
  for (const CodecId id : AllCodecs()) {
    if (id == CodecId::kRaw) continue;
    const absl::Status status = Encode(id, whole, slab).status;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()),
              absl::StrCat("codec ", std::string(ToString(id)), " takes no int8 KV; raw does"));
  }
}

TEST(CodecTest, LossyOnesRefuseWhatScalesCannotHold) {
  std::mt19937 random(4);
  for (const KvDtype dtype : kDtypes) {
    const PageLayout layout = Layout(dtype, 2, 2, 32, 32, 8, 8);
    const std::size_t values = layout.block_bytes() / BytesPerElement(dtype);
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN(), 70000.0f}) {
      for (const std::size_t at : {std::size_t{0}, values / 3, values - 1}) {
        Bytes slab = MakeSlab(layout, Content::kNormal, random);
        SetValue(dtype, bad, slab, at);
        for (const CodecId id : AllCodecs()) {
          if (IsLossless(id)) continue;
          const absl::Status status = Encode(id, layout, slab).status;
          EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
          EXPECT_TRUE(absl::StrContains(status.message(), "up to 65504")) << status;
        }
      }
    }
  }
}

TEST(CodecTest, AnEncodedBlockMakesTheSameFrame) {
  std::mt19937 random(9);
  CodecScratch scratch;
  ForAllShapes([&](const PageLayout& layout) {
    for (const CodecId id : AllCodecs()) {
      const std::optional<kernels::KvEncoding> encoding = EncodingOf(id);
      if (!encoding.has_value() || encoding->lossless) continue;
      const Bytes slab = MakeSlab(layout, Content::kNormal, random);
      Bytes encoded(kernels::EncodedBlockBytes(*encoding, layout));
      kernels::EncodeBlock(*encoding, layout, slab.data(), encoded.data());
      const FrameMeta meta = {.key = {}, .loss = LossOf(id), .group = 0, .first_position = 0};
      Bytes frame(FrameBytesMax(CodecOf(id), ShapeOf(layout), false));
      const auto bytes =
          FrameEncoded(CodecOf(id), meta, layout, encoded.data(), {}, scratch, frame);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      frame.resize(*bytes);
      EXPECT_TRUE(frame == Encode(id, layout, slab).bytes);
      encoded.back() = std::byte{1};  // A fault of the last head's values.
      frame.resize(FrameBytesMax(CodecOf(id), ShapeOf(layout), false));
      EXPECT_EQ(FrameEncoded(CodecOf(id), meta, layout, encoded.data(), {}, scratch, frame)
                    .status()
                    .code(),
                absl::StatusCode::kInvalidArgument);
    }
  });
}

TEST(CodecTest, PlanesMakeOrdinaryNumbersShorter) {
  std::mt19937 random(5);
  struct Case {
    KvDtype dtype;
    CodecId id;
    double least;
  };
  for (const Content content : {Content::kNormal, Content::kUnevenColumns}) {
    for (const Case& c : {Case{KvDtype::kBF16, CodecId::kPlanes, 1.28},
                          {KvDtype::kBF16, CodecId::kPlanesZstd, 1.40},
                          {KvDtype::kF16, CodecId::kPlanes, 1.08},
                          {KvDtype::kF16, CodecId::kPlanesZstd, 1.10},
                          {KvDtype::kF32, CodecId::kPlanes, 1.12}}) {
      const PageLayout layout = Layout(c.dtype, 2, 2, 64, 64, 32, 32);
      const Bytes slab = MakeSlab(layout, content, random);
      // Of the payload: a header takes as much of a small block as of a large one.
      const std::size_t header = FramePayloadAt(FrameHeaderBytes(2, CodecOf(c.id).planes(), false));
      const double ratio = static_cast<double>(slab.size()) /
                           static_cast<double>(Encode(c.id, layout, slab).bytes.size() - header);
      EXPECT_GE(ratio, c.least) << ToString(c.dtype) << " " << ToString(c.id) << " content "
                                << static_cast<int>(content);
    }
  }
}

TEST(CodecTest, RefusesAnotherVersionAndShape) {
  std::mt19937 random(6);
  const PageLayout layout = Layout(KvDtype::kF16, 1, 1, 32, 32, 8, 8);
  const PageLayout other = Layout(KvDtype::kF16, 1, 2, 32, 32, 8, 8);
  const Bytes slab = MakeSlab(layout, Content::kNormal, random);
  for (const CodecId id : AllCodecs()) {
    const Encoded encoded = Encode(id, layout, slab);
    auto frame = ParseFrame(encoded.bytes, {});
    ASSERT_TRUE(frame.ok()) << frame.status();
    CodecScratch scratch;
    Bytes to(other.block_bytes());
    EXPECT_EQ(DecodeFrame(*frame, other, scratch, to.data()).code(),
              absl::StatusCode::kFailedPrecondition);
    frame->header.codec_version = 200;
    const absl::Status status = DecodeFrame(*frame, layout, scratch, to.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(status.message(), "version 200")) << status;
  }
}

// Payloads that no encoder made, with lengths around the right ones: an error or some numbers.
TEST(CodecTest, AnyPayloadIsTakenOrRefused) {
  std::mt19937 random(7);
  CodecScratch scratch;
  for (const CodecId id : AllCodecs()) {
    for (const KvDtype dtype : kDtypes) {
      const PageLayout layout = Layout(dtype, 1, 2, 40, 64, 8, 8);
      const auto good = ParseFrameHeader(
          Encode(id, layout, MakeSlab(layout, Content::kNormal, random)).bytes, {});
      ASSERT_TRUE(good.ok());
      for (int round = 0; round < 300; ++round) {
        FrameHeader header = *good;
        for (std::uint32_t& bytes : header.plane_bytes) {
          if (random() % 4 == 0) bytes = random() % (2 * bytes + 10);
        }
        Bytes payload(static_cast<std::size_t>(header.payload_bytes()));
        for (std::byte& byte : payload) byte = static_cast<std::byte>(random());
        Bytes slab(layout.block_bytes());
        const absl::Status status =
            DecodeFrameLayer(header, 0, payload, layout, scratch, slab.data());
        EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument) << status;
      }
    }
  }
}

}  // namespace
}  // namespace penstock::kvstore
