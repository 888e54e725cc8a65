// SPDX-License-Identifier: Apache-2.0
// The targets behind kernels/kv_codec_quant.h, for its dispatch and its tests. Contracts are there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/kv_codec_quant.h"

namespace penstock::kernels {

struct KvQuantTarget {
  using Quantize = void (*)(int bits, const KvMatrix& shape, const std::byte* x, std::byte* codes,
                            std::byte* scales, std::byte* minima);
  using Dequantize = void (*)(int bits, const KvMatrix& shape, const std::byte* codes,
                              const std::byte* scales, const std::byte* minima, std::byte* x);
  std::string_view name;
  // The largest of the values' bits without their signs, which orders them as magnitudes.
  std::uint32_t (*max_bits)(KvDtype dtype, const std::byte* x, std::size_t n);
  void (*quantize_int8)(const KvMatrix& shape, const std::byte* x, std::byte* q, std::byte* scales);
  void (*dequantize_int8)(const KvMatrix& shape, const std::byte* q, const std::byte* scales,
                          std::byte* x);
  Quantize quantize_groups;
  Dequantize dequantize_groups;
  Quantize quantize_channels;
  Dequantize dequantize_channels;
};
// All this CPU can run: scalar first, best last.
std::span<const KvQuantTarget> KvQuantTargets();

extern const KvQuantTarget kKvQuantScalar;
extern const KvQuantTarget kKvQuantAvx2;
extern const KvQuantTarget kKvQuantAvx512;

}  // namespace penstock::kernels
