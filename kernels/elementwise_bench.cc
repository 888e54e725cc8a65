// SPDX-License-Identifier: Apache-2.0
// Row operations, quantization of activations and the reductions of sampling on one thread, every
// target, against memory traffic that does nothing else over as many bytes, measured in this run:
//   GBps        bytes of arguments read plus bytes written per second; each counts once, however
//               often an operation walks over it
//   limit_GBps  the same for reading (sampling), copying (what has an output of its own), or
//               updating in place, in rows of as many bytes
//   share       GBps / limit_GBps; one row is in the first-level cache, where operations that
//               compute are far from it
// Times add up the best of short pieces.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/activations.h"
#include "kernels/bench_limits.h"
#include "kernels/elementwise_targets.h"
#include "kernels/sampling_targets.h"

namespace penstock::kernels {
namespace {

enum class Traffic : std::uint8_t { kRead, kCopy, kUpdate };

constexpr std::int32_t kHeadDim = 64;
constexpr std::int32_t kTopK = 40;
// What a timed piece moves: some 10 microseconds, so that neither the clock shows nor other work.
constexpr std::size_t kPieceBytes = 1 << 18;

// The first 4 MiB of it are random, and then again.
std::vector<float> Random(std::size_t n, float low, float high) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(n);
  const std::size_t fresh = std::min<std::size_t>(n, 1 << 20);
  for (std::size_t i = 0; i < n; ++i) values[i] = i < fresh ? uniform(random) : values[i - fresh];
  return values;
}

// Work on rows, each of which moves `row_bytes`.
class Rows {
 public:
  Rows(std::int32_t rows, double row_bytes)
      : rows_(rows),
        row_bytes_(row_bytes),
        piece_(std::max(static_cast<std::int32_t>(kPieceBytes / row_bytes), 1)),
        times_(static_cast<std::size_t>((rows + piece_ - 1) / piece_)) {}

  // run(row) for every row, in pieces of several; the only row several times.
  template <typename Run>
  void Walk(Run run) {
    for (std::size_t piece = 0; piece < times_.pieces(); ++piece) {
      const std::int32_t begin = static_cast<std::int32_t>(piece) * piece_;
      const std::int32_t end = rows_ == 1 ? piece_ : std::min(begin + piece_, rows_);
      times_.Run(piece, [&] {
        for (std::int32_t row = begin; row < end; ++row) run(rows_ == 1 ? 0 : row);
      });
    }
  }
  double Gbps() const { return 1e-9 * row_bytes_ * (rows_ == 1 ? piece_ : rows_) / times_.Sum(); }

 private:
  const std::int32_t rows_;
  const double row_bytes_;
  const std::int32_t piece_;  // Rows of one, or walks over the only one.
  BestTimes times_;
};

double LimitGbps(Traffic traffic, std::int32_t row_count, double row_bytes) {
  static std::map<std::tuple<Traffic, std::int32_t, double>, double> measured;
  double& gbps = measured[{traffic, row_count, row_bytes}];
  if (gbps != 0) return gbps;
  Rows rows(row_count, row_bytes);
  // Reading moves each byte once; copying and updating move each of half as many twice.
  const auto bytes =
      static_cast<std::size_t>(traffic == Traffic::kRead ? row_bytes : row_bytes / 2);
  const std::size_t all = bytes * static_cast<std::size_t>(row_count);
  std::vector<std::byte> from(all, std::byte{1});
  std::vector<std::byte> to(traffic == Traffic::kCopy ? all : 0, std::byte{1});
  const MonoTime begin = SteadyClock().Now();
  while (ToSeconds(SteadyClock().Now() - begin) < 0.2) {
    rows.Walk([&](std::int32_t row) {
      const std::size_t at = static_cast<std::size_t>(row) * bytes;
      if (traffic == Traffic::kRead) {
        ReadBytes(from.data() + at, bytes);
      } else if (traffic == Traffic::kUpdate) {
        UpdateBytes(from.data() + at, bytes);
      } else {
        std::memcpy(to.data() + at, from.data() + at, bytes);
      }
      benchmark::ClobberMemory();
    });
  }
  return gbps = rows.Gbps();
}

// The arguments of an operation on `rows` rows of `n` elements.
struct Buffers {
  Buffers(std::int32_t elements, std::int32_t row_count)
      : n(elements),
        rows(row_count),
        // The activation of these is themselves, so that a gate times 1 stays as it is.
        x(Random(std::size_t{1} * n * rows, 20, 30)),
        y(x.size(), 1.0f),
        w(Random(static_cast<std::size_t>(n), 0, 1)),
        cos(kHeadDim / 2, 0.6f),
        sin(kHeadDim / 2, 0.8f),
        scale(x.size() / 32 + 1),
        sum(scale.size()) {}

  // [rows, 2 n], in place of y's floats.
  std::byte* Bytes(std::int32_t row) {
    return reinterpret_cast<std::byte*>(y.data()) + std::int64_t{2} * row * n;
  }

  std::int32_t n;
  std::int32_t rows;
  std::vector<float> x, y;  // [rows, n]
  std::vector<float> w;     // [n]
  std::vector<float> cos, sin;
  std::vector<float> scale;
  std::vector<std::int32_t> sum;
};

struct RowOperation {
  std::string name;
  Traffic traffic;
  double bytes;  // Per element.
  std::function<void(Buffers&, std::int32_t row)> run;
};

void AddKvOperations(const ElementwiseTarget& t, std::vector<RowOperation>& all) {
  for (const auto& [name, dtype] :
       {std::pair{"f16", KvDtype::kF16}, std::pair{"bf16", KvDtype::kBF16}}) {
    const KvDtype type = dtype;
    all.push_back(
        {std::string("narrow_") + name, Traffic::kCopy, 6, [=](Buffers& b, std::int32_t row) {
           t.narrow_row(type, b.x.data() + std::int64_t{row} * b.n, b.n, b.Bytes(row));
         }});
    all.push_back(
        {std::string("widen_") + name, Traffic::kCopy, 6, [=](Buffers& b, std::int32_t row) {
           t.widen_row(type, b.Bytes(row), b.n, b.x.data() + std::int64_t{row} * b.n);
         }});
  }
}

std::vector<RowOperation> Operations(const ElementwiseTarget& t) {
  std::vector<RowOperation> all;
  all.push_back({"rms_norm", Traffic::kCopy, 8, [=](Buffers& b, std::int32_t row) {
                   const std::int64_t at = std::int64_t{row} * b.n;
                   t.rms_norm(b.x.data() + at, b.w.data(), b.n, 1e-5f, b.y.data() + at);
                 }});
  all.push_back({"add", Traffic::kUpdate, 12, [=](Buffers& b, std::int32_t row) {
                   const std::int64_t at = std::int64_t{row} * b.n;
                   t.add(b.y.data() + at, b.n, b.x.data() + at);
                 }});
  for (const auto& [name, pairs] : {std::pair{"rope_adjacent", RopePairs::kAdjacent},
                                    std::pair{"rope_halves", RopePairs::kHalves}}) {
    const RopePairs kind = pairs;
    all.push_back({name, Traffic::kUpdate, 8, [=](Buffers& b, std::int32_t row) {
                     float* const x = b.x.data() + std::int64_t{row} * b.n;
                     for (std::int32_t i = 0; i < b.n; i += kHeadDim) {
                       t.rope(kind, b.cos.data(), b.sin.data(), kHeadDim, x + i);
                     }
                   }});
  }
  for (const auto& [name, activation] :
       {std::pair{"silu", Activation::kSilu}, std::pair{"gelu_tanh", Activation::kGeluTanh}}) {
    const Activation kind = activation;
    all.push_back({name, Traffic::kUpdate, 12, [=](Buffers& b, std::int32_t row) {
                     const std::int64_t at = std::int64_t{row} * b.n;
                     t.gated_activation(kind, b.y.data() + at, b.n, b.x.data() + at);
                   }});
  }
  AddKvOperations(t, all);
  return all;
}

RowOperation Quantize(const QuantizeRowTarget& t) {
  return {"quantize", Traffic::kCopy, 5.25, [=](Buffers& b, std::int32_t row) {
            const std::int64_t blocks = b.n / 32;
            t.run(b.x.data() + std::int64_t{row} * b.n, b.n,
                  reinterpret_cast<std::int8_t*>(b.y.data()) + std::int64_t{row} * b.n,
                  b.scale.data() + row * blocks, b.sum.data() + row * blocks);
          }};
}

// Runs run(row), and adds the counters.
template <typename Run>
void Measure(benchmark::State& state, Traffic traffic, std::int32_t row_count, double row_bytes,
             Run run) {
  Rows rows(row_count, row_bytes);
  for (auto _ : state) rows.Walk(run);
  const double limit = LimitGbps(traffic, row_count, row_bytes);
  state.counters["GBps"] = rows.Gbps();
  state.counters["limit_GBps"] = limit;
  state.counters["share"] = rows.Gbps() / limit;
}

void Register(const std::string& name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->MinTime(0.05);
}

void RegisterRows(std::string_view target, const RowOperation& operation) {
  for (const std::int32_t n : {576, 2048, 8192}) {
    for (const std::int32_t rows : {1, 512}) {
      Register(operation.name + "/" + std::string(target) + "/n:" + std::to_string(n) +
                   "/rows:" + std::to_string(rows),
               [=](benchmark::State& state) {
                 Buffers buffers(n, rows);
                 Measure(state, operation.traffic, rows, operation.bytes * n,
                         [&](std::int32_t row) { operation.run(buffers, row); });
               });
    }
  }
}

using Reduction = std::function<void(std::span<const float> logits)>;

void RegisterReduction(const std::string& name, std::string_view target, const Reduction& run) {
  for (const std::int32_t vocab : {49152, 262144}) {
    for (const std::int32_t rows : {1, 64}) {  // 64 rows are in no cache.
      Register(name + "/" + std::string(target) + "/vocab:" + std::to_string(vocab) +
                   "/rows:" + std::to_string(rows),
               [=](benchmark::State& state) {
                 const auto n = static_cast<std::size_t>(vocab);
                 const std::vector<float> logits =
                     Random(n * static_cast<std::size_t>(rows), -10, 10);
                 Measure(state, Traffic::kRead, rows, 4.0 * vocab, [&](std::int32_t row) {
                   run(std::span(logits).subspan(n * static_cast<std::size_t>(row), n));
                 });
               });
    }
  }
}

const bool kRegistered = [] {
  for (const ElementwiseTarget& target : ElementwiseTargets()) {
    for (const RowOperation& operation : Operations(target)) RegisterRows(target.name, operation);
  }
  for (const QuantizeRowTarget& target : QuantizeRowTargets()) {
    RegisterRows(target.name, Quantize(target));
  }
  for (const SamplingTarget& target : SamplingTargets()) {
    RegisterReduction("arg_max", target.name, [=](std::span<const float> logits) {
      benchmark::DoNotOptimize(
          target.arg_max(logits.data(), static_cast<std::int32_t>(logits.size())));
    });
    RegisterReduction("log_sum_exp", target.name, [=](std::span<const float> logits) {
      benchmark::DoNotOptimize(LogSumExpWith(target, logits));
    });
    RegisterReduction("top_k", target.name, [=](std::span<const float> logits) {
      benchmark::DoNotOptimize(TopKWith(target, logits, kTopK));
    });
  }
  return true;
}();

}  // namespace
}  // namespace penstock::kernels
