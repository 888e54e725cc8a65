// SPDX-License-Identifier: Apache-2.0
#include "kernels/weight_format.h"

#include <array>
#include <cstring>
#include <iterator>

#include "base/check.h"
#include "base/float16.h"

namespace penstock::kernels {
namespace {

constexpr std::array<WeightFormatInfo, 13> kInfos = {{{"f32", 1, 4},
                                                      {"f16", 1, 2},
                                                      {"bf16", 1, 2},
                                                      {"q4_0", 32, 2 + 16},
                                                      {"q4_1", 32, 4 + 16},
                                                      {"q5_0", 32, 2 + 4 + 16},
                                                      {"q5_1", 32, 4 + 4 + 16},
                                                      {"q8_0", 32, 2 + 32},
                                                      {"q2_k", 256, 16 + 64 + 4},
                                                      {"q3_k", 256, 32 + 64 + 12 + 2},
                                                      {"q4_k", 256, 4 + 12 + 128},
                                                      {"q5_k", 256, 4 + 12 + 32 + 128},
                                                      {"q6_k", 256, 128 + 64 + 16 + 2}}};
static_assert(std::size(kWeightFormats) == kInfos.size());

using Block = const std::uint8_t*;

std::uint16_t Load16(Block p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

std::uint32_t Load32(Block p) {
  std::uint32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

float LoadF16(Block p) { return ToFloat(F16{Load16(p)}); }

// Nibbles: weight i < 16 is the low half of byte i, weight 16 + i its high half.
int Nibble(Block quants, int i) { return i < 16 ? quants[i] & 15 : quants[i - 16] >> 4; }

// u32 of fifth bits | nibbles.
int FiveBits(Block b, int i) {
  return Nibble(b + 4, i) | static_cast<int>(Load32(b) >> i & 1u) << 4;
}

void Q4_0(Block b, float* out) {  // f16 d | 16 bytes of nibbles.
  const float d = LoadF16(b);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(Nibble(b + 2, i) - 8) * d;
}

void Q4_1(Block b, float* out) {  // f16 d | f16 m | nibbles.
  const float d = LoadF16(b);
  const float m = LoadF16(b + 2);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(Nibble(b + 4, i)) * d + m;
}

void Q5_0(Block b, float* out) {  // f16 d | u32 of fifth bits | nibbles.
  const float d = LoadF16(b);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(FiveBits(b + 2, i) - 16) * d;
}

void Q5_1(Block b, float* out) {  // f16 d | f16 m | u32 of fifth bits | nibbles.
  const float d = LoadF16(b);
  const float m = LoadF16(b + 2);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(FiveBits(b + 4, i)) * d + m;
}

void Q8_0(Block b, float* out) {  // f16 d | 32 signed bytes.
  const float d = LoadF16(b);
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<float>(static_cast<std::int8_t>(b[2 + i])) * d;
  }
}

// Two bits of weight i (0..255): each 32 bytes hold 128 weights, 32 per bit pair.
int BitPair(Block quants, int i) { return quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

void Q2_K(Block b,
          float* out) {  // 16 of (scale | min << 4) | 64 bytes of bit pairs | f16 d | dmin.
  const float d = LoadF16(b + 80);
  const float dmin = LoadF16(b + 82);
  for (int i = 0; i < 256; ++i) {
    const int scale_min = b[i / 16];
    const float scale = d * static_cast<float>(scale_min & 15);
    const float min = dmin * static_cast<float>(scale_min >> 4);
    out[i] = scale * static_cast<float>(BitPair(b + 16, i)) - min;
  }
}

void Q3_K(Block b,
          float* out) {  // 32 of third bits | 64 of bit pairs | 12 of 6-bit scales | f16 d.
  const float d = LoadF16(b + 108);
  const Block packed = b + 96;  // 16 low nibbles in 8 bytes, then 16 high pairs in 4.
  for (int i = 0; i < 256; ++i) {
    const int j = i / 16;
    const int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
    const int high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const int third = b[i % 32] >> (i / 32) & 1;
    out[i] = scale * static_cast<float>(BitPair(b + 32, i) - (third != 0 ? 0 : 4));
  }
}

struct ScaleMin {
  float scale;
  float min;
};

// The 8 six-bit scales and mins of Q4_K and Q5_K in 12 bytes: the last four of each keep their low
// nibbles in bytes 8..11 and their high pairs on top of bytes 0..7.
ScaleMin UnpackScaleMin(Block packed, int j) {
  if (j < 4) {
    return {static_cast<float>(packed[j] & 63), static_cast<float>(packed[j + 4] & 63)};
  }
  return {static_cast<float>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4),
          static_cast<float>(packed[j + 4] >> 4 | (packed[j] >> 6) << 4)};
}

// Nibbles of super-blocks: each 32 bytes hold 64 weights, low halves first.
int SuperNibble(Block quants, int i) {
  return quants[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
}

// f16 d | f16 dmin | 12 of scales and mins | 32 of fifth bits, if there are five | 128 of nibbles.
template <int kBits>
void Q45_K(Block b, float* out) {
  const float d = LoadF16(b);
  const float dmin = LoadF16(b + 2);
  const Block nibbles = b + (kBits == 5 ? 48 : 16);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = UnpackScaleMin(b + 4, j);
    const float scale = d * s.scale;
    const float min = dmin * s.min;
    for (int i = j * 32; i < j * 32 + 32; ++i) {
      const int fifth = kBits == 5 ? (b[16 + i % 32] >> j & 1) << 4 : 0;
      out[i] = scale * static_cast<float>(SuperNibble(nibbles, i) | fifth) - min;
    }
  }
}

void Q6_K(Block b, float* out) {  // 128 of low nibbles | 64 of high pairs | 16 int8 scales | f16 d.
  const float d = LoadF16(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int low = b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
    const int high = BitPair(b + 128, i) << 4;
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(b[192 + i / 16]));
    out[i] = scale * static_cast<float>((low | high) - 32);
  }
}

void DequantizeBlock(WeightFormat format, Block b, float* out) {
  switch (format) {
    case WeightFormat::kF32:
      std::memcpy(out, b, sizeof(float));
      return;
    case WeightFormat::kF16:
      *out = LoadF16(b);
      return;
    case WeightFormat::kBF16:
      *out = ToFloat(BF16{Load16(b)});
      return;
    case WeightFormat::kQ4_0:
      return Q4_0(b, out);
    case WeightFormat::kQ4_1:
      return Q4_1(b, out);
    case WeightFormat::kQ5_0:
      return Q5_0(b, out);
    case WeightFormat::kQ5_1:
      return Q5_1(b, out);
    case WeightFormat::kQ8_0:
      return Q8_0(b, out);
    case WeightFormat::kQ2_K:
      return Q2_K(b, out);
    case WeightFormat::kQ3_K:
      return Q3_K(b, out);
    case WeightFormat::kQ4_K:
      return Q45_K<4>(b, out);
    case WeightFormat::kQ5_K:
      return Q45_K<5>(b, out);
    case WeightFormat::kQ6_K:
      return Q6_K(b, out);
  }
}

}  // namespace

const WeightFormatInfo& Info(WeightFormat format) {
  const std::size_t index = static_cast<std::size_t>(format);
  CHECK_LT(index, kInfos.size());
  return kInfos[index];
}

std::size_t BytesOf(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  const WeightFormatInfo& info = Info(format);
  CHECK_EQ(cols % info.block, 0);
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols / info.block) *
         static_cast<std::size_t>(info.bytes);
}

void DequantizeRow(WeightFormat format, const std::byte* row, std::span<float> out) {
  const WeightFormatInfo& info = Info(format);
  const std::size_t block = static_cast<std::size_t>(info.block);
  CHECK_EQ(out.size() % block, 0u);
  Block b = reinterpret_cast<Block>(row);
  for (std::size_t i = 0; i < out.size(); i += block, b += info.bytes) {
    DequantizeBlock(format, b, out.data() + i);
  }
}

}  // namespace penstock::kernels
