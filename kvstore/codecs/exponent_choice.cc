// SPDX-License-Identifier: Apache-2.0
#include "kvstore/codecs/exponent_choice.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/kv_codec_planes.h"

namespace penstock::kvstore {
namespace {

std::uint16_t HalfAt(const std::byte* x, std::size_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, x + 2 * i, sizeof(bits));
  return bits;
}

}  // namespace

std::uint8_t ChooseFirst(KvDtype dtype, const std::byte* x, std::size_t n) {
  std::array<std::uint32_t, 256> counts{};
  int lowest = 255;
  int highest = 0;
  for (std::size_t i = 0; i < n / 8; ++i) {
    // One of eight at a place that differs from row to row: the golden ratio spreads them.
    const std::size_t place = 8 * i + (static_cast<std::uint32_t>(i) * 0x9E3779B1u >> 29);
    const int exponent = kernels::KvExponentOf(dtype, HalfAt(x, place));
    ++counts[static_cast<std::size_t>(exponent)];
    lowest = std::min(lowest, exponent);
    highest = std::max(highest, exponent);
  }
  const int codes = kernels::KvExponentCodes(dtype);
  const int last = std::max(highest - codes + 1, 0);
  int best = last;
  std::uint32_t best_sum = 0;
  std::uint32_t sum = 0;
  for (int e = last; e < last + codes; ++e) sum += counts[static_cast<std::size_t>(e)];
  for (int first = last;; --first) {
    if (sum > best_sum) {
      best = first;
      best_sum = sum;
    }
    if (first <= lowest || first == 0) break;
    sum += counts[static_cast<std::size_t>(first - 1)];
    sum -= counts[static_cast<std::size_t>(first + codes - 1)];
  }
  return static_cast<std::uint8_t>(best);
}

void ChooseFirsts(KvDtype dtype, const std::byte* x, std::int32_t rows, std::int32_t dim,
                  std::uint8_t* firsts) {
  const auto columns = static_cast<std::size_t>(dim);
  constexpr std::size_t kStep = 64;
  const int codes = kernels::KvExponentCodes(dtype);
  for (std::size_t begin = 0; begin < columns; begin += kStep) {
    const std::size_t count = std::min(kStep, columns - begin);
    // Without their signs, larger numbers have larger bits.
    std::array<std::int16_t, kStep> most{};
    for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
      for (std::size_t c = 0; c < count; ++c) {
        const auto bits = static_cast<std::int16_t>(HalfAt(x, row * columns + begin + c) & 0x7FFF);
        most[c] = std::max(most[c], bits);
      }
    }
    for (std::size_t c = 0; c < count; ++c) {
      const int exponent = kernels::KvExponentOf(dtype, static_cast<std::uint16_t>(most[c]));
      firsts[begin + c] = static_cast<std::uint8_t>(std::max(exponent - codes + 1, 0));
    }
  }
}

}  // namespace penstock::kvstore
