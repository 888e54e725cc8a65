// SPDX-License-Identifier: Apache-2.0
// Which exponents of a matrix of KV get codes: KvExponentCodes that follow each other, of all of it
// or of each column. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kv_spec.h"

namespace penstock::kernels {

struct ExponentChoice {
  std::uint8_t first;   // The lowest of them.
  std::size_t escapes;  // How many values have other exponents, as far as the sample tells.
};
// Those that together are the ones of most of n values (F16 or BF16), judged by one in eight; of
// equals the largest. n is a multiple of 8.
ExponentChoice ChooseFirst(KvDtype dtype, const std::byte* x, std::size_t n);

// By column of [rows, dim]: those up to the column's largest. firsts: [dim].
void ChooseFirsts(KvDtype dtype, const std::byte* x, std::int32_t rows, std::int32_t dim,
                  std::uint8_t* firsts);

}  // namespace penstock::kernels
