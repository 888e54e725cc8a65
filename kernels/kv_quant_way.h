// SPDX-License-Identifier: Apache-2.0
// Names of the ways in which blocks are encoded, apart from kernels/kv_encoding.h for kernel files,
// which take no library in.
#pragma once

#include <cstdint>

namespace penstock::kernels {

// How keys, or values, are quantized: kernels/kv_codec_quant.h.
struct KvQuantWay {
  enum Kind : std::uint8_t { kInt8Rows, kGroups, kChannels } kind = kInt8Rows;
  int bits = 8;  // 8 with kInt8Rows, else 4 or 2.
  bool operator==(const KvQuantWay&) const = default;
};

struct KvEncoding {
  KvQuantWay keys = {};
  KvQuantWay values = {};
  bool lossless = false;  // As kernels/kv_split.h has it instead.
  bool operator==(const KvEncoding&) const = default;
};

}  // namespace penstock::kernels
