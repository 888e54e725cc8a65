// SPDX-License-Identifier: Apache-2.0
// CRC32C, alone and while copying, on one thread over a pool that no cache holds, walked in order
// in pieces, against copies that do nothing else:
//   GBps         bytes of the source per second
//   memcpy_GBps  the same for std::memcpy of each piece
//   stream_GBps  the same for a loop of non-temporal stores
//   share        GBps / the better of the two
// All three take turns, a chunk of some 1 MiB each, on different parts of the pool; a figure is
// that of the median chunk. Source and destination are shared memory in pages of 4 KiB, as workers'
// are.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/time.h"
#include "device/cpu_info.h"
#include "kernels/crc32c_targets.h"
#include "kernels/simd.h"
#if defined(PENSTOCK_ISAL)
#include <isa-l/crc.h>
#endif

namespace penstock::kernels {
namespace {

constexpr std::size_t kPoolBytes = 512 << 20;  // Each of source and destination.
constexpr std::size_t kChunkBytes = 1 << 20;
constexpr int kRounds = 5;  // Over the pool.

using Work = std::function<void(const std::byte* from, std::size_t n, std::byte* to)>;

// Never unmapped: both live as long as the process.
std::byte* MapPool(const char* name, int value) {
  const int fd = memfd_create(name, 0);
  CHECK(fd >= 0 && ftruncate(fd, kPoolBytes) == 0);
  void* const pool = mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(pool != MAP_FAILED);
  close(fd);
  std::memset(pool, value, kPoolBytes);
  return static_cast<std::byte*>(pool);
}

void CopyMemcpy(const std::byte* from, std::size_t n, std::byte* to) { std::memcpy(to, from, n); }

// Copies whole lines, and asks for the page behind within the piece: the best of several distances.
constexpr std::size_t kAhead = 4096;

void CopyStreamSse2(const std::byte* from, std::size_t n, std::byte* to) {
  for (std::size_t at = 0; at < n; at += 64) {
    const std::size_t ahead = n - at > kAhead ? kAhead : 0;
    _mm_prefetch(reinterpret_cast<const char*>(from + at + ahead), _MM_HINT_T1);
    for (std::size_t i = at; i < at + 64; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    }
  }
  _mm_sfence();
}

[[gnu::target("avx512f")]] void CopyStreamAvx512(const std::byte* from, std::size_t n,
                                                 std::byte* to) {
  for (std::size_t at = 0; at < n; at += 64) {
    const std::size_t ahead = n - at > kAhead ? kAhead : 0;
    _mm_prefetch(reinterpret_cast<const char*>(from + at + ahead), _MM_HINT_T1);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(from + at));
  }
  _mm_sfence();
}

double MedianGbps(std::size_t bytes, std::vector<double> seconds) {
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return 1e-9 * static_cast<double>(bytes) / *middle;
}

void Walk(benchmark::State& state, std::size_t piece, const Work& work) {
  static std::byte* const from = MapPool("from", 1);
  static std::byte* const to = MapPool("to", 2);
  const std::array<Work, 3> all = {work, CopyMemcpy,
                                   ThisCpu().avx512 ? CopyStreamAvx512 : CopyStreamSse2};
  std::array<std::vector<double>, all.size()> seconds;
  const std::size_t chunk = kChunkBytes / piece * piece;
  const std::size_t chunks = kPoolBytes / chunk;
  for (auto _ : state) {
    for (std::size_t turn = 0; turn < chunks * all.size(); ++turn) {
      const std::size_t who = turn % all.size();
      const std::size_t at = (turn / all.size() + who * chunks / all.size()) % chunks * chunk;
      const MonoTime begin = SteadyClock().Now();
      for (std::size_t i = at; i < at + chunk; i += piece) all[who](from + i, piece, to + i);
      seconds[who].push_back(ToSeconds(SteadyClock().Now() - begin));
    }
  }
  const double gbps = MedianGbps(chunk, seconds[0]);
  const double memcpy_gbps = MedianGbps(chunk, seconds[1]);
  const double stream_gbps = MedianGbps(chunk, seconds[2]);
  state.counters["GBps"] = gbps;
  state.counters["memcpy_GBps"] = memcpy_gbps;
  state.counters["stream_GBps"] = stream_gbps;
  state.counters["share"] = gbps / std::max(memcpy_gbps, stream_gbps);
}

void Register(const std::string& name, const Work& work) {
  for (const std::size_t kib : {4, 12, 64, 1024}) {
    benchmark::RegisterBenchmark((name + "/KiB:" + std::to_string(kib)).c_str(),
                                 [=](benchmark::State& state) { Walk(state, kib << 10, work); })
        ->Iterations(kRounds)
        ->Unit(benchmark::kMillisecond);
  }
}

const bool kRegistered = [] {
  for (const Crc32cTarget& target : Crc32cTargets()) {
    const std::string name(target.name);
    Register("copy_crc/" + name,
             [copy = target.copy](const std::byte* from, std::size_t n, std::byte* to) {
               benchmark::DoNotOptimize(copy(0, from, n, to));
             });
    Register("crc/" + name, [crc = target.crc](const std::byte* from, std::size_t n, std::byte*) {
      benchmark::DoNotOptimize(crc(0, from, n));
    });
  }
#if defined(PENSTOCK_ISAL)
  Register("crc/isa-l", [](const std::byte* from, std::size_t n, std::byte*) {
    // It only reads, but says so nowhere.
    auto* const bytes = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(from));
    benchmark::DoNotOptimize(crc32_iscsi(bytes, static_cast<int>(n), 0));
  });
#endif
  return true;
}();

}  // namespace
}  // namespace penstock::kernels
