// SPDX-License-Identifier: Apache-2.0
// What this CPU can execute. Kernels pick their target from it once; tests walk every target it
// allows.
#pragma once

#include <string>

namespace penstock {

struct CpuInfo {
  bool avx2 = false;         // AVX2, FMA and F16C.
  bool avx512 = false;       // F, BW, DQ, VL, on top of avx2.
  bool avx512_vnni = false;  // On top of avx512.
  bool avx512_bf16 = false;  // On top of avx512.
  bool pclmul = false;       // PCLMULQDQ and SSE4.2, which has CRC32C.
  bool vpclmulqdq = false;   // On top of avx512 and pclmul.
  bool amd = false;          // Whose it is: its caches prefetch in their own way.
};

// Read once; also checks that the system saves the registers.
const CpuInfo& ThisCpu();

// "avx512-vnni-bf16", "avx512", "avx2" or "scalar".
std::string Describe(const CpuInfo& cpu);

}  // namespace penstock
