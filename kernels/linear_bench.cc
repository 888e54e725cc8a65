// SPDX-License-Identifier: Apache-2.0
// Matrix products against the machine's limits, both measured in this run:
//   read_GBps   how fast threads can read the same weights and do nothing else
//   peak_GMACps how fast they can multiply in registers, with the instruction that the best target
//               uses (dpbusd, maddubs + madd, or FMA for float weights)
// Counters come from the best time of each matrix over all iterations, since other work on the
// machine only ever takes time away; the limits are best times of pieces as short, too.
//   GBps, GMACps, and as shares of the limits read_share, peak_share.
// The weights are those of SmolLM2-135M in Q4_1 with its Q8_0 head, 97 MB, one after another as
// decoding reads them; and for each format one matrix of 4096 x 4096.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/time.h"
#include "device/cpu_info.h"
#include "device/thread_pool.h"
#include "kernels/linear.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"

namespace penstock::kernels {
namespace {

constexpr int kPeakSteps = 3000;  // A piece of some 10 microseconds.
constexpr int kChains = 16;
constexpr int kChainsAvx2 = 14;  // Of 16 registers.

// Chains of one instruction: with two ports and a latency of 5, more than the ten that are needed,
// since the CPU does not spread them evenly.
SIMD_CALL std::int32_t DotVnni() {
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

ThreadPool& Pool(int threads) {
  static std::map<int, std::unique_ptr<ThreadPool>> pools;
  std::unique_ptr<ThreadPool>& pool = pools[threads];
  if (pool == nullptr) {
    auto made = ThreadPool::Make({.threads = threads, .cpus = {}});
    CHECK(made.ok());
    pool = *std::move(made);
  }
  return *pool;
}

// Best seconds of `runs` runs of `work` on all threads of the pool.
double BestSeconds(int threads, int runs, absl::FunctionRef<void(int)> work) {
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < runs; ++run) {
    const MonoTime begin = SteadyClock().Now();
    Pool(threads).Run(work);
    best = std::min(best, ToSeconds(SteadyClock().Now() - begin));
  }
  return best;
}

// 1e9 multiplications with addition per second, all threads together.
double MeasurePeak(int threads, bool floats) {
  const CpuInfo& cpu = ThisCpu();
  double macs = 0;  // In one instruction.
  const int chains = cpu.avx512 ? kChains : kChainsAvx2;
  const double seconds = BestSeconds(threads, 2000, [&](int) {
    if (floats && cpu.avx512) {
      macs = 16;
      benchmark::DoNotOptimize(FmaAvx512());
    } else if (floats && cpu.avx2) {
      macs = 8;
      benchmark::DoNotOptimize(FmaAvx2());
    } else if (cpu.avx512_vnni) {
      macs = 64;
      benchmark::DoNotOptimize(DotVnni());
    } else if (cpu.avx512) {
      macs = 64;
      benchmark::DoNotOptimize(DotAvx512());
    } else if (cpu.avx2) {
      macs = 32;
      benchmark::DoNotOptimize(DotAvx2());
    }
  });
  return macs * chains * kPeakSteps * threads / seconds / 1e9;
}

double PeakGmacs(int threads, bool floats) {
  static std::map<std::pair<int, bool>, double> measured;
  double& peak = measured[{threads, floats}];
  if (peak == 0) peak = MeasurePeak(threads, floats);
  return peak;
}

// Matrices that are multiplied one after another, in one piece of memory.
class Weights {
 public:
  struct Shape {
    WeightFormat format;
    std::int32_t rows;
    std::int32_t cols;
  };

  explicit Weights(const std::vector<Shape>& shapes) {
    for (const Shape& s : shapes) bytes_ += Aligned(PackedBytes(s.format, s.rows, s.cols));
    storage_ = std::make_unique<std::byte[]>(bytes_ + 64);
    begin_ = storage_.get() + (64 - reinterpret_cast<std::uintptr_t>(storage_.get()) % 64) % 64;
    std::byte* at = begin_;
    for (const Shape& s : shapes) {
      Fill(s, at);
      matrices_.push_back({s.format, s.rows, s.cols, at});
      at += Aligned(PackedBytes(s.format, s.rows, s.cols));
      cols_max_ = std::max(cols_max_, s.cols);
      rows_max_ = std::max(rows_max_, s.rows);
      macs_ += double{1} * s.rows * s.cols;
    }
  }

  const std::vector<PackedMatrix>& matrices() const { return matrices_; }
  std::size_t bytes() const { return bytes_; }
  double macs() const { return macs_; }
  std::int32_t cols_max() const { return cols_max_; }
  std::int32_t rows_max() const { return rows_max_; }
  bool floats() const { return !matrices_.front().takes_int8(); }

  double ReadGbps(int threads) const {
    double& gbps = read_[threads];
    if (gbps != 0) return gbps;
    constexpr std::size_t kPiece = 1 << 20;
    std::vector<double> best((bytes_ + kPiece - 1) / kPiece,
                             std::numeric_limits<double>::infinity());
    for (int pass = 0; pass < 40; ++pass) {
      for (std::size_t piece = 0; piece < best.size(); ++piece) {
        const std::size_t bytes = std::min(kPiece, bytes_ - piece * kPiece);
        const double seconds = BestSeconds(threads, 1, [&](int worker) {
          Read(piece * kPiece, SplitRange(static_cast<std::int64_t>(bytes), 4096, worker, threads));
        });
        best[piece] = std::min(best[piece], seconds);
      }
    }
    return gbps =
               static_cast<double>(bytes_) / std::accumulate(best.begin(), best.end(), 0.0) / 1e9;
  }

 private:
  void Read(std::size_t offset, Range range) const {
    std::uint64_t sums[16] = {};
    for (std::int64_t at = range.begin; at + 128 <= range.end; at += 128) {
      std::uint64_t words[16];
      std::memcpy(words, begin_ + offset + at, sizeof(words));
      // As the products do: it reads faster than the hardware's prefetching alone.
      __builtin_prefetch(begin_ + offset + at + 2048);
      __builtin_prefetch(begin_ + offset + at + 2048 + 64);
      for (int i = 0; i < 16; ++i) sums[i] |= words[i];
    }
    benchmark::DoNotOptimize(sums);
  }

  static std::size_t Aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

  // Random bytes in which no float is infinite, NaN or, but for few f16, subnormal.
  static void Fill(const Shape& s, std::byte* to) {
    std::mt19937_64 random(1);
    const std::int32_t rows = std::min(s.rows, 256);
    std::vector<std::uint64_t> file(BytesOf(s.format, rows, s.cols) / 8 + 1);
    for (std::uint64_t& word : file) {
      word = random() & 0xbfbfbfbfbfbfbfbf;
      // The upper half of a float, and bfloat16, between 0.5 and 1.
      if (s.format == WeightFormat::kF32) word = (word & 0x807fffff807fffff) | 0x3f0000003f000000;
      if (s.format == WeightFormat::kBF16) word = (word & 0x807f807f807f807f) | 0x3f003f003f003f00;
    }
    for (std::int32_t begin = 0; begin < s.rows; begin += rows) {
      const std::int32_t count = std::min(rows, s.rows - begin);
      PackRows(s.format, s.rows, s.cols, begin,
               std::as_bytes(std::span(file)).first(BytesOf(s.format, count, s.cols)), to);
    }
  }

  std::size_t bytes_ = 0;
  double macs_ = 0;
  std::int32_t cols_max_ = 0;
  std::int32_t rows_max_ = 0;
  std::unique_ptr<std::byte[]> storage_;
  std::byte* begin_ = nullptr;
  std::vector<PackedMatrix> matrices_;
  mutable std::map<int, double> read_;
};

const Weights& SmolLm2(bool head) {
  static const auto make = [](bool with_head) {
    std::vector<Weights::Shape> shapes;
    for (int layer = 0; layer < 30; ++layer) {
      for (const auto& [rows, cols] : {std::pair{576, 576},
                                       {192, 576},
                                       {192, 576},
                                       {576, 576},
                                       {1536, 576},
                                       {1536, 576},
                                       {576, 1536}}) {
        shapes.push_back({WeightFormat::kQ4_1, rows, cols});
      }
    }
    if (with_head) shapes.push_back({WeightFormat::kQ8_0, 49152, 576});
    return Weights(shapes);
  };
  static const Weights all = make(true);
  static const Weights layers = make(false);
  return head ? all : layers;
}

// Activations of the largest width; a narrower product takes a prefix of them as its own.
class Inputs {
 public:
  Inputs(const Weights& weights, std::int32_t rows) : blocks_((weights.cols_max() + 31) / 32) {
    f32_.assign(std::size_t{1} * rows * weights.cols_max(), 0.25f);
    q_.resize(std::size_t{1} * rows * blocks_ * 32);
    std::mt19937 random(2);
    for (std::int8_t& q : q_) q = static_cast<std::int8_t>(random() % 255 - 127);
    scale_.assign(std::size_t{1} * rows * blocks_, 0.01f);
    sum_.assign(scale_.size(), 5);
    y_.resize(std::size_t{1} * rows * weights.rows_max());
  }
  Activations View(std::int32_t cols) {
    return {cols, f32_.data(), q_.data(), scale_.data(), sum_.data()};
  }
  float* y() { return y_.data(); }

 private:
  std::int32_t blocks_;
  std::vector<float> f32_;
  std::vector<std::int8_t> q_;
  std::vector<float> scale_;
  std::vector<std::int32_t> sum_;
  std::vector<float> y_;
};

void RunProducts(benchmark::State& state, const Weights& weights, std::int32_t rows, int threads,
                 MultiplyPanelsFn run) {
  Inputs inputs(weights, rows);
  ThreadPool& pool = Pool(threads);
  std::vector<double> best_seconds(weights.matrices().size(),
                                   std::numeric_limits<double>::infinity());
  for (auto _ : state) {
    for (std::size_t m = 0; m < best_seconds.size(); ++m) {
      const PackedMatrix& w = weights.matrices()[m];
      const MonoTime begin = SteadyClock().Now();
      const std::int32_t panels = (w.rows + kPanelRows - 1) / kPanelRows;
      pool.Run([&](int worker) {
        const Range range = SplitRange(panels, 1, worker, threads);
        run(w, inputs.View(w.cols), rows, static_cast<std::int32_t>(range.begin),
            static_cast<std::int32_t>(range.end), inputs.y(), w.rows);
      });
      best_seconds[m] = std::min(best_seconds[m], ToSeconds(SteadyClock().Now() - begin));
    }
  }
  const double best = std::accumulate(best_seconds.begin(), best_seconds.end(), 0.0);
  const double gbps = static_cast<double>(weights.bytes()) / best / 1e9;
  const double gmacs = weights.macs() * rows / best / 1e9;
  state.counters["best_ms"] = best * 1e3;
  state.counters["GBps"] = gbps;
  state.counters["read_GBps"] = weights.ReadGbps(threads);
  state.counters["read_share"] = gbps / weights.ReadGbps(threads);
  state.counters["GMACps"] = gmacs;
  state.counters["peak_GMACps"] = PeakGmacs(threads, weights.floats());
  state.counters["peak_share"] = gmacs / PeakGmacs(threads, weights.floats());
}

void PackBenchmark(benchmark::State& state, WeightFormat format) {
  const std::size_t bytes = BytesOf(format, 2048, 4096);
  const std::vector<std::byte> file(bytes, std::byte{0x35});
  std::vector<std::byte> packed(PackedBytes(format, 2048, 4096));
  for (auto _ : state) {
    PackRows(format, 2048, 4096, 0, file, packed.data());
    benchmark::DoNotOptimize(packed.data());
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes * state.iterations()));
}

void RegisterSmolLm2() {
  for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
    if (target.name == "scalar") continue;
    for (const int threads : {1, 2}) {
      for (const int rows : {1, 2, 4, 8, 16, 64, 512}) {
        // Prefill computes logits for the last row only.
        const bool head = rows <= 16;
        const std::string name = "SmolLM2/" + std::string(target.name) +
                                 "/rows:" + std::to_string(rows) +
                                 "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State& state) {
                                       RunProducts(state, SmolLm2(head), rows, threads, target.run);
                                     })
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
}

void RegisterFormats() {
  for (int f = 0; f <= static_cast<int>(WeightFormat::kQ6_K); ++f) {
    const auto format = static_cast<WeightFormat>(f);
    const std::string format_name(Info(format).name);
    for (const MultiplyPanelsTarget& target : MultiplyPanelsTargets()) {
      if (target.name == "scalar") continue;
      for (const int rows : {1, 4, 16, 256}) {
        const std::string name = format_name + "/" + std::string(target.name) +
                                 "/rows:" + std::to_string(rows) + "/threads:1";
        benchmark::RegisterBenchmark(
            name.c_str(),
            [=](benchmark::State& state) {
              static std::map<WeightFormat, Weights> made;
              const auto [it, is_new] =
                  made.try_emplace(format, std::vector<Weights::Shape>{{format, 4096, 4096}});
              RunProducts(state, it->second, rows, 1, target.run);
            })
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
    benchmark::RegisterBenchmark(("pack/" + format_name).c_str(),
                                 [=](benchmark::State& state) { PackBenchmark(state, format); });
  }
}

const bool kRegistered = [] {
  RegisterSmolLm2();
  RegisterFormats();
  return true;
}();

}  // namespace
}  // namespace penstock::kernels
