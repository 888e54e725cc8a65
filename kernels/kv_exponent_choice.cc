// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_exponent_choice.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/kv_codec_planes.h"

namespace penstock::kernels {
namespace {

std::uint16_t HalfAt(const std::byte* x, std::size_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, x + 2 * i, sizeof(bits));
  return bits;
}

}  // namespace

ExponentChoice ChooseFirst(KvDtype dtype, const std::byte* x, std::size_t n) {
  // Neighbours count apart: adding to the same counter again and again would wait each time.
  constexpr std::size_t kLanes = 4;
  std::array<std::array<std::uint32_t, 256>, kLanes> lanes{};
  for (std::size_t i = 0; i < n / 8; ++i) {
    // One of eight at a place that differs from row to row: the golden ratio spreads them.
    const std::size_t place = 8 * i + (static_cast<std::uint32_t>(i) * 0x9E3779B1u >> 29);
    const int exponent = KvExponentOf(dtype, HalfAt(x, place));
    ++lanes[i % kLanes][static_cast<std::size_t>(exponent)];
  }
  const std::size_t exponents = dtype == KvDtype::kBF16 ? 256 : 32;
  std::array<std::uint32_t, 256>& counts = lanes[0];
  for (std::size_t lane = 1; lane < kLanes; ++lane) {
    for (std::size_t e = 0; e < exponents; ++e) counts[e] += lanes[lane][e];
  }
  const int codes = KvExponentCodes(dtype);
  // Down from the highest, until none is left below.
  int first = static_cast<int>(exponents) - codes;
  while (first > 0 && counts[static_cast<std::size_t>(first + codes - 1)] == 0) --first;
  int best = first;
  std::uint32_t sum = 0;
  for (int e = first; e < first + codes; ++e) sum += counts[static_cast<std::size_t>(e)];
  std::uint32_t best_sum = sum;
  for (std::uint32_t seen = sum; first > 0 && seen < n / 8; --first) {
    const std::uint32_t next = counts[static_cast<std::size_t>(first - 1)];
    seen += next;
    sum += next;
    sum -= counts[static_cast<std::size_t>(first + codes - 1)];
    if (sum > best_sum) {
      best = first - 1;
      best_sum = sum;
    }
  }
  return {static_cast<std::uint8_t>(best), n - std::size_t{8} * best_sum};
}

void ChooseFirsts(KvDtype dtype, const std::byte* x, std::int32_t rows, std::int32_t dim,
                  std::uint8_t* firsts) {
  const auto columns = static_cast<std::size_t>(dim);
  constexpr std::size_t kStep = 64;
  const int codes = KvExponentCodes(dtype);
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
      const int exponent = KvExponentOf(dtype, static_cast<std::uint16_t>(most[c]));
      firsts[begin + c] = static_cast<std::uint8_t>(std::max(exponent - codes + 1, 0));
    }
  }
}

}  // namespace penstock::kernels
