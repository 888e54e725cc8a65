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
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "device/thread_pool.h"
#include "kernels/bench_limits.h"
#include "kernels/linear.h"

namespace penstock::kernels {
namespace {

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
    if (gbps == 0) {
      BestTimes times((bytes_ >> 20) + 1);  // Pieces of up to 1 MiB.
      for (int pass = 0; pass < 40; ++pass) ReadOnce(begin_, bytes_, threads, times);
      gbps = static_cast<double>(bytes_) / times.Sum() / 1e9;
    }
    return gbps;
  }

 private:
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
  ThreadPool& pool = BenchThreads(threads);
  BestTimes times(weights.matrices().size());
  for (auto _ : state) {
    for (std::size_t m = 0; m < times.pieces(); ++m) {
      const PackedMatrix& w = weights.matrices()[m];
      const std::int32_t panels = (w.rows + kPanelRows - 1) / kPanelRows;
      times.Run(m, [&] {
        pool.Run([&](int worker) {
          const Range range = SplitRange(panels, 1, worker, threads);
          run(w, inputs.View(w.cols), rows, static_cast<std::int32_t>(range.begin),
              static_cast<std::int32_t>(range.end), inputs.y(), w.rows);
        });
      });
    }
  }
  const double best = times.Sum();
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
  for (const WeightFormat format : kWeightFormats) {
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
