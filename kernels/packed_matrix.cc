// SPDX-License-Identifier: Apache-2.0
#include "kernels/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"
#include "kernels/packed_layout.h"

namespace penstock::kernels {
namespace {

constexpr std::uint32_t kLowNibbles = 0x0f0f0f0f;

template <typename T>
T Load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <typename T>
void Store(std::byte* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

std::uint8_t Byte(const std::byte* p) { return std::to_integer<std::uint8_t>(*p); }

// The levels of a block of 32 columns of one row, four to a word: column 4v + t is byte t of quad
// v. Host byte order is little-endian on every CPU that we build for.
struct Quads {
  std::uint32_t v[8];
};

// Writes the levels of one row at row slot `to` (that is, the levels' begin + 4 * row).
void PackLevels(std::int32_t bits, const Quads& quads, std::byte* to) {
  if (bits == 8) {
    for (int v = 0; v < 8; ++v) Store(to + 64 * v, quads.v[v]);
    return;
  }
  for (int v = 0; v < 4; ++v) {
    Store(to + 64 * v, (quads.v[v] & kLowNibbles) | (quads.v[v + 4] & kLowNibbles) << 4);
  }
  if (bits == 5) {
    std::uint32_t plane = 0;
    for (int v = 0; v < 8; ++v) plane |= (quads.v[v] >> 4 & 0x01010101) << v;
    Store(to + 256, plane);
  }
  if (bits == 6) {
    for (int p = 0; p < 2; ++p) {
      std::uint32_t plane = 0;
      for (int v = 0; v < 4; ++v) plane |= (quads.v[4 * p + v] >> 4 & 0x03030303) << (2 * v);
      Store(to + 256 + 64 * p, plane);
    }
  }
}

Quads FromNibbles(const std::byte* qs) {
  Quads quads;
  for (int v = 0; v < 4; ++v) {
    const auto word = Load<std::uint32_t>(qs + 4 * v);
    quads.v[v] = word & kLowNibbles;
    quads.v[v + 4] = word >> 4 & kLowNibbles;
  }
  return quads;
}

// Adds bit 4 from 32 bits, column by column.
void AddFifthBits(std::uint32_t bits, Quads& quads) {
  for (int v = 0; v < 8; ++v) {
    const std::uint32_t nibble = bits >> (4 * v) & 0xf;
    // Multiplying by 1 + 2^7 + 2^14 + 2^21 puts bit t of the nibble at bit 8t.
    quads.v[v] |= (nibble * 0x00204081 & 0x01010101) << 4;
  }
}

// One block of 32 of one row into slot `row` of the group `to`.
void PackBlock(WeightFormat format, const std::byte* from, std::int32_t row, std::byte* to) {
  const bool has_min = HasMin(format);
  const std::byte* p = from + (has_min ? 4 : 2);
  Quads quads{};
  switch (format) {
    case WeightFormat::kQ4_0:
    case WeightFormat::kQ4_1:
      quads = FromNibbles(p);
      break;
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ5_1:
      quads = FromNibbles(p + 4);
      AddFifthBits(Load<std::uint32_t>(p), quads);
      break;
    default:  // Q8_0
      std::memcpy(&quads, p, sizeof(quads));
      for (std::uint32_t& word : quads.v) word ^= 0x80808080;
  }
  PackLevels(LevelBits(format), quads, to + 4 * row);
  std::byte* scales = to + LevelBytes(format) + 2 * row;
  Store(scales, Load<std::uint16_t>(from));
  if (has_min) Store(scales + 2 * kPanelRows, Load<std::uint16_t>(from + 2));
}

// A super-block of one row, in the terms of the packed form. The layouts are those of
// ggml-common.h.
struct SuperBlock {
  std::uint8_t level[256];
  std::uint8_t a[8];
  std::uint8_t b[8];
  std::uint16_t d;
  std::uint16_t dmin;
};

// The sixteen 2-bit quarters of 32 bytes each that Q2_K and Q3_K share.
void ReadTwoBits(const std::byte* qs, std::uint8_t* level) {
  for (int block = 0; block < 8; ++block) {
    const std::byte* from = qs + block / 4 * 32;
    for (int l = 0; l < 32; ++l) level[block * 32 + l] = Byte(from + l) >> (block % 4 * 2) & 3;
  }
}

// The twelve bytes that hold eight 6-bit scales and eight 6-bit minima (Q4_K, Q5_K).
void ReadScaleMin(const std::byte* s, SuperBlock& out) {
  for (int j = 0; j < 4; ++j) {
    out.a[j] = Byte(s + j) & 63;
    out.b[j] = Byte(s + j + 4) & 63;
    const int high = Byte(s + j + 8);
    out.a[j + 4] = static_cast<std::uint8_t>((high & 15) | Byte(s + j) >> 6 << 4);
    out.b[j + 4] = static_cast<std::uint8_t>(high >> 4 | Byte(s + j + 4) >> 6 << 4);
  }
}

void ReadNibbles(const std::byte* qs, std::uint8_t* level) {
  for (int pair = 0; pair < 4; ++pair) {
    for (int l = 0; l < 32; ++l) {
      const std::uint8_t byte = Byte(qs + pair * 32 + l);
      level[pair * 64 + l] = byte & 15;
      level[pair * 64 + 32 + l] = byte >> 4;
    }
  }
}

void ReadQ2K(const std::byte* from, SuperBlock& out) {
  for (int j = 0; j < 8; ++j) {
    out.a[j] = Byte(from + 2 * j);
    out.b[j] = Byte(from + 2 * j + 1);
  }
  ReadTwoBits(from + 16, out.level);
  out.d = Load<std::uint16_t>(from + 80);
  out.dmin = Load<std::uint16_t>(from + 82);
}

void ReadQ3K(const std::byte* from, SuperBlock& out) {
  ReadTwoBits(from + 32, out.level);
  for (int block = 0; block < 8; ++block) {
    for (int l = 0; l < 32; ++l) {
      out.level[block * 32 + l] |= static_cast<std::uint8_t>((Byte(from + l) >> block & 1) << 2);
    }
  }
  const std::byte* s = from + 96;
  for (int k = 0; k < 16; ++k) {
    const int low = k < 8 ? Byte(s + k) & 15 : Byte(s + k - 8) >> 4;
    const int high = Byte(s + 8 + k % 4) >> (2 * (k / 4)) & 3;
    (k % 2 == 0 ? out.a : out.b)[k / 2] = static_cast<std::uint8_t>((low | high << 4) - 32);
  }
  out.d = Load<std::uint16_t>(from + 108);
}

void ReadQ4K(const std::byte* from, SuperBlock& out) {
  out.d = Load<std::uint16_t>(from);
  out.dmin = Load<std::uint16_t>(from + 2);
  ReadScaleMin(from + 4, out);
  ReadNibbles(from + 16, out.level);
}

void ReadQ5K(const std::byte* from, SuperBlock& out) {
  out.d = Load<std::uint16_t>(from);
  out.dmin = Load<std::uint16_t>(from + 2);
  ReadScaleMin(from + 4, out);
  ReadNibbles(from + 48, out.level);
  for (int block = 0; block < 8; ++block) {
    for (int l = 0; l < 32; ++l) {
      out.level[block * 32 + l] |=
          static_cast<std::uint8_t>((Byte(from + 16 + l) >> block & 1) << 4);
    }
  }
}

void ReadQ6K(const std::byte* from, SuperBlock& out) {
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = from + half * 64;
    const std::byte* high = from + 128 + half * 32;
    for (int quarter = 0; quarter < 4; ++quarter) {
      std::uint8_t* level = out.level + half * 128 + quarter * 32;
      const std::byte* nibbles = low + quarter % 2 * 32;
      for (int l = 0; l < 32; ++l) {
        level[l] = static_cast<std::uint8_t>((Byte(nibbles + l) >> (quarter / 2 * 4) & 15) |
                                             (Byte(high + l) >> (2 * quarter) & 3) << 4);
      }
    }
  }
  for (int j = 0; j < 8; ++j) {
    out.a[j] = Byte(from + 192 + 2 * j);
    out.b[j] = Byte(from + 192 + 2 * j + 1);
  }
  out.d = Load<std::uint16_t>(from + 208);
}

void PackSuperBlock(WeightFormat format, const std::byte* from, std::int32_t row, std::byte* to) {
  SuperBlock block;
  block.dmin = 0;
  switch (format) {
    case WeightFormat::kQ2_K:
      ReadQ2K(from, block);
      break;
    case WeightFormat::kQ3_K:
      ReadQ3K(from, block);
      break;
    case WeightFormat::kQ4_K:
      ReadQ4K(from, block);
      break;
    case WeightFormat::kQ5_K:
      ReadQ5K(from, block);
      break;
    default:
      ReadQ6K(from, block);
  }
  Store(to + 2 * row, block.d);
  if (HasMin(format)) Store(to + 2 * kPanelRows + 2 * row, block.dmin);
  std::byte* scales = to + SubScaleBegin(format) + row;
  std::byte* levels = to + KLevelsBegin(format) + 4 * row;
  for (int j = 0; j < 8; ++j) {
    scales[2 * j * kPanelRows] = std::byte{block.a[j]};
    scales[(2 * j + 1) * kPanelRows] = std::byte{block.b[j]};
    Quads quads;
    std::memcpy(&quads, block.level + 32 * j, sizeof(quads));
    PackLevels(LevelBits(format), quads, levels + j * LevelBytes(format));
  }
}

// Up to 16 rows of floats, each a T, into one panel. The columns of a cache line at a time, so that
// a line of each row is read once.
template <typename T>
void PackColumns(std::int32_t cols, std::int32_t rows, const std::byte* from, std::byte* to) {
  constexpr std::int32_t kLine = 64 / sizeof(T);
  for (std::int32_t begin = 0; begin < cols; begin += kLine) {
    const std::int32_t end = std::min(begin + kLine, cols);
    for (std::int32_t r = 0; r < rows; ++r) {
      const std::byte* row = from + std::size_t{1} * r * cols * sizeof(T);
      for (std::int32_t k = begin; k < end; ++k) {
        const std::size_t at = std::size_t{1} * k * kPanelRows + r;
        Store(to + at * sizeof(T), Load<T>(row + k * sizeof(T)));
      }
    }
  }
}

// Up to 16 rows into one panel. Missing rows become zeros.
void PackPanel(WeightFormat format, std::int32_t cols, std::int32_t rows, const std::byte* from,
               std::byte* to) {
  const std::size_t row_bytes = BytesOf(format, 1, cols);
  const std::int32_t group_bytes = GroupBytes(format);
  const std::int32_t groups = cols / GroupCols(format);
  if (rows < kPanelRows) std::memset(to, 0, PanelBytes(format, cols));
  if (format == WeightFormat::kF32) return PackColumns<std::uint32_t>(cols, rows, from, to);
  if (KindOf(format) == ProductKind::kFloat) {
    return PackColumns<std::uint16_t>(cols, rows, from, to);
  }
  const std::int32_t block_bytes = Info(format).bytes;
  for (std::int32_t g = 0; g < groups; ++g) {
    std::byte* group = to + std::size_t{1} * g * group_bytes;
    for (std::int32_t r = 0; r < rows; ++r) {
      const std::byte* block = from + r * row_bytes + std::size_t{1} * g * block_bytes;
      if (IsKFormat(format)) {
        PackSuperBlock(format, block, r, group);
      } else {
        PackBlock(format, block, r, group);
      }
    }
  }
}

float HalfAt(const std::byte* p) { return ToFloat(F16{Load<std::uint16_t>(p)}); }

// The level of column `col` of a row: `p` is its row slot, as in PackLevels.
std::int32_t LevelAt(std::int32_t bits, const std::byte* p, std::int32_t col) {
  const std::int32_t v = col / 4;
  const std::byte* column = p + col % 4;
  if (bits == 8) return Byte(column + 64 * v);
  std::int32_t level = Byte(column + 64 * (v % 4)) >> (v / 4 * 4) & 15;
  if (bits == 5) level |= (Byte(column + 256) >> v & 1) << 4;
  if (bits == 6) level |= (Byte(column + 256 + 64 * (v / 4)) >> (v % 4 * 2) & 3) << 4;
  return level;
}

// d and m of both halves from the bytes of a K group, all exact: an f16 has 11 significant bits,
// a sub-scale at most 7.
void ReadSubScales(WeightFormat format, const std::byte* group, std::int32_t slot,
                   std::int32_t sub_block, PackedBlock& out) {
  const float d = HalfAt(group + 2 * slot);
  const float dmin = HasMin(format) ? HalfAt(group + 2 * kPanelRows + 2 * slot) : 0;
  const std::byte* scales = group + SubScaleBegin(format) + 2 * sub_block * kPanelRows + slot;
  const std::uint8_t ab[2] = {Byte(scales), Byte(scales + kPanelRows)};
  for (int half = 0; half < 2; ++half) {
    switch (KindOf(format)) {
      case ProductKind::kScaleMin:
        out.d[half] = d * static_cast<float>(ab[0]);
        out.m[half] = -(dmin * static_cast<float>(ab[1]));
        break;
      case ProductKind::kHalvesMin:
        out.d[half] = d * static_cast<float>(ab[half] & 15);
        out.m[half] = -(dmin * static_cast<float>(ab[half] >> 4));
        break;
      default:
        out.d[half] = d * static_cast<float>(static_cast<std::int8_t>(ab[half]));
        out.m[half] = 0;
    }
  }
}

const std::byte* PanelOf(const PackedMatrix& matrix, std::int32_t row) {
  return matrix.data + row / kPanelRows * PanelBytes(matrix.format, matrix.cols);
}

}  // namespace

std::size_t PackedBytes(WeightFormat format, std::int32_t rows, std::int32_t cols) {
  const std::size_t panels = (static_cast<std::size_t>(rows) + kPanelRows - 1) / kPanelRows;
  return panels * PanelBytes(format, cols);
}

void PackRows(WeightFormat format, std::int32_t rows, std::int32_t cols, std::int32_t row_begin,
              std::span<const std::byte> from, std::byte* to) {
  CHECK_EQ(cols % Info(format).block, 0);
  CHECK_EQ(row_begin % kPanelRows, 0);
  const std::size_t row_bytes = BytesOf(format, 1, cols);
  if (row_bytes == 0) return;
  CHECK_EQ(from.size() % row_bytes, 0u);
  const auto count = static_cast<std::int64_t>(from.size() / row_bytes);
  CHECK_LE(row_begin + count, rows);
  CHECK(count % kPanelRows == 0 || row_begin + count == rows);
  std::byte* panel = to + row_begin / kPanelRows * PanelBytes(format, cols);
  for (std::int64_t r = 0; r < count; r += kPanelRows) {
    const auto panel_rows =
        static_cast<std::int32_t>(std::min<std::int64_t>(kPanelRows, count - r));
    PackPanel(format, cols, panel_rows, from.data() + r * row_bytes, panel);
    panel += PanelBytes(format, cols);
  }
}

PackedBlock ReadBlock(const PackedMatrix& matrix, std::int32_t row, std::int32_t block) {
  const WeightFormat format = matrix.format;
  const std::int32_t slot = row % kPanelRows;
  const std::int32_t blocks_per_group = GroupCols(format) / kQuantBlock;
  const std::byte* group =
      PanelOf(matrix, row) + std::size_t{1} * (block / blocks_per_group) * GroupBytes(format);
  PackedBlock out;
  const std::byte* levels = group;
  if (IsKFormat(format)) {
    const std::int32_t sub_block = block % 8;
    ReadSubScales(format, group, slot, sub_block, out);
    levels += KLevelsBegin(format) + sub_block * LevelBytes(format);
  } else {
    const std::byte* scales = group + LevelBytes(format) + 2 * slot;
    out.d[0] = out.d[1] = HalfAt(scales);
    out.m[0] = out.m[1] = HasMin(format) ? HalfAt(scales + 2 * kPanelRows) : 0;
  }
  for (std::int32_t c = 0; c < kQuantBlock; ++c) {
    out.level[c] = LevelAt(LevelBits(format), levels + 4 * slot, c) - LevelOffset(format);
  }
  return out;
}

float ReadFloat(const PackedMatrix& matrix, std::int32_t row, std::int32_t col) {
  const std::int32_t bytes = LevelBits(matrix.format) / 8;
  const std::byte* p =
      PanelOf(matrix, row) + (std::size_t{1} * col * kPanelRows + row % kPanelRows) * bytes;
  if (matrix.format == WeightFormat::kF32) return Load<float>(p);
  if (matrix.format == WeightFormat::kF16) return HalfAt(p);
  return ToFloat(BF16{Load<std::uint16_t>(p)});
}

void UnpackRow(const PackedMatrix& matrix, std::int32_t row, std::span<float> out) {
  CHECK_EQ(out.size(), static_cast<std::size_t>(matrix.cols));
  CHECK(row >= 0 && row < matrix.rows);
  if (!matrix.takes_int8()) {
    for (std::int32_t k = 0; k < matrix.cols; ++k) out[k] = ReadFloat(matrix, row, k);
    return;
  }
  const bool has_min = HasMin(matrix.format);
  for (std::int32_t b = 0; b < matrix.cols / kQuantBlock; ++b) {
    const PackedBlock block = ReadBlock(matrix, row, b);
    for (std::int32_t c = 0; c < kQuantBlock; ++c) {
      const float product = static_cast<float>(block.level[c]) * block.d[c / 16];
      // Without a minimum nothing is added: -0 + 0 would lose its sign.
      out[b * kQuantBlock + c] = has_min ? product + block.m[c / 16] : product;
    }
  }
}

}  // namespace penstock::kernels
