// SPDX-License-Identifier: Apache-2.0
#include "kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include <bit>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::kernels {
namespace {

// Any bytes are a valid row of every format: scales may be infinite, NaN or subnormal.
std::vector<std::byte> RandomBytes(std::size_t size, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

struct Matrix {
  WeightFormat format;
  std::int32_t rows;
  std::int32_t cols;
  std::vector<std::byte> file;
  std::vector<std::byte> packed;

  PackedMatrix view() const { return {format, rows, cols, packed.data()}; }
};

Matrix MakeMatrix(WeightFormat format, std::int32_t rows, std::int32_t blocks, std::uint32_t seed) {
  Matrix m{format, rows, blocks * Info(format).block, {}, {}};
  m.file = RandomBytes(BytesOf(format, rows, m.cols), seed);
  // Filled, so that padding that is not written shows.
  m.packed.assign(PackedBytes(format, rows, m.cols), std::byte{0xee});
  return m;
}

TEST(PackedMatrixTest, UnpackedRowsHaveTheBitsOfTheFile) {
  for (const WeightFormat format : kWeightFormats) {
    for (const std::int32_t rows : {1, 15, 16, 17, 48}) {
      for (const std::int32_t blocks : {1, 2, 5}) {
        SCOPED_TRACE(absl::StrCat(ToAbsl(Info(format).name), " rows=", rows, " blocks=", blocks));
        Matrix m = MakeMatrix(format, rows, blocks, 7);
        PackRows(format, rows, m.cols, 0, m.file, m.packed.data());
        std::vector<float> want(m.cols);
        std::vector<float> got(m.cols);
        const std::size_t row_bytes = BytesOf(format, 1, m.cols);
        for (std::int32_t r = 0; r < rows; ++r) {
          DequantizeRow(format, m.file.data() + r * row_bytes, want);
          UnpackRow(m.view(), r, got);
          for (std::int32_t i = 0; i < m.cols; ++i) {
            if (want[i] != want[i] && got[i] != got[i]) continue;  // Both NaN.
            ASSERT_EQ(std::bit_cast<std::uint32_t>(want[i]), std::bit_cast<std::uint32_t>(got[i]))
                << "row " << r << " column " << i << ": " << want[i] << " vs " << got[i];
          }
        }
      }
    }
  }
}

TEST(PackedMatrixTest, PiecesGiveTheBytesOfTheWhole) {
  for (const WeightFormat format : kWeightFormats) {
    SCOPED_TRACE(ToAbsl(Info(format).name));
    Matrix whole = MakeMatrix(format, 55, 3, 11);
    PackRows(format, 55, whole.cols, 0, whole.file, whole.packed.data());
    Matrix pieces = MakeMatrix(format, 55, 3, 11);
    const std::size_t row_bytes = BytesOf(format, 1, whole.cols);
    const std::span<const std::byte> file = pieces.file;
    // The last piece first: pieces come in any order.
    PackRows(format, 55, whole.cols, 32, file.subspan(32 * row_bytes), pieces.packed.data());
    PackRows(format, 55, whole.cols, 0, file.first(16 * row_bytes), pieces.packed.data());
    PackRows(format, 55, whole.cols, 16, file.subspan(16 * row_bytes, 16 * row_bytes),
             pieces.packed.data());
    EXPECT_EQ(whole.packed, pieces.packed);
  }
}

TEST(PackedMatrixTest, PackedSizeIsTheFilesButForWidenedFormats) {
  for (const WeightFormat format : kWeightFormats) {
    SCOPED_TRACE(ToAbsl(Info(format).name));
    if (format == WeightFormat::kQ2_K || format == WeightFormat::kQ3_K) continue;
    const std::size_t file = BytesOf(format, 256, 1024);
    EXPECT_GE(PackedBytes(format, 256, 1024), file);
    EXPECT_LE(PackedBytes(format, 256, 1024), file + file * 3 / 100);
  }
  // Levels of 4 bits, then a byte for each 16 columns, then d, then dmin.
  EXPECT_EQ(PackedBytes(WeightFormat::kQ3_K, 16, 256), 16u * (128 + 16 + 2));
  EXPECT_EQ(PackedBytes(WeightFormat::kQ2_K, 16, 256), 16u * (128 + 16 + 4));
}

TEST(PackedMatrixTest, RowsArePaddedToAPanel) {
  EXPECT_EQ(PackedBytes(WeightFormat::kQ4_1, 17, 32), PackedBytes(WeightFormat::kQ4_1, 32, 32));
  EXPECT_EQ(PackedBytes(WeightFormat::kQ4_1, 0, 32), 0u);
}

}  // namespace
}  // namespace penstock::kernels
