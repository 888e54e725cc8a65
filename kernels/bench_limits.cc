// SPDX-License-Identifier: Apache-2.0
#include "kernels/bench_limits.h"

#include <benchmark/benchmark.h>

#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/simd.h"

namespace penstock::kernels {
namespace {

constexpr int kPeakSteps = 3000;  // A piece of some 10 microseconds.
// Chains of one instruction: with two ports and a latency of 5, more than the ten that are needed,
// since the CPU does not spread them evenly.
constexpr int kChains = 16;
constexpr int kChainsAvx2 = 14;  // Of 16 registers.
constexpr std::size_t kLine = 256;
constexpr std::size_t kAhead = 2048;

[[gnu::target("avx512f,avx512vnni"), gnu::noinline]] std::int32_t DotVnni() {
  __m512i acc[kChains];
  SIMD_UNROLL for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_epi32(i);
  const __m512i a = _mm512_set1_epi8(1);
  for (int step = 0; step < kPeakSteps; ++step) {
    SIMD_UNROLL for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], a, a);
  }
  __m512i sum = acc[0];
  SIMD_UNROLL for (int i = 1; i < kChains; ++i) sum = _mm512_add_epi32(sum, acc[i]);
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(sum));
}

[[gnu::target("avx512f,avx512bw"), gnu::noinline]] std::int32_t DotAvx512() {
  __m512i acc[kChains];
  SIMD_UNROLL for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_epi32(i);
  const __m512i a = _mm512_set1_epi8(1);
  for (int step = 0; step < kPeakSteps; ++step) {
    SIMD_UNROLL for (int i = 0; i < kChains; ++i) acc[i] = _mm512_maddubs_epi16(a, acc[i]);
  }
  __m512i sum = acc[0];
  SIMD_UNROLL for (int i = 1; i < kChains; ++i) sum = _mm512_add_epi32(sum, acc[i]);
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(sum));
}

[[gnu::target("avx2"), gnu::noinline]] std::int32_t DotAvx2() {
  __m256i acc[kChainsAvx2];
  SIMD_UNROLL for (int i = 0; i < kChainsAvx2; ++i) acc[i] = _mm256_set1_epi32(i);
  const __m256i a = _mm256_set1_epi8(1);
  for (int step = 0; step < kPeakSteps; ++step) {
    SIMD_UNROLL for (int i = 0; i < kChainsAvx2; ++i) acc[i] = _mm256_maddubs_epi16(a, acc[i]);
  }
  __m256i sum = acc[0];
  SIMD_UNROLL for (int i = 1; i < kChainsAvx2; ++i) sum = _mm256_add_epi32(sum, acc[i]);
  return _mm_cvtsi128_si32(_mm256_castsi256_si128(sum));
}

[[gnu::target("avx512f"), gnu::noinline]] float FmaAvx512() {
  __m512 acc[kChains];
  SIMD_UNROLL for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.5f);
  for (int step = 0; step < kPeakSteps; ++step) {
    SIMD_UNROLL for (int i = 0; i < kChains; ++i) acc[i] = _mm512_fmadd_ps(acc[i], a, a);
  }
  __m512 sum = acc[0];
  SIMD_UNROLL for (int i = 1; i < kChains; ++i) sum = _mm512_add_ps(sum, acc[i]);
  return _mm512_cvtss_f32(sum);
}

[[gnu::target("avx2,fma"), gnu::noinline]] float FmaAvx2() {
  __m256 acc[kChainsAvx2];
  SIMD_UNROLL for (int i = 0; i < kChainsAvx2; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.5f);
  for (int step = 0; step < kPeakSteps; ++step) {
    SIMD_UNROLL for (int i = 0; i < kChainsAvx2; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, a);
  }
  __m256 sum = acc[0];
  SIMD_UNROLL for (int i = 1; i < kChainsAvx2; ++i) sum = _mm256_add_ps(sum, acc[i]);
  return _mm256_cvtss_f32(sum);
}

// 1e9 multiplications with addition per second.
double MeasurePeak(int threads, bool floats) {
  const CpuInfo& cpu = ThisCpu();
  if (!cpu.avx2) return 0;
  BestTimes best(1);
  for (int run = 0; run < 2000; ++run) {
    best.Run(0, [&] {
      BenchThreads(threads).Run([&](int) {
        if (floats) {
          benchmark::DoNotOptimize(cpu.avx512 ? FmaAvx512() : FmaAvx2());
        } else {
          benchmark::DoNotOptimize(cpu.avx512_vnni ? DotVnni()
                                   : cpu.avx512    ? DotAvx512()
                                                   : DotAvx2());
        }
      });
    });
  }
  const double macs = (cpu.avx512 ? 16.0 * kChains : 8.0 * kChainsAvx2) * (floats ? 1 : 4);
  return macs * kPeakSteps * threads / best.Sum() / 1e9;
}

[[gnu::target("avx512f"), gnu::noinline]] void ReadAvx512(const std::byte* from,
                                                          std::size_t bytes) {
  __m512i acc[4] = {};
  for (std::size_t i = 0; i + kLine <= bytes; i += kLine) {
    SIMD_UNROLL for (std::size_t j = 0; j < 4; ++j) {
      __builtin_prefetch(from + i + kAhead + 64 * j);
      acc[j] = _mm512_xor_si512(acc[j], _mm512_loadu_si512(from + i + 64 * j));
    }
  }
  benchmark::DoNotOptimize(acc);
}

[[gnu::target("avx2"), gnu::noinline]] void ReadAvx2(const std::byte* from, std::size_t bytes) {
  __m256i acc[8] = {};
  for (std::size_t i = 0; i + kLine <= bytes; i += kLine) {
    SIMD_UNROLL for (std::size_t j = 0; j < 8; ++j) {
      if (j % 2 == 0) __builtin_prefetch(from + i + kAhead + 32 * j);
      const auto* const at = reinterpret_cast<const __m256i*>(from + i + 32 * j);
      acc[j] = _mm256_xor_si256(acc[j], _mm256_loadu_si256(at));
    }
  }
  benchmark::DoNotOptimize(acc);
}

void ReadWords(const std::byte* from, std::size_t bytes) {
  std::uint64_t acc[32] = {};
  for (std::size_t i = 0; i + kLine <= bytes; i += kLine) {
    std::uint64_t words[32];
    std::memcpy(words, from + i, kLine);
    for (std::size_t j = 0; j < 32; ++j) acc[j] ^= words[j];
  }
  benchmark::DoNotOptimize(acc);
}

[[gnu::target("avx512f"), gnu::noinline]] void UpdateAvx512(std::byte* at, std::size_t bytes) {
  const __m512i ones = _mm512_set1_epi32(-1);
  for (std::size_t i = 0; i + kLine <= bytes; i += kLine) {
    SIMD_UNROLL for (std::size_t j = 0; j < 4; ++j) {
      std::byte* const p = at + i + 64 * j;
      _mm512_storeu_si512(p, _mm512_xor_si512(_mm512_loadu_si512(p), ones));
    }
  }
}

[[gnu::target("avx2"), gnu::noinline]] void UpdateAvx2(std::byte* at, std::size_t bytes) {
  const __m256i ones = _mm256_set1_epi32(-1);
  for (std::size_t i = 0; i + kLine <= bytes; i += kLine) {
    SIMD_UNROLL for (std::size_t j = 0; j < 8; ++j) {
      auto* const p = reinterpret_cast<__m256i*>(at + i + 32 * j);
      _mm256_storeu_si256(p, _mm256_xor_si256(_mm256_loadu_si256(p), ones));
    }
  }
}

void UpdateWords(std::byte* at, std::size_t bytes) {
  for (std::size_t i = 0; i + kLine <= bytes; i += kLine) {
    std::uint64_t words[32];
    std::memcpy(words, at + i, kLine);
    for (std::uint64_t& word : words) word = ~word;
    std::memcpy(at + i, words, kLine);
  }
}

}  // namespace

ThreadPool& BenchThreads(int threads) {
  static std::map<int, std::unique_ptr<ThreadPool>> pools;
  std::unique_ptr<ThreadPool>& pool = pools[threads];
  if (pool == nullptr) {
    auto made = ThreadPool::Make({.threads = threads, .cpus = {}});
    CHECK(made.ok());
    pool = *std::move(made);
  }
  return *pool;
}

double PeakGmacs(int threads, bool floats) {
  static std::map<std::pair<int, bool>, double> measured;
  const auto [at, is_new] = measured.try_emplace({threads, floats});
  if (is_new) at->second = MeasurePeak(threads, floats);
  return at->second;
}

void ReadBytes(const std::byte* from, std::size_t bytes) {
  if (ThisCpu().avx512) return ReadAvx512(from, bytes);
  if (ThisCpu().avx2) return ReadAvx2(from, bytes);
  ReadWords(from, bytes);
}

void UpdateBytes(std::byte* at, std::size_t bytes) {
  if (ThisCpu().avx512) return UpdateAvx512(at, bytes);
  if (ThisCpu().avx2) return UpdateAvx2(at, bytes);
  UpdateWords(at, bytes);
}

void ReadOnce(const std::byte* from, std::size_t bytes, int threads, BestTimes& times) {
  for (std::size_t piece = 0; piece < times.pieces(); ++piece) {
    const std::size_t begin = bytes * piece / times.pieces() / kLine * kLine;
    const std::size_t end = bytes * (piece + 1) / times.pieces() / kLine * kLine;
    times.Run(piece, [&] {
      BenchThreads(threads).Run([&](int worker) {
        const Range range =
            SplitRange(static_cast<std::int64_t>(end - begin), 4096, worker, threads);
        ReadBytes(from + begin + range.begin, static_cast<std::size_t>(range.end - range.begin));
      });
    });
  }
}

}  // namespace penstock::kernels
