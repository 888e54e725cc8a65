// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_quant.h with AVX-512.
#include <cstring>

#include "kernels/kv_codec_quant_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"

namespace penstock::kernels {
namespace {

#include "kernels/kv_codec_avx512.inc"
#include "kernels/kv_codec_quant_simd.inc"

}  // namespace

const KvQuantTarget kKvQuantAvx512 = TargetNamed("avx512");

}  // namespace penstock::kernels
