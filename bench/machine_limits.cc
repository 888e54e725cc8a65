// SPDX-License-Identifier: Apache-2.0
#include "bench/machine_limits.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "device/cpu_info.h"

namespace penstock::bench {
namespace {

constexpr int kTries = 5;
// A few milliseconds on any machine, so that clocks settle and the fork and join do not show.
constexpr std::int64_t kMathRounds = 2'000'000;
constexpr std::size_t kReadBytesPerTry = std::size_t{512} << 20;
// Independent sums: multiply-add latency (4) times issue width (2), and some slack.
constexpr int kChains = 10;

// Each loop returns something that depends on all it did, so that none of it can be left out.
// The empty asm keeps the operands from being constants. Counts: multiply-adds of one round.

constexpr std::int64_t kFmaAvx2 = std::int64_t{8} * kChains;
[[gnu::target("avx2,fma")]] std::uint64_t FmaLoopAvx2(std::int64_t rounds) {
  __m256 sums[kChains], a = _mm256_set1_ps(1.0F), b = _mm256_set1_ps(0x1p-30F);
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = _mm256_fmadd_ps(a, b, sums[c]);
  }
  __m256 all = sums[0];
  for (int c = 1; c < kChains; ++c) all = _mm256_add_ps(all, sums[c]);
  return static_cast<std::uint64_t>(_mm256_movemask_ps(all));
}

constexpr std::int64_t kFmaAvx512 = std::int64_t{16} * kChains;
[[gnu::target("avx512f")]] std::uint64_t FmaLoopAvx512(std::int64_t rounds) {
  __m512 sums[kChains], a = _mm512_set1_ps(1.0F), b = _mm512_set1_ps(0x1p-30F);
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_fmadd_ps(a, b, sums[c]);
  }
  __m512 all = sums[0];
  for (int c = 1; c < kChains; ++c) all = _mm512_add_ps(all, sums[c]);
  return _mm512_cmp_ps_mask(all, _mm512_setzero_ps(), _CMP_GT_OQ);
}

// Products of unsigned 4-bit and signed 8-bit numbers added up in 16 bits: two instructions for 32.
constexpr std::int64_t kDotAvx2 = std::int64_t{32} * kChains;
[[gnu::target("avx2")]] std::uint64_t DotLoopAvx2(std::int64_t rounds) {
  __m256i sums[kChains], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      __m256i product = _mm256_maddubs_epi16(a, b);
      asm volatile("" : "+x"(product));  // Equal products must not be computed once.
      sums[c] = _mm256_add_epi16(sums[c], product);
    }
  }
  __m256i all = sums[0];
  for (int c = 1; c < kChains; ++c) all = _mm256_xor_si256(all, sums[c]);
  return static_cast<std::uint64_t>(_mm256_movemask_epi8(all));
}

constexpr std::int64_t kDotAvx512 = std::int64_t{64} * kChains;
[[gnu::target("avx512f,avx512bw")]] std::uint64_t DotLoopAvx512(std::int64_t rounds) {
  __m512i sums[kChains], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      __m512i product = _mm512_maddubs_epi16(a, b);
      asm volatile("" : "+v"(product));
      sums[c] = _mm512_add_epi16(sums[c], product);
    }
  }
  __m512i all = sums[0];
  for (int c = 1; c < kChains; ++c) all = _mm512_xor_si512(all, sums[c]);
  return _mm512_movepi8_mask(all);
}

[[gnu::target("avx512f,avx512bw,avx512vnni")]] std::uint64_t DotLoopVnni(std::int64_t rounds) {
  __m512i sums[kChains], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbusd_epi32(sums[c], a, b);
  }
  __m512i all = sums[0];
  for (int c = 1; c < kChains; ++c) all = _mm512_xor_si512(all, sums[c]);
  return _mm512_movepi8_mask(all);
}

// What the compiler makes of it without wide instructions.
std::uint64_t ScalarLoop(std::int64_t rounds) {
  std::uint32_t sums[kChains] = {};
  std::uint32_t a = 3, b = 5;
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+r"(a), "+r"(b));
    for (std::uint32_t& sum : sums) sum += a * b;
  }
  std::uint64_t all = 0;
  for (const std::uint32_t sum : sums) all ^= sum;
  return all;
}

[[gnu::target("avx2")]] std::uint64_t ReadAvx2(const std::byte* p, std::size_t bytes) {
  __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
  for (std::size_t i = 0; i < bytes; i += 128) {
    const auto* v = reinterpret_cast<const __m256i*>(p + i);
    s0 = _mm256_xor_si256(s0, _mm256_load_si256(v));
    s1 = _mm256_xor_si256(s1, _mm256_load_si256(v + 1));
    s2 = _mm256_xor_si256(s2, _mm256_load_si256(v + 2));
    s3 = _mm256_xor_si256(s3, _mm256_load_si256(v + 3));
  }
  s0 = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
  return static_cast<std::uint64_t>(_mm256_movemask_epi8(s0));
}

std::uint64_t ReadScalar(const std::byte* p, std::size_t bytes) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < bytes; i += sizeof(sum)) {
    std::uint64_t word;
    std::memcpy(&word, p + i, sizeof(word));
    sum ^= word;
  }
  return sum;
}

struct MathLoop {
  std::uint64_t (*run)(std::int64_t rounds);
  std::int64_t multiply_adds;  // In one round.
};

MathLoop BestFma() {
  if (ThisCpu().avx512) return {FmaLoopAvx512, kFmaAvx512};
  if (ThisCpu().avx2) return {FmaLoopAvx2, kFmaAvx2};
  return {ScalarLoop, kChains};
}

MathLoop BestDot() {
  if (ThisCpu().avx512_vnni) return {DotLoopVnni, kDotAvx512};
  if (ThisCpu().avx512) return {DotLoopAvx512, kDotAvx512};
  if (ThisCpu().avx2) return {DotLoopAvx2, kDotAvx2};
  return {ScalarLoop, kChains};
}

// Seconds of the fastest try.
double Fastest(const Clock& clock, absl::FunctionRef<void()> run) {
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const MonoTime start = clock.Now();
    run();
    const double seconds = ToSeconds(clock.Now() - start);
    if (i == 0 || seconds < best) best = seconds;
  }
  return best;
}

double MultiplyAddsPerSecond(ThreadPool& threads, const MathLoop& loop, const Clock& clock,
                             std::atomic<std::uint64_t>& sink) {
  const double seconds =
      Fastest(clock, [&] { threads.Run([&](int) { sink.fetch_xor(loop.run(kMathRounds)); }); });
  return static_cast<double>(kMathRounds) * static_cast<double>(loop.multiply_adds) *
         threads.threads() / seconds;
}

double BytesReadPerSecond(ThreadPool& threads, std::size_t bytes, const Clock& clock,
                          std::atomic<std::uint64_t>& sink) {
  constexpr std::size_t kPage = 4096;
  const std::size_t share =
      (bytes / static_cast<std::size_t>(threads.threads()) + kPage - 1) / kPage * kPage;
  std::vector<std::unique_ptr<std::byte[]>> memory(static_cast<std::size_t>(threads.threads()));
  std::vector<std::byte*> begins(memory.size());
  threads.Run([&](int worker) {
    auto& mine = memory[static_cast<std::size_t>(worker)];
    mine = std::make_unique<std::byte[]>(share + kPage);  // Zeroed, and so backed by memory.
    auto begin = reinterpret_cast<std::uintptr_t>(mine.get());
    begin = (begin + kPage - 1) / kPage * kPage;
    begins[static_cast<std::size_t>(worker)] = reinterpret_cast<std::byte*>(begin);
  });
  const std::size_t all = share * memory.size();
  const std::size_t passes = std::max<std::size_t>(kReadBytesPerTry / all, 1);
  const double seconds = Fastest(clock, [&] {
    threads.Run([&](int worker) {
      const std::byte* p = begins[static_cast<std::size_t>(worker)];
      for (std::size_t i = 0; i < passes; ++i) {
        sink.fetch_xor(ThisCpu().avx2 ? ReadAvx2(p, share) : ReadScalar(p, share));
      }
    });
  });
  return static_cast<double>(all * passes) / seconds;
}

}  // namespace

MachineLimits MeasureMachineLimits(ThreadPool& threads, std::size_t read_bytes,
                                   const Clock& clock) {
  std::atomic<std::uint64_t> sink{0};
  MachineLimits limits;
  limits.read_bytes_per_s = BytesReadPerSecond(threads, read_bytes, clock, sink);
  limits.fma_per_s = MultiplyAddsPerSecond(threads, BestFma(), clock, sink);
  limits.int_dot_per_s = MultiplyAddsPerSecond(threads, BestDot(), clock, sink);
  return limits;
}

}  // namespace penstock::bench
