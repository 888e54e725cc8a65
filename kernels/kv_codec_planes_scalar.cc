// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/kv_codec_planes.h. Every other target is tested against it.
#include <algorithm>
#include <cstring>

#include "kernels/kv_codec_planes_targets.h"

namespace penstock::kernels {
namespace {

// A value in its parts. `low` is all of the rest for BF16.
struct Parts {
  unsigned low, high, exponent;
};

Parts Take(KvDtype dtype, const std::byte* x, std::size_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, x + 2 * i, sizeof(bits));
  const auto exponent = static_cast<unsigned>(KvExponentOf(dtype, bits));
  if (dtype == KvDtype::kBF16) return {(bits & 0x7Fu) | (bits >> 8 & 0x80u), 0, exponent};
  return {bits & 0xFFu, (bits >> 8 & 3u) | (bits >> 13 & 4u), exponent};
}

void Put(KvDtype dtype, const Parts& p, std::byte* x, std::size_t i) {
  const unsigned bits =
      dtype == KvDtype::kBF16
          ? (p.low & 0x80u) << 8 | (p.exponent & 0xFFu) << 7 | (p.low & 0x7Fu)
          : (p.high & 4u) << 13 | (p.exponent & 0x1Fu) << 10 | (p.high & 3u) << 8 | p.low;
  const auto half = static_cast<std::uint16_t>(bits);
  std::memcpy(x + 2 * i, &half, sizeof(half));
}

// What stands for each of m values of a chunk, as bytes of codes.
void PackChunk(KvDtype dtype, const unsigned* fields, std::size_t m, std::byte* codes) {
  if (dtype == KvDtype::kBF16) {
    for (std::size_t j = 0; j < m / 2; ++j) {
      codes[j] = static_cast<std::byte>(fields[j] | fields[j + m / 2] << 4);
    }
    return;
  }
  for (std::size_t i = 0; i < m / 4 * 3; ++i) {
    const std::size_t plane = i / (m / 4);
    const unsigned top = fields[i % (m / 4) + m / 4 * 3] >> 2 * plane & 3u;
    codes[i] = static_cast<std::byte>(fields[i] | top << 6);
  }
}

void UnpackChunk(KvDtype dtype, const std::byte* codes, std::size_t m, unsigned* fields) {
  if (dtype == KvDtype::kBF16) {
    for (std::size_t j = 0; j < m / 2; ++j) {
      fields[j] = std::to_integer<unsigned>(codes[j]) & 15u;
      fields[j + m / 2] = std::to_integer<unsigned>(codes[j]) >> 4;
    }
    return;
  }
  for (std::size_t j = m / 4 * 3; j < m; ++j) fields[j] = 0;
  for (std::size_t i = 0; i < m / 4 * 3; ++i) {
    const auto byte = std::to_integer<unsigned>(codes[i]);
    fields[i] = byte & 63u;
    fields[i % (m / 4) + m / 4 * 3] |= byte >> 6 << 2 * (i / (m / 4));
  }
}

std::size_t SplitScalar(const KvExponents& e, const std::byte* x, std::byte* rest, std::byte* codes,
                        std::byte* escapes) {
  const auto limit = static_cast<unsigned>(KvExponentCodes(e.dtype));
  std::size_t escaped = 0;
  for (std::size_t begin = 0; begin < e.n; begin += kKvChunkValues) {
    const std::size_t m = std::min(kKvChunkValues, e.n - begin);
    unsigned fields[kKvChunkValues];
    for (std::size_t i = 0; i < m; ++i) {
      const Parts parts = Take(e.dtype, x, begin + i);
      const unsigned above = (parts.exponent - e.firsts[(begin + i) % e.period]) & 0xFFu;
      const unsigned code = above < limit ? above + 1 : 0;
      if (code == 0) escapes[escaped++] = static_cast<std::byte>(parts.exponent);
      rest[begin + i] = static_cast<std::byte>(parts.low);
      fields[i] = e.dtype == KvDtype::kBF16 ? code : code << 3 | parts.high;
    }
    PackChunk(e.dtype, fields, m, codes + KvCodeBytes(e.dtype, begin));
  }
  return escaped;
}

std::size_t JoinScalar(const KvExponents& e, const std::byte* rest, const std::byte* codes,
                       const std::byte* escapes, std::size_t escapes_bytes, std::byte* x) {
  std::size_t used = 0;
  for (std::size_t begin = 0; begin < e.n; begin += kKvChunkValues) {
    const std::size_t m = std::min(kKvChunkValues, e.n - begin);
    unsigned fields[kKvChunkValues];
    UnpackChunk(e.dtype, codes + KvCodeBytes(e.dtype, begin), m, fields);
    for (std::size_t i = 0; i < m; ++i) {
      const unsigned code = e.dtype == KvDtype::kBF16 ? fields[i] : fields[i] >> 3;
      unsigned exponent = e.firsts[(begin + i) % e.period] + code - 1;
      if (code == 0) {
        if (used == escapes_bytes) return escapes_bytes + 1;
        exponent = std::to_integer<unsigned>(escapes[used++]);
      }
      Put(e.dtype, {std::to_integer<unsigned>(rest[begin + i]), fields[i] & 7u, exponent}, x,
          begin + i);
    }
  }
  return used;
}

}  // namespace

const KvPlanesTarget kKvPlanesScalar = {"scalar", SplitScalar, JoinScalar};

}  // namespace penstock::kernels
