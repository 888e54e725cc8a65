// SPDX-License-Identifier: Apache-2.0
#include "kvstore/codecs/frame.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <iterator>
#include <string>

#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::kvstore {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::array<char, 4> kMagic = {'P', 'K', 'V', 'F'};
constexpr std::uint8_t kChecksumCrc32c = 1;
constexpr std::uint8_t kNoMac = 0;
constexpr std::uint8_t kHmacSha256 = 1;
constexpr std::size_t kMacBytes = 32;
constexpr std::size_t kCrcBytes = 4;
constexpr std::size_t kHeaderStep = 64;
constexpr std::size_t kKeyAt = 24;
constexpr std::size_t kNumbersAt = 56;
constexpr std::size_t kStartBytes = 16;

using Mac = std::array<std::uint8_t, kMacBytes>;

Mac MacOf(Secret secret, std::span<const std::byte> bytes) {
  Mac mac{};
  unsigned length = 0;
  const auto* const data = reinterpret_cast<const unsigned char*>(bytes.data());
  CHECK(HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()), data, bytes.size(),
             mac.data(), &length) != nullptr);
  CHECK_EQ(length, kMacBytes);
  return mac;
}

template <typename T>
T NumberAt(std::span<const std::byte> bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

template <typename T>
void PutNumber(std::span<std::byte> bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(value));
}

// Where the MAC or, without one, the checksum of a header begins.
std::size_t TrailerAt(std::size_t header_bytes, bool authenticated) {
  return header_bytes - kCrcBytes - (authenticated ? kMacBytes : 0);
}

std::size_t TableBytes(std::int32_t layers, std::int32_t planes) {
  return static_cast<std::size_t>(layers) * 4 * (1 + static_cast<std::size_t>(planes));
}

std::string Hex(const BlockKey& key) {
  return penstock::ToHex(key.space.bytes) + "/" + penstock::ToHex(key.chain.bytes);
}

std::string Text(const BlockShape& s) {
  return absl::StrCat(ToAbsl(penstock::ToString(s.dtype)), " [", s.cache_layers, " layers, ",
                      s.kv_heads, " heads, ", s.block_tokens, " tokens, ", s.k_dim, " + ", s.v_dim,
                      "]");
}

// The fields between table and start, in their order from kNumbersAt on.
struct Numbers {
  std::uint32_t group, first_position, positions, block_tokens, layers, heads, k_dim, v_dim;
};

absl::Status CheckNumbers(const Numbers& n) {
  constexpr std::int64_t kMost = INT32_MAX;
  RETURN_IF_ERROR(CheckRange("frame: group", n.group, 0, 255));
  RETURN_IF_ERROR(CheckRange("frame: block_tokens", n.block_tokens, 1, 1024));
  if (!std::has_single_bit(n.block_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("frame: block_tokens must be a power of two, got ", n.block_tokens));
  }
  RETURN_IF_ERROR(CheckRange("frame: first position", n.first_position, 0, kMost));
  if (n.first_position % n.block_tokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("frame: first position must be a multiple of ",
                                                   n.block_tokens, ", got ", n.first_position));
  }
  RETURN_IF_ERROR(CheckRange("frame: positions", n.positions, n.block_tokens, n.block_tokens));
  RETURN_IF_ERROR(CheckRange("frame: cache layers", n.layers, 1, kFrameLayersMax));
  RETURN_IF_ERROR(CheckRange("frame: KV heads", n.heads, 1, kFrameHeadsMax));
  for (const auto& [name, dim] : {std::pair("frame: k_dim", n.k_dim), {"frame: v_dim", n.v_dim}}) {
    RETURN_IF_ERROR(CheckRange(name, dim, 8, 1024));
    if (dim % 8 != 0) {
      return absl::InvalidArgumentError(absl::StrCat(name, " must be a multiple of 8, got ", dim));
    }
  }
  return absl::OkStatus();
}

struct Start {
  std::size_t header_bytes;
  std::int32_t planes;
  bool authenticated;
};

// The first 16 bytes, but for what only a good checksum makes worth reading.
absl::StatusOr<Start> ParseStart(std::span<const std::byte> bytes) {
  if (bytes.size() < kStartBytes) {
    return absl::DataLossError(
        absl::StrCat("a frame has at least ", kStartBytes, " bytes, got ", bytes.size()));
  }
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return absl::InvalidArgumentError("not a frame: it does not begin with PKVF");
  }
  const auto version = NumberAt<std::uint8_t>(bytes, 4);
  if (version != kFrameVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of the ", version < kFrameVersion ? "older" : "newer", " version ",
                     version, ", this program reads version ", kFrameVersion));
  }
  const auto checksum = NumberAt<std::uint8_t>(bytes, 9);
  RETURN_IF_ERROR(CheckRange("frame: checksum", checksum, kChecksumCrc32c, kChecksumCrc32c));
  const auto mac = NumberAt<std::uint8_t>(bytes, 10);
  RETURN_IF_ERROR(CheckRange("frame: authentication", mac, kNoMac, kHmacSha256));
  const auto planes = NumberAt<std::uint8_t>(bytes, 11);
  RETURN_IF_ERROR(CheckRange("frame: planes", planes, 1, kFramePlanesMax));
  const auto header_bytes = NumberAt<std::uint32_t>(bytes, 12);
  const bool authenticated = mac == kHmacSha256;
  RETURN_IF_ERROR(CheckRange(
      "frame: header bytes", header_bytes,
      static_cast<std::int64_t>(FrameHeaderBytes(1, planes, authenticated)),
      static_cast<std::int64_t>(FrameHeaderBytes(kFrameLayersMax, planes, authenticated))));
  if (header_bytes % kHeaderStep != 0) {
    return absl::InvalidArgumentError(absl::StrCat("frame: header bytes must be a multiple of ",
                                                   kHeaderStep, ", got ", header_bytes));
  }
  return Start{header_bytes, planes, authenticated};
}

absl::Status CheckTrailer(std::span<const std::byte> header, const Start& start,
                          const std::optional<Secret>& secret) {
  const std::size_t crc_at = header.size() - kCrcBytes;
  const auto want = NumberAt<std::uint32_t>(header, crc_at);
  const std::uint32_t got = kernels::Crc32c(0, header.data(), crc_at);
  if (want != got) {
    return absl::DataLossError(
        absl::StrCat("frame: the header's CRC32C is ", got, ", it says ", want));
  }
  if (!secret.has_value()) return absl::OkStatus();
  if (!start.authenticated) {
    return absl::DataLossError("frame: without a MAC, but this cluster has a secret");
  }
  const std::size_t mac_at = TrailerAt(header.size(), true);
  const Mac mac = MacOf(*secret, header.first(mac_at));
  if (CRYPTO_memcmp(mac.data(), header.data() + mac_at, kMacBytes) != 0) {
    return absl::DataLossError("frame: its MAC is not by this cluster's secret");
  }
  return absl::OkStatus();
}

// Codec, types, key, shape: all but the table.
absl::StatusOr<FrameHeader> ParseFields(std::span<const std::byte> bytes, const Start& start) {
  FrameHeader header;
  header.planes = start.planes;
  header.codec = static_cast<CodecId>(bytes[5]);
  if (ToString(header.codec) == "unknown") {
    return absl::InvalidArgumentError(absl::StrCat("frame: codec ", static_cast<int>(bytes[5]),
                                                   " is none that this program knows"));
  }
  header.codec_version = static_cast<std::uint8_t>(bytes[6]);
  const auto dtype = static_cast<std::uint8_t>(bytes[7]);
  RETURN_IF_ERROR(CheckRange("frame: KV dtype", dtype, 0, std::size(kKvDtypes) - 1));
  const auto loss = static_cast<std::uint8_t>(bytes[8]);
  RETURN_IF_ERROR(CheckRange("frame: loss class", loss, 0, 2));
  header.loss = static_cast<LossClass>(loss);
  if (!IsLossless(header.codec) && header.loss == LossClass::kExact) {
    return absl::InvalidArgumentError(absl::StrCat("frame: codec ", ToAbsl(ToString(header.codec)),
                                                   " makes no copies of class ",
                                                   ToAbsl(ToString(header.loss))));
  }
  RETURN_IF_ERROR(CheckTakes(header.codec, static_cast<KvDtype>(dtype)));
  std::memcpy(header.key.space.bytes.data(), bytes.data() + kKeyAt, 16);
  std::memcpy(header.key.chain.bytes.data(), bytes.data() + kKeyAt + 16, 16);
  const auto n = NumberAt<Numbers>(bytes, kNumbersAt);
  RETURN_IF_ERROR(CheckNumbers(n));
  header.group = static_cast<std::int32_t>(n.group);
  header.first_position = static_cast<std::int32_t>(n.first_position);
  header.shape = {.dtype = static_cast<KvDtype>(dtype),
                  .block_tokens = static_cast<std::int32_t>(n.block_tokens),
                  .cache_layers = static_cast<std::int32_t>(n.layers),
                  .kv_heads = static_cast<std::int32_t>(n.heads),
                  .k_dim = static_cast<std::int32_t>(n.k_dim),
                  .v_dim = static_cast<std::int32_t>(n.v_dim)};
  return header;
}

absl::Status ParseTable(std::span<const std::byte> bytes, const Start& start, FrameHeader& header) {
  const std::size_t want =
      FrameHeaderBytes(header.shape.cache_layers, header.planes, start.authenticated);
  if (bytes.size() != want) {
    return absl::InvalidArgumentError(absl::StrCat("frame: a header of ", header.shape.cache_layers,
                                                   " layers and ", header.planes, " planes has ",
                                                   want, " bytes, got ", bytes.size()));
  }
  std::size_t at = kFrameFixedBytes;
  for (std::int32_t layer = 0; layer < header.shape.cache_layers; ++layer) {
    header.layer_crcs.push_back(NumberAt<std::uint32_t>(bytes, at));
    at += 4;
    for (std::int32_t plane = 0; plane < header.planes; ++plane, at += 4) {
      header.plane_bytes.push_back(NumberAt<std::uint32_t>(bytes, at));
    }
    RETURN_IF_ERROR(CheckRange(absl::StrCat("frame: bytes of layer ", layer),
                               static_cast<std::int64_t>(header.LayerBytes(layer)), 0,
                               static_cast<std::int64_t>(kFrameLayerBytesMax)));
  }
  for (; at < TrailerAt(bytes.size(), start.authenticated); ++at) {
    if (bytes[at] != std::byte{0}) {
      return absl::InvalidArgumentError(
          absl::StrCat("frame: byte ", at, " must be 0, got ", static_cast<int>(bytes[at])));
    }
  }
  const auto payload = NumberAt<std::uint64_t>(bytes, 16);
  if (payload != header.payload_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("frame: planes of ", header.payload_bytes(),
                                                   " bytes in a payload of ", payload));
  }
  return absl::OkStatus();
}

absl::Status CheckExpected(const FrameHeader& header, const FrameExpected& expected) {
  if (expected.key.has_value() && *expected.key != header.key) {
    return absl::FailedPreconditionError(
        absl::StrCat("a frame of block ", Hex(header.key), ", asked for ", Hex(*expected.key)));
  }
  if (expected.shape.has_value() && *expected.shape != header.shape) {
    return absl::FailedPreconditionError(
        absl::StrCat("a frame of ", Text(header.shape), ", wanted ", Text(*expected.shape)));
  }
  return absl::OkStatus();
}

}  // namespace

BlockShape ShapeOf(const PageLayout& layout) {
  return {.dtype = layout.group.dtype,
          .block_tokens = layout.block_tokens,
          .cache_layers = layout.group.cache_layers,
          .kv_heads = layout.group.kv_heads,
          .k_dim = layout.group.k_dim,
          .v_dim = layout.group.v_dim};
}

std::uint64_t FrameHeader::LayerBytes(std::int32_t layer) const {
  std::uint64_t bytes = 0;
  for (const std::uint32_t plane : PlanesOf(layer)) bytes += plane;
  return bytes;
}

std::uint64_t FrameHeader::payload_bytes() const {
  std::uint64_t bytes = 0;
  for (const std::uint32_t plane : plane_bytes) bytes += plane;
  return bytes;
}

std::size_t FrameHeaderBytes(std::int32_t cache_layers, std::int32_t planes, bool authenticated) {
  const std::size_t bytes = kFrameFixedBytes + TableBytes(cache_layers, planes) +
                            (authenticated ? kMacBytes : 0) + kCrcBytes;
  return (bytes + kHeaderStep - 1) / kHeaderStep * kHeaderStep;
}

void WriteFrameHeader(const FrameHeader& header, std::optional<Secret> secret,
                      std::span<std::byte> out) {
  const BlockShape& shape = header.shape;
  CHECK_EQ(out.size(), FrameHeaderBytes(shape.cache_layers, header.planes, secret.has_value()));
  CHECK_EQ(header.layer_crcs.size(), static_cast<std::size_t>(shape.cache_layers));
  CHECK_EQ(header.plane_bytes.size() * 4 + header.layer_crcs.size() * 4,
           TableBytes(shape.cache_layers, header.planes));
  std::memset(out.data(), 0, out.size());
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  PutNumber(out, 4, kFrameVersion);
  PutNumber(out, 5, header.codec);
  PutNumber(out, 6, header.codec_version);
  PutNumber(out, 7, shape.dtype);
  PutNumber(out, 8, header.loss);
  PutNumber(out, 9, kChecksumCrc32c);
  PutNumber(out, 10, secret.has_value() ? kHmacSha256 : kNoMac);
  PutNumber(out, 11, static_cast<std::uint8_t>(header.planes));
  PutNumber(out, 12, static_cast<std::uint32_t>(out.size()));
  PutNumber(out, 16, header.payload_bytes());
  std::memcpy(out.data() + kKeyAt, header.key.space.bytes.data(), 16);
  std::memcpy(out.data() + kKeyAt + 16, header.key.chain.bytes.data(), 16);
  const auto number = [](std::int32_t value) { return static_cast<std::uint32_t>(value); };
  PutNumber(out, kNumbersAt,
            Numbers{.group = number(header.group),
                    .first_position = number(header.first_position),
                    .positions = number(shape.block_tokens),
                    .block_tokens = number(shape.block_tokens),
                    .layers = number(shape.cache_layers),
                    .heads = number(shape.kv_heads),
                    .k_dim = number(shape.k_dim),
                    .v_dim = number(shape.v_dim)});
  std::size_t at = kFrameFixedBytes;
  for (std::int32_t layer = 0; layer < shape.cache_layers; ++layer) {
    PutNumber(out, at, header.layer_crcs[static_cast<std::size_t>(layer)]);
    at += 4;
    for (const std::uint32_t plane : header.PlanesOf(layer)) {
      PutNumber(out, at, plane);
      at += 4;
    }
  }
  if (secret.has_value()) {
    const std::size_t mac_at = TrailerAt(out.size(), true);
    const Mac mac = MacOf(*secret, out.first(mac_at));
    std::memcpy(out.data() + mac_at, mac.data(), kMacBytes);
  }
  const std::size_t crc_at = out.size() - kCrcBytes;
  PutNumber(out, crc_at, kernels::Crc32c(0, out.data(), crc_at));
}

absl::StatusOr<std::size_t> FrameHeaderBytesOf(std::span<const std::byte> start) {
  ASSIGN_OR_RETURN(const Start parsed, ParseStart(start));
  return parsed.header_bytes;
}

absl::StatusOr<FrameHeader> ParseFrameHeader(std::span<const std::byte> bytes,
                                             const FrameExpected& expected) {
  ASSIGN_OR_RETURN(const Start start, ParseStart(bytes));
  if (bytes.size() < start.header_bytes) {
    return absl::DataLossError(absl::StrCat("frame: a header of ", start.header_bytes,
                                            " bytes is cut off after ", bytes.size()));
  }
  bytes = bytes.first(start.header_bytes);
  RETURN_IF_ERROR(CheckTrailer(bytes, start, expected.secret));
  ASSIGN_OR_RETURN(FrameHeader header, ParseFields(bytes, start));
  RETURN_IF_ERROR(ParseTable(bytes, start, header));
  RETURN_IF_ERROR(CheckExpected(header, expected));
  return header;
}

absl::Status CheckFrameLayer(const FrameHeader& header, std::int32_t layer,
                             std::span<const std::byte> payload) {
  if (payload.size() != header.LayerBytes(layer)) {
    return absl::DataLossError(absl::StrCat(
        "frame: layer ", layer, " has ", header.LayerBytes(layer), " bytes, got ", payload.size()));
  }
  const std::uint32_t want = header.layer_crcs[static_cast<std::size_t>(layer)];
  const std::uint32_t got = kernels::Crc32c(0, payload.data(), payload.size());
  if (want == got) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("frame: the CRC32C of layer ", layer, " is ", got, ", the header says ", want));
}

absl::StatusOr<Frame> ParseFrame(std::span<const std::byte> bytes, const FrameExpected& expected) {
  ASSIGN_OR_RETURN(FrameHeader header, ParseFrameHeader(bytes, expected));
  ASSIGN_OR_RETURN(const std::size_t header_bytes, FrameHeaderBytesOf(bytes));
  const std::size_t payload_at = FramePayloadAt(header_bytes);
  if (bytes.size() < payload_at) {
    return absl::DataLossError(absl::StrCat("frame: a payload that begins at ", payload_at,
                                            " is cut off after ", bytes.size()));
  }
  const std::span<const std::byte> gap = bytes.subspan(header_bytes, payload_at - header_bytes);
  if (std::ranges::any_of(gap, [](std::byte b) { return b != std::byte{0}; })) {
    return absl::DataLossError("frame: what is between header and payload is not zero");
  }
  const std::span<const std::byte> payload = bytes.subspan(payload_at);
  if (payload.size() != header.payload_bytes()) {
    return absl::DataLossError(absl::StrCat("frame: a payload of ", header.payload_bytes(),
                                            " bytes, got ", payload.size()));
  }
  std::size_t at = 0;
  for (std::int32_t layer = 0; layer < header.shape.cache_layers; ++layer) {
    const auto layer_bytes = static_cast<std::size_t>(header.LayerBytes(layer));
    RETURN_IF_ERROR(CheckFrameLayer(header, layer, payload.subspan(at, layer_bytes)));
    at += layer_bytes;
  }
  return Frame{std::move(header), payload};
}

}  // namespace penstock::kvstore
