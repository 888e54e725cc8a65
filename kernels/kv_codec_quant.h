// SPDX-License-Identifier: Apache-2.0
// Quantization of KV for storage and transfer: of one KV head's K or V of a block, [rows, dim],
// rows being tokens.
//
// What is quantized must be finite and at most 65,504 in magnitude (MaxMagnitude tells): scales and
// minima are F16. A scale is rounded up and a minimum down, so that no value lies outside the
// range, and each comes back within half a scale of what it was, before it is rounded to `dtype`
// (beyond the largest F16 it becomes that one). All targets give the same bits. Targets other than
// the scalar one take rows whose `dim` is a multiple of 32, and leave others to that one.
//
// Codes of 4 and 2 bits are packed by groups of 32 values of a row, the last group being shorter
// where dim is no multiple of 32: of a group of m values byte j holds, low bits first, the values
// j, j + m/2 (4 bits) or j, j + m/4, j + m/2, j + 3m/4 (2 bits).
//
// No pointer needs alignment. Numbers are little-endian. Pure functions; any thread. `dim` is a
// multiple of 8.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kv_spec.h"

namespace penstock::kernels {

inline constexpr std::int32_t kKvGroupValues = 32;
constexpr std::int32_t KvGroups(std::int32_t dim) {
  return (dim + kKvGroupValues - 1) / kKvGroupValues;
}

// The largest |x| of n values, of a dtype but int8; infinite or a NaN where there is one.
float MaxMagnitude(KvDtype dtype, const std::byte* x, std::size_t n);

struct KvMatrix {
  KvDtype dtype;  // Not int8.
  std::int32_t rows, dim;
};

// int8, a scale per row: q = round(x / scale) to even, scale = max|x| / 127 of the row. x: [rows,
// dim] of dtype, q: [rows, dim], scales: [rows] F16.
void QuantizeInt8(const KvMatrix& shape, const std::byte* x, std::byte* q, std::byte* scales);
void DequantizeInt8(const KvMatrix& shape, const std::byte* q, const std::byte* scales,
                    std::byte* x);

// `bits` (4 or 2) per value, a scale and a minimum per group of 32 values of a row: q = round((x -
// minimum) / scale). codes: [rows, dim * bits / 8], scales, minima: [rows, KvGroups(dim)] F16.
void QuantizeGroups(int bits, const KvMatrix& shape, const std::byte* x, std::byte* codes,
                    std::byte* scales, std::byte* minima);
void DequantizeGroups(int bits, const KvMatrix& shape, const std::byte* codes,
                      const std::byte* scales, const std::byte* minima, std::byte* x);

// The same with a scale and a minimum per column, over all rows: scales, minima: [dim] F16.
void QuantizeChannels(int bits, const KvMatrix& shape, const std::byte* x, std::byte* codes,
                      std::byte* scales, std::byte* minima);
void DequantizeChannels(int bits, const KvMatrix& shape, const std::byte* codes,
                        const std::byte* scales, const std::byte* minima, std::byte* x);

}  // namespace penstock::kernels
