// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_quant.h with AVX2.
#include <cstring>

#include "kernels/kv_codec_quant_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c"

namespace penstock::kernels {
namespace {

#include "kernels/kv_codec_avx2.inc"
#include "kernels/kv_codec_quant_simd.inc"

}  // namespace

const KvQuantTarget kKvQuantAvx2 = TargetNamed("avx2");

}  // namespace penstock::kernels
