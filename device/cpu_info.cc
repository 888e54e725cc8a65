// SPDX-License-Identifier: Apache-2.0
#include "device/cpu_info.h"

namespace penstock {

const CpuInfo& ThisCpu() {
  static const CpuInfo info = [] {
    __builtin_cpu_init();  // libgcc and compiler-rt check XGETBV before they report AVX levels.
    CpuInfo cpu;
    cpu.pclmul = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.2");
    // F16C came with the CPU generation before AVX2 and is in every CPU with AVX2 and FMA.
    cpu.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    cpu.avx512 = cpu.avx2 && __builtin_cpu_supports("avx512f") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl");
    cpu.avx512_vnni = cpu.avx512 && __builtin_cpu_supports("avx512vnni");
    cpu.avx512_bf16 = cpu.avx512 && __builtin_cpu_supports("avx512bf16");
    cpu.vpclmulqdq = cpu.avx512 && cpu.pclmul && __builtin_cpu_supports("vpclmulqdq");
    cpu.amd = __builtin_cpu_is("amd");
    return cpu;
  }();
  return info;
}

std::string Describe(const CpuInfo& cpu) {
  if (!cpu.avx2) return "scalar";
  if (!cpu.avx512) return "avx2";
  std::string text = "avx512";
  if (cpu.avx512_vnni) text += "-vnni";
  if (cpu.avx512_bf16) text += "-bf16";
  return text;
}

}  // namespace penstock
