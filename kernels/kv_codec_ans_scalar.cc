// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/kv_codec_ans.h. Every other target is tested against it.
#include <algorithm>
#include <cstring>

#include "kernels/kv_codec_ans_targets.h"

namespace penstock::kernels {
namespace {

constexpr std::uint32_t kMask = (1u << kAnsBits) - 1;

std::byte* Encode(const KvAnsTables& tables, const KvAnsRows& rows, const std::int16_t* codes,
                  KvAnsStates& states, std::byte* end) {
  const std::size_t groups = (rows.dim + kAnsLanes - 1) / kAnsLanes;
  for (std::size_t row = rows.rows; row-- > 0;) {
    for (std::size_t g = groups; g-- > 0;) {
      end = EncodeAnsGroup(tables, rows, g * kAnsLanes, codes + row * rows.dim, states, end);
    }
  }
  return end;
}

const std::byte* Decode(const KvAnsTables& tables, const KvAnsRows& rows, KvAnsStates& states,
                        const std::byte* in, const std::byte* end, std::int16_t* codes) {
  for (std::size_t row = 0; row < rows.rows; ++row) {
    for (std::size_t c = 0; c < rows.dim; c += kAnsLanes) {
      in = DecodeAnsGroup(tables, rows, c, states, in, end, codes + row * rows.dim);
      if (in == nullptr) return nullptr;
    }
  }
  return in;
}

}  // namespace

std::byte* EncodeAnsGroup(const KvAnsTables& tables, const KvAnsRows& rows, std::size_t c,
                          const std::int16_t* codes, KvAnsStates& states, std::byte* end) {
  for (std::size_t lane = std::min(kAnsLanes, rows.dim - c); lane-- > 0;) {
    const auto code = static_cast<std::uint32_t>(codes[c + lane] + 128) & 255u;
    const std::uint32_t entry = tables.encode[rows.classes[c + lane] * std::size_t{256} + code];
    const std::uint32_t frequency = entry & 2047u;
    std::uint32_t x = states[lane];
    if (x >> (32 - kAnsBits) >= frequency) {
      const auto word = static_cast<std::uint16_t>(x);
      end -= sizeof(word);
      std::memcpy(end, &word, sizeof(word));
      x >>= 16;
    }
    states[lane] = (x / frequency << kAnsBits) + x % frequency + (entry >> 11);
  }
  return end;
}

const std::byte* DecodeAnsGroup(const KvAnsTables& tables, const KvAnsRows& rows, std::size_t c,
                                KvAnsStates& states, const std::byte* in, const std::byte* end,
                                std::int16_t* codes) {
  const std::size_t lanes = std::min(kAnsLanes, rows.dim - c);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    std::uint32_t x = states[lane];
    const std::uint32_t entry =
        tables.decode[std::size_t{rows.classes[c + lane]} << kAnsBits | (x & kMask)];
    x = (entry & 2047u) * (x >> kAnsBits) + (entry >> 11 & kMask);
    if (x < kAnsLow) {
      std::uint16_t word;
      if (end - in < static_cast<std::ptrdiff_t>(sizeof(word))) return nullptr;
      std::memcpy(&word, in, sizeof(word));
      in += sizeof(word);
      x = x << 16 | word;
    }
    states[lane] = x;
    codes[c + lane] = static_cast<std::int16_t>(static_cast<std::int32_t>(entry >> 21) - 128);
  }
  return in;
}

const KvAnsTarget kKvAnsScalar = {"scalar", Encode, Decode};

}  // namespace penstock::kernels
