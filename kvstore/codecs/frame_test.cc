// SPDX-License-Identifier: Apache-2.0
#include "kvstore/codecs/frame.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <functional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::kvstore {
namespace {

using Bytes = std::vector<std::byte>;

BlockKey Key(std::uint8_t n) {
  BlockKey key;
  key.space.bytes.fill(n);
  key.chain.bytes.fill(static_cast<std::uint8_t>(n + 1));
  return key;
}

// Two layers of two planes each; the payload's bytes count up.
struct Sample {
  FrameHeader header;
  Bytes payload;
};
Sample MakeSample() {
  Sample s;
  s.header = {.codec = CodecId::kRaw,
              .codec_version = 3,
              .loss = LossClass::kExact,
              .key = Key(7),
              .group = 1,
              .first_position = 96,
              .shape = {.dtype = KvDtype::kBF16,
                        .block_tokens = 32,
                        .cache_layers = 2,
                        .kv_heads = 3,
                        .k_dim = 64,
                        .v_dim = 128},
              .planes = 2,
              .layer_crcs = {},
              .plane_bytes = {5, 0, 7, 12}};
  for (int i = 0; i < 24; ++i) s.payload.push_back(static_cast<std::byte>(i));
  s.header.layer_crcs = {kernels::Crc32c(0, s.payload.data(), 5),
                         kernels::Crc32c(0, s.payload.data() + 5, 19)};
  return s;
}

Bytes Write(const Sample& s, std::optional<Secret> secret) {
  Bytes bytes(FrameHeaderBytes(s.header.shape.cache_layers, s.header.planes, secret.has_value()));
  WriteFrameHeader(s.header, secret, bytes);
  bytes.resize(FramePayloadAt(bytes.size()));
  bytes.insert(bytes.end(), s.payload.begin(), s.payload.end());
  return bytes;
}

// `bytes` with one field changed and the header's checksum made right again.
template <typename T>
Bytes Changed(Bytes bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(value));
  std::uint32_t header_bytes;
  std::memcpy(&header_bytes, bytes.data() + 12, 4);
  if (header_bytes < 4 || header_bytes > bytes.size()) return bytes;
  const std::uint32_t crc = kernels::Crc32c(0, bytes.data(), header_bytes - 4);
  std::memcpy(bytes.data() + header_bytes - 4, &crc, 4);
  return bytes;
}

const std::array<std::byte, 3> kSecret = {std::byte{1}, std::byte{2}, std::byte{3}};
const std::array<std::byte, 3> kOther = {std::byte{1}, std::byte{2}, std::byte{4}};

TEST(FrameTest, ComesBackAsWritten) {
  const Sample s = MakeSample();
  for (const std::optional<Secret> secret :
       {std::optional<Secret>(), std::optional<Secret>(kSecret)}) {
    const Bytes bytes = Write(s, secret);
    EXPECT_EQ(*FrameHeaderBytesOf(std::span(bytes).first(16)),
              FrameHeaderBytes(2, 2, secret.has_value()));
    EXPECT_EQ(bytes.size() - s.payload.size(), 4096u);
    const auto frame =
        ParseFrame(bytes, {.key = s.header.key, .shape = s.header.shape, .secret = secret});
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_EQ(frame->header, s.header);
    EXPECT_EQ(Bytes(frame->payload.begin(), frame->payload.end()), s.payload);
    // Who has no secret reads frames that have a MAC, too.
    EXPECT_TRUE(ParseFrame(bytes, {}).ok());
  }
}

// The table in frame.h, byte by byte.
TEST(FrameTest, LiesWhereTheTableSays) {
  const Bytes bytes = Write(MakeSample(), {});
  const auto number = [&](std::size_t at, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = size; i > 0; --i) {
      value = value << 8 | std::to_integer<std::uint64_t>(bytes[at + i - 1]);
    }
    return value;
  };
  EXPECT_EQ(std::memcmp(bytes.data(), "PKVF", 4), 0);
  const std::uint64_t want[][3] = {{4, 1, 1},   {5, 1, 1},  {6, 1, 3},   {7, 1, 1},    {8, 1, 0},
                                   {9, 1, 1},   {10, 1, 0}, {11, 1, 2},  {12, 4, 128}, {16, 8, 24},
                                   {24, 1, 7},  {40, 1, 8}, {56, 4, 1},  {60, 4, 96},  {64, 4, 32},
                                   {68, 4, 32}, {72, 4, 2}, {76, 4, 3},  {80, 4, 64},  {84, 4, 128},
                                   {92, 4, 5},  {96, 4, 0}, {104, 4, 7}, {108, 4, 12}};
  for (const auto& [at, size, value] : want) EXPECT_EQ(number(at, size), value) << "at " << at;
  EXPECT_EQ(number(124, 4), kernels::Crc32c(0, bytes.data(), 124));
}

TEST(FrameTest, EveryCutIsSeen) {
  const Bytes bytes = Write(MakeSample(), kSecret);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    const auto frame = ParseFrame(std::span(bytes).first(n), {});
    EXPECT_EQ(frame.status().code(), absl::StatusCode::kDataLoss) << "after " << n;
  }
  Bytes longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_EQ(ParseFrame(longer, {}).status().code(), absl::StatusCode::kDataLoss);
}

TEST(FrameTest, EveryFlippedBitIsSeen) {
  for (const std::optional<Secret> secret :
       {std::optional<Secret>(), std::optional<Secret>(kSecret)}) {
    Bytes bytes = Write(MakeSample(), secret);
    for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      EXPECT_FALSE(ParseFrame(bytes, {.key = {}, .shape = {}, .secret = secret}).ok())
          << "bit " << bit;
      bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    }
    EXPECT_TRUE(ParseFrame(bytes, {}).ok());
  }
}

TEST(FrameTest, NamesWhatIsWrong) {
  const Bytes good = Write(MakeSample(), {});
  struct Case {
    const char* name;
    Bytes bytes;
    absl::StatusCode code;
    const char* says;
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const Case cases[] = {
      {"magic", Changed(good, 0, 'X'), kInvalid, "PKVF"},
      {"older", Changed(good, 4, std::uint8_t{0}), kInvalid,
       "older version 0, this program reads version 1"},
      {"newer", Changed(good, 4, std::uint8_t{9}), kInvalid,
       "newer version 9, this program reads version 1"},
      {"codec", Changed(good, 5, std::uint8_t{99}), kInvalid, "codec 99"},
      {"dtype", Changed(good, 7, std::uint8_t{4}), kInvalid, "KV dtype must be from 0 to 3, got 4"},
      {"codec of another dtype", Changed(Changed(good, 5, CodecId::kPlanes), 7, KvDtype::kInt8),
       kInvalid, "codec planes takes no int8 KV"},
      {"loss", Changed(good, 8, std::uint8_t{3}), kInvalid,
       "loss class must be from 0 to 2, got 3"},
      {"exact copy of a lossy codec", Changed(good, 5, CodecId::kInt8), kInvalid,
       "int8 makes no copies of class exact"},
      {"checksum", Changed(good, 9, std::uint8_t{2}), kInvalid,
       "checksum must be from 1 to 1, got 2"},
      {"authentication", Changed(good, 10, std::uint8_t{2}), kInvalid,
       "authentication must be from 0 to 1, got 2"},
      {"no planes", Changed(good, 11, std::uint8_t{0}), kInvalid,
       "planes must be from 1 to 8, got 0"},
      {"planes", Changed(good, 11, std::uint8_t{3}), kInvalid, "bytes in a payload of 24"},
      {"many planes", Changed(good, 11, std::uint8_t{9}), kInvalid,
       "planes must be from 1 to 8, got 9"},
      {"header bytes", Changed(good, 12, std::uint32_t{0}), kInvalid,
       "header bytes must be from 128"},
      {"header bytes odd", Changed(good, 12, std::uint32_t{130}), kInvalid,
       "multiple of 64, got 130"},
      {"payload", Changed(good, 16, std::uint64_t{25}), kInvalid,
       "planes of 24 bytes in a payload of 25"},
      {"group", Changed(good, 56, std::uint32_t{256}), kInvalid,
       "group must be from 0 to 255, got 256"},
      {"position", Changed(good, 60, std::uint32_t{97}), kInvalid, "multiple of 32, got 97"},
      {"positions", Changed(good, 64, std::uint32_t{31}), kInvalid,
       "positions must be from 32 to 32, got 31"},
      {"block_tokens", Changed(good, 68, std::uint32_t{48}), kInvalid, "power of two, got 48"},
      {"layers", Changed(good, 72, std::uint32_t{1025}), kInvalid,
       "cache layers must be from 1 to 1024, got 1025"},
      {"other layers", Changed(good, 72, std::uint32_t{9}), kInvalid, "got 128"},
      {"heads", Changed(good, 76, std::uint32_t{0}), kInvalid,
       "KV heads must be from 1 to 1024, got 0"},
      {"k_dim", Changed(good, 80, std::uint32_t{12}), kInvalid,
       "k_dim must be a multiple of 8, got 12"},
      {"v_dim", Changed(good, 84, std::uint32_t{2048}), kInvalid,
       "v_dim must be from 8 to 1024, got 2048"},
      {"plane", Changed(good, 92, std::uint32_t{0xFFFFFFFF}), kInvalid,
       "bytes of layer 0 must be from 0 to 2147483648"},
      {"padding", Changed(good, 112, std::uint8_t{1}), kInvalid, "byte 112 must be 0, got 1"},
      {"layer checksum", Changed(good, 88, std::uint32_t{1}), absl::StatusCode::kDataLoss,
       "CRC32C of layer 0"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const absl::Status status = ParseFrame(c.bytes, {}).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.says)) << status;
  }
}

// What a lossless codec packs may have been changed before.
TEST(FrameTest, AnyCodecMakesCopiesOfAClassWithALoss) {
  const Sample s = MakeSample();
  const absl::StatusOr<Frame> lossy =
      ParseFrame(Changed(Write(s, {}), 8, std::uint8_t{1}), {.key = s.header.key});
  ASSERT_TRUE(lossy.ok()) << lossy.status();
  EXPECT_EQ(lossy->header.loss, LossClass::kKl3);
}

TEST(FrameTest, RefusesWhatWasNotAskedFor) {
  const Sample s = MakeSample();
  const Bytes plain = Write(s, {});
  const Bytes signed_one = Write(s, kSecret);
  BlockShape other = s.header.shape;
  other.kv_heads = 4;
  constexpr auto kOtherBlock = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(ParseFrame(plain, {.key = Key(8), .shape = {}, .secret = {}}).status().code(),
            kOtherBlock);
  EXPECT_EQ(ParseFrame(plain, {.key = {}, .shape = other, .secret = {}}).status().code(),
            kOtherBlock);
  constexpr auto kForged = absl::StatusCode::kDataLoss;
  EXPECT_EQ(ParseFrame(plain, {.key = {}, .shape = {}, .secret = kSecret}).status().code(),
            kForged);
  EXPECT_EQ(ParseFrame(signed_one, {.key = {}, .shape = {}, .secret = kOther}).status().code(),
            kForged);
  // A field changed by one who can compute checksums only.
  const Bytes changed = Changed(signed_one, 60, std::uint32_t{64});
  EXPECT_TRUE(ParseFrame(changed, {}).ok());
  EXPECT_EQ(ParseFrame(changed, {.key = {}, .shape = {}, .secret = kSecret}).status().code(),
            kForged);
}

}  // namespace
}  // namespace penstock::kvstore
