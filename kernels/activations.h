// SPDX-License-Identifier: Apache-2.0
// Rows of activations as matrix products take them: float, int8, or both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace penstock::kernels {

// Non-owning view of [rows, cols]. Null members are not filled in by who writes and not asked for
// by who reads. int8 form, per row and block of 32 columns: x[i] is about q[i] * scale; a ragged
// last block is padded with zeros. With blocks = (cols + 31) / 32:
struct Activations {
  std::int32_t cols = 0;
  float* f32 = nullptr;         // [rows, cols]
  std::int8_t* q = nullptr;     // [rows, blocks * 32], each in -127..127
  float* scale = nullptr;       // [rows, blocks]
  std::int32_t* sum = nullptr;  // [rows, blocks]: the sum of the block's q

  constexpr std::int32_t blocks() const { return (cols + 31) / 32; }
  bool wants_int8() const { return q != nullptr; }

  // The view of rows from `row` on.
  Activations From(std::int64_t row) const {
    Activations a = *this;
    if (f32 != nullptr) a.f32 += row * cols;
    if (q != nullptr) {
      a.q += row * blocks() * 32;
      a.scale += row * blocks();
      a.sum += row * blocks();
    }
    return a;
  }
};

// Writes the int8 form of one row: scale = max|x| / 127 over the block, q = x / scale rounded to
// even (computed as x * (1 / scale)); a block whose scale would be below FLT_MIN is zeros with
// scale 0. Depends on that block alone, so never on other rows. `x`: [cols], finite (a NaN or
// infinity gives unspecified q, no fault). `q`: [blocks * 32], `scale`, `sum`: [blocks].
void QuantizeRow(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                 std::int32_t* sum);

using QuantizeRowFn = void (*)(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                               std::int32_t* sum);
struct QuantizeRowTarget {
  std::string_view name;
  QuantizeRowFn run;
};
// All this CPU can run: scalar first, best last.
std::span<const QuantizeRowTarget> QuantizeRowTargets();

}  // namespace penstock::kernels
