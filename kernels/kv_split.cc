// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_split.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "kernels/kv_exponent_choice.h"

namespace penstock::kernels {
namespace {

// The firsts of a unit, repeated until they fill whole chunks.
struct Firsts {
  std::array<std::uint8_t, std::size_t{4} * 1024> bytes;
  std::size_t period;

  void One(std::uint8_t first) {
    period = kKvChunkValues;
    std::memset(bytes.data(), first, period);
  }
  void ByColumn(const std::uint8_t* firsts, std::size_t dim) {
    period = std::lcm(dim, kKvChunkValues);
    for (std::size_t at = 0; at < period; at += dim) std::memcpy(bytes.data() + at, firsts, dim);
  }
};

template <typename With>
void ForEachPage(const PageLayout& layout, std::int32_t layer, std::int32_t head, bool keys,
                 With with) {
  const std::size_t part_bytes = keys ? layout.k_bytes() : layout.v_bytes();
  for (std::int32_t page = 0; page < layout.pages_per_block(); ++page) {
    with(static_cast<std::size_t>(page) * part_bytes,
         layout.PageOffset(layer, head, page) + (keys ? 0 : layout.v_offset()), part_bytes);
  }
}

// Calls with(layer, head, keys) for each unit.
template <typename With>
void ForEachUnit(const PageLayout& layout, With with) {
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer) {
    for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
      for (const bool keys : {true, false}) with(layer, head, keys);
    }
  }
}

// Of [n] F32 the upper halves, and the lower ones.
void TakeHalves(const std::byte* x, std::size_t n, std::byte* upper, std::byte* lower) {
  for (std::size_t i = 0; i < n; ++i) {
    std::memcpy(lower + 2 * i, x + 4 * i, 2);
    std::memcpy(upper + 2 * i, x + 4 * i + 2, 2);
  }
}
void PutHalves(const std::byte* upper, const std::byte* lower, std::size_t n, std::byte* x) {
  for (std::size_t i = 0; i < n; ++i) {
    std::memcpy(x + 4 * i, lower + 2 * i, 2);
    std::memcpy(x + 4 * i + 2, upper + 2 * i, 2);
  }
}

}  // namespace

KvUnitSplit SplitUnit(KvDtype dtype, std::int32_t rows, std::int32_t dim, const std::byte* x,
                      std::byte* rest, std::byte* codes, std::byte* firsts, std::byte* escapes) {
  const auto columns = static_cast<std::size_t>(dim);
  const std::size_t n = static_cast<std::size_t>(rows) * columns;
  Firsts pattern;
  const auto split = [&] {
    return SplitExponents({dtype, n, pattern.bytes.data(), pattern.period}, x, rest, codes,
                          escapes);
  };
  const ExponentChoice choice = ChooseFirst(dtype, x, n);
  // By column some 1 in 64 escapes, too: worth a try from there on.
  if (choice.escapes > columns + n / 64) {
    std::array<std::uint8_t, 1024> by_column;
    ChooseFirsts(dtype, x, rows, dim, by_column.data());
    pattern.ByColumn(by_column.data(), columns);
    const std::size_t escaped = split();
    if (escaped + columns <= choice.escapes) {
      firsts[0] = kKvByColumn;
      std::memcpy(firsts + 1, by_column.data(), columns);
      return {1 + columns, escaped};
    }
  }
  pattern.One(choice.first);
  firsts[0] = static_cast<std::byte>(choice.first);
  return {1, split()};
}

std::size_t JoinUnit(KvDtype dtype, std::int32_t rows, std::int32_t dim, const std::byte* rest,
                     const std::byte* codes, const std::byte* firsts, const std::byte* escapes,
                     std::size_t escapes_bytes, std::byte* x) {
  const auto columns = static_cast<std::size_t>(dim);
  Firsts pattern;
  if (firsts[0] == kKvByColumn) {
    pattern.ByColumn(reinterpret_cast<const std::uint8_t*>(firsts + 1), columns);
  } else {
    pattern.One(static_cast<std::uint8_t>(firsts[0]));
  }
  return JoinExponents(
      {dtype, static_cast<std::size_t>(rows) * columns, pattern.bytes.data(), pattern.period}, rest,
      codes, escapes, escapes_bytes, x);
}

std::size_t CountEscapes(KvDtype dtype, const std::byte* codes, std::size_t n) {
  CHECK_EQ(n % kKvChunkValues, 0u);
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(codes);
  std::size_t count = 0;
  if (dtype == KvDtype::kBF16) {
    for (std::size_t i = 0; i < n / 2; ++i) {
      count += static_cast<std::size_t>((bytes[i] & 0x0F) == 0) + ((bytes[i] & 0xF0) == 0);
    }
    return count;
  }
  // Of the last quarter of a chunk, the bits of codes are upper ones of the planes 1 and 2.
  constexpr std::size_t kPlane = kKvChunkValues / 4;
  for (std::size_t chunk = 0; chunk < n / kKvChunkValues; ++chunk) {
    const std::uint8_t* const at = bytes + 3 * kPlane * chunk;
    for (std::size_t i = 0; i < 3 * kPlane; ++i) count += (at[i] & 0x38) == 0;
    for (std::size_t i = 0; i < kPlane; ++i) {
      count += ((at[kPlane + i] & 0x80) | (at[2 * kPlane + i] & 0xC0)) == 0;
    }
  }
  return count;
}

void GatherUnit(const PageLayout& layout, const std::byte* slab, std::int32_t layer,
                std::int32_t head, bool keys, std::byte* to) {
  ForEachPage(layout, layer, head, keys, [&](std::size_t at, std::size_t page, std::size_t bytes) {
    std::memcpy(to + at, slab + page, bytes);
  });
}
void ScatterUnit(const PageLayout& layout, const std::byte* from, std::int32_t layer,
                 std::int32_t head, bool keys, std::byte* slab) {
  ForEachPage(layout, layer, head, keys, [&](std::size_t at, std::size_t page, std::size_t bytes) {
    std::memcpy(slab + page, from + at, bytes);
  });
}

KvSplitBlock::KvSplitBlock(const PageLayout& layout)
    : layers(static_cast<std::size_t>(layout.group.cache_layers)),
      heads(static_cast<std::size_t>(layout.group.kv_heads)),
      k_dim(static_cast<std::size_t>(layout.group.k_dim)),
      v_dim(static_cast<std::size_t>(layout.group.v_dim)),
      k_values(static_cast<std::size_t>(layout.block_tokens) * k_dim),
      v_values(static_cast<std::size_t>(layout.block_tokens) * v_dim),
      values(heads * (k_values + v_values)),
      code_bytes(KvCodeBytes(KvHalfType(layout.group.dtype), values)),
      halves(layout.group.dtype == KvDtype::kF32) {}

void SplitBlock(const PageLayout& layout, const std::byte* slab, std::byte* out) {
  const KvSplitBlock block(layout);
  const KvDtype dtype = KvHalfType(layout.group.dtype);
  const std::size_t most = std::max(block.k_values, block.v_values);
  std::vector<std::byte> unit(4 * most);
  std::vector<std::byte> upper(2 * most);
  std::vector<std::byte> escapes(most);
  ForEachUnit(layout, [&](std::int32_t l, std::int32_t h, bool keys) {
    const auto layer = static_cast<std::size_t>(l);
    const auto head = static_cast<std::size_t>(h);
    const std::size_t n = block.ValuesOf(keys);
    const std::size_t at = block.ValuesAt(head, keys);
    std::byte* const to = out + layer * block.layer_bytes();
    std::byte* const codes = to + block.values + KvCodeBytes(dtype, at);
    std::byte* const tail = out + block.TailAt(layer, head, keys);
    GatherUnit(layout, slab, l, h, keys, unit.data());
    const std::byte* x = unit.data();
    if (block.halves) {
      TakeHalves(x, n, upper.data(), to + block.values + block.code_bytes + 2 * at);
      x = upper.data();
    }
    const KvUnitSplit split =
        SplitUnit(dtype, layout.block_tokens, static_cast<std::int32_t>(block.DimOf(keys)), x,
                  to + at, codes, tail, escapes.data());
    const bool fits = split.escapes <= block.EscapesMax(keys);
    const std::uint32_t count = fits ? static_cast<std::uint32_t>(split.escapes) : kKvSplitNone;
    std::memcpy(out + block.CountAt(layer, head, keys), &count, sizeof(count));
    if (fits) std::memcpy(tail + 1 + block.DimOf(keys), escapes.data(), split.escapes);
  });
}

std::size_t KvJoinTableBytes(const PageLayout& layout) {
  return sizeof(KvJoinUnit) * 2 * static_cast<std::size_t>(layout.group.kv_heads) *
         static_cast<std::size_t>(layout.group.cache_layers);
}

std::size_t KvJoinBytesMax(const PageLayout& layout) {
  const KvSplitBlock block(layout);
  const std::size_t firsts = block.heads * (2 + block.k_dim + block.v_dim);
  // All values escape, and codes are there as they came, too.
  const std::size_t layer = 2 * (block.values + block.code_bytes) + block.half_bytes() + firsts;
  return (block.layers * layer + 15) / 16 * 16 + KvJoinTableBytes(layout);
}

void JoinBlock(const PageLayout& layout, std::span<const std::byte> bytes, std::byte* slab) {
  const KvSplitBlock block(layout);
  const KvDtype dtype = KvHalfType(layout.group.dtype);
  CHECK_GE(bytes.size(), KvJoinTableBytes(layout));
  const std::byte* entry = bytes.data() + bytes.size() - KvJoinTableBytes(layout);
  const std::size_t most = std::max(block.k_values, block.v_values);
  std::vector<std::byte> unit(4 * most);
  std::vector<std::byte> upper(2 * most);
  std::vector<std::byte> escapes(most);
  ForEachUnit(layout, [&](std::int32_t layer, std::int32_t head, bool keys) {
    KvJoinUnit from;
    std::memcpy(&from, entry, sizeof(from));
    entry += sizeof(from);
    const std::size_t n = block.ValuesOf(keys);
    const std::byte* const in = bytes.data();
    if (from.kind == KvJoinUnit::kRaw) {
      return ScatterUnit(layout, in + from.rest, layer, head, keys, slab);
    }
    CHECK_LE(from.escape_count, n);
    std::memcpy(escapes.data(), in + from.escapes, from.escape_count);
    std::fill(escapes.begin() + from.escape_count, escapes.end(), std::byte{0});
    std::byte* const x = block.halves ? upper.data() : unit.data();
    JoinUnit(dtype, layout.block_tokens, static_cast<std::int32_t>(block.DimOf(keys)),
             in + from.rest, in + from.codes, in + from.firsts, escapes.data(), n, x);
    if (block.halves) PutHalves(x, in + from.halves, n, unit.data());
    ScatterUnit(layout, unit.data(), layer, head, keys, slab);
  });
}

}  // namespace penstock::kernels
