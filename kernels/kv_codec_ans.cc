// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_ans.h"

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/kv_codec_ans_targets.h"

namespace penstock::kernels {
namespace {

constexpr std::uint32_t kAll = 1u << kAnsBits;

const KvAnsTarget& Best() {
  static const KvAnsTarget best = KvAnsTargets().back();
  return best;
}

void AddClass(std::span<const std::uint16_t> frequencies, std::uint32_t* decode,
              std::uint32_t* encode) {
  const auto top = static_cast<std::int32_t>(frequencies.size()) - 1;
  CHECK(top >= 0 && top <= kAnsTopMax);
  std::uint32_t begin = 0;
  for (std::int32_t code = -top; code <= top; ++code) {
    const std::uint32_t frequency = frequencies[static_cast<std::size_t>(code < 0 ? -code : code)];
    CHECK(frequency >= 1 && frequency <= kAll - begin);
    encode[code + 128] = frequency | begin << 11;
    for (std::uint32_t beyond = 0; beyond < frequency; ++beyond) {
      decode[begin + beyond] =
          frequency | beyond << 11 | static_cast<std::uint32_t>(code + 128) << 21;
    }
    begin += frequency;
  }
  CHECK_EQ(begin, kAll);
  if (top > 0) return;
  for (std::size_t i = 0; i < 256; ++i) encode[i] = kAll;
}

}  // namespace

std::span<const KvAnsTarget> KvAnsTargets() {
  static const std::vector<KvAnsTarget> targets = [] {
    std::vector<KvAnsTarget> all = {kKvAnsScalar};
    if (ThisCpu().avx2) all.push_back(kKvAnsAvx2);
    if (ThisCpu().avx512) all.push_back(kKvAnsAvx512);
    return all;
  }();
  return targets;
}

KvAnsTables MakeAnsTables(std::span<const std::span<const std::uint16_t>> classes) {
  KvAnsTables tables;
  tables.decode.resize(classes.size() * kAll);
  tables.encode.resize(classes.size() * 256);
  for (std::size_t i = 0; i < classes.size(); ++i) {
    AddClass(classes[i], tables.decode.data() + i * kAll, tables.encode.data() + i * 256);
  }
  return tables;
}

std::byte* EncodeAns(const KvAnsTables& tables, const KvAnsRows& rows, const std::int16_t* codes,
                     KvAnsStates& states, std::byte* end) {
  CHECK(rows.dim % 8 == 0);
  return Best().encode(tables, rows, codes, states, end);
}

const std::byte* DecodeAns(const KvAnsTables& tables, const KvAnsRows& rows, KvAnsStates& states,
                           const std::byte* in, const std::byte* end, std::int16_t* codes) {
  CHECK(rows.dim % 8 == 0);
  return Best().decode(tables, rows, states, in, end, codes);
}

}  // namespace penstock::kernels
