// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_quant.h"

#include <bit>
#include <vector>

#include "base/check.h"
#include "base/float16.h"
#include "device/cpu_info.h"
#include "kernels/kv_codec_quant_targets.h"

namespace penstock::kernels {
namespace {

const KvQuantTarget& Best() {
  static const KvQuantTarget best = KvQuantTargets().back();
  return best;
}

void CheckShape(const KvMatrix& shape) {
  CHECK(shape.dtype != KvDtype::kInt8);
  CHECK_GE(shape.rows, 1);
  CHECK(shape.dim >= 8 && shape.dim % 8 == 0);
}

void CheckShape(int bits, const KvMatrix& shape) {
  CHECK(bits == 4 || bits == 2);
  CheckShape(shape);
}

}  // namespace

std::span<const KvQuantTarget> KvQuantTargets() {
  static const std::vector<KvQuantTarget> targets = [] {
    std::vector<KvQuantTarget> all = {kKvQuantScalar};
    if (ThisCpu().avx2) all.push_back(kKvQuantAvx2);
    if (ThisCpu().avx512) all.push_back(kKvQuantAvx512);
    return all;
  }();
  return targets;
}

float MaxMagnitude(KvDtype dtype, const std::byte* x, std::size_t n) {
  CHECK(dtype != KvDtype::kInt8);
  const std::uint32_t bits = Best().max_bits(dtype, x, n);
  switch (dtype) {
    case KvDtype::kF16:
      return ToFloat(F16{static_cast<std::uint16_t>(bits)});
    case KvDtype::kBF16:
      return ToFloat(BF16{static_cast<std::uint16_t>(bits)});
    case KvDtype::kF32:
    case KvDtype::kInt8:
      break;
  }
  return std::bit_cast<float>(bits);
}

void QuantizeInt8(const KvMatrix& shape, const std::byte* x, std::byte* q, std::byte* scales) {
  CheckShape(shape);
  Best().quantize_int8(shape, x, q, scales);
}

void DequantizeInt8(const KvMatrix& shape, const std::byte* q, const std::byte* scales,
                    std::byte* x) {
  CheckShape(shape);
  Best().dequantize_int8(shape, q, scales, x);
}

void QuantizeGroups(int bits, const KvMatrix& shape, const std::byte* x, std::byte* codes,
                    std::byte* scales, std::byte* minima) {
  CheckShape(bits, shape);
  Best().quantize_groups(bits, shape, x, codes, scales, minima);
}

void DequantizeGroups(int bits, const KvMatrix& shape, const std::byte* codes,
                      const std::byte* scales, const std::byte* minima, std::byte* x) {
  CheckShape(bits, shape);
  Best().dequantize_groups(bits, shape, codes, scales, minima, x);
}

void QuantizeChannels(int bits, const KvMatrix& shape, const std::byte* x, std::byte* codes,
                      std::byte* scales, std::byte* minima) {
  CheckShape(bits, shape);
  Best().quantize_channels(bits, shape, x, codes, scales, minima);
}

void DequantizeChannels(int bits, const KvMatrix& shape, const std::byte* codes,
                        const std::byte* scales, const std::byte* minima, std::byte* x) {
  CheckShape(bits, shape);
  Best().dequantize_channels(bits, shape, codes, scales, minima, x);
}

}  // namespace penstock::kernels
