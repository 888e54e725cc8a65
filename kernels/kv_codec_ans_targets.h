// SPDX-License-Identifier: Apache-2.0
// The targets behind kernels/kv_codec_ans.h, for its dispatch and its tests. Contracts are there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/kv_codec_ans.h"

namespace penstock::kernels {

struct KvAnsTarget {
  std::string_view name;
  decltype(&EncodeAns) encode;
  decltype(&DecodeAns) decode;
};
// All this CPU can run: scalar first, best last.
std::span<const KvAnsTarget> KvAnsTargets();

extern const KvAnsTarget kKvAnsScalar;
extern const KvAnsTarget kKvAnsAvx2;
extern const KvAnsTarget kKvAnsAvx512;

// Columns c to c + 31 of one row, as far as there are, by the specification.
std::byte* EncodeAnsGroup(const KvAnsTables& tables, const KvAnsRows& rows, std::size_t c,
                          const std::int16_t* codes, KvAnsStates& states, std::byte* end);
const std::byte* DecodeAnsGroup(const KvAnsTables& tables, const KvAnsRows& rows, std::size_t c,
                                KvAnsStates& states, const std::byte* in, const std::byte* end,
                                std::int16_t* codes);

}  // namespace penstock::kernels
