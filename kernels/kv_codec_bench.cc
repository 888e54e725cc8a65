// SPDX-License-Identifier: Apache-2.0
// Quantization, exponent coding and entropy coding of one head's keys or values of a block, [32, 64], on one
// thread, every target, in caches:
//   GBps         bytes of uncompressed values per second
//   memcpy_GBps  copying as many
#include <benchmark/benchmark.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "kernels/bench_limits.h"
#include "kernels/kv_codec_ans_targets.h"
#include "kernels/kv_codec_planes_targets.h"
#include "kernels/kv_codec_quant_targets.h"
#include "kernels/kv_codec_steps_targets.h"

namespace penstock::kernels {
namespace {

constexpr std::int32_t kRows = 32;
constexpr std::int32_t kDim = 64;
constexpr std::size_t kValues = std::size_t{kRows} * kDim;
// Some 10 microseconds and more a piece, so that the clock does not show.
constexpr std::size_t kMatrices = 16;
constexpr std::size_t kPieces = 200;

// A matrix and what it becomes.
struct Work {
  std::vector<std::byte> x, codes, rest, scales, minima;
  std::vector<std::int16_t> steps_codes = std::vector<std::int16_t>(kValues);
  std::vector<std::int32_t> tops = std::vector<std::int32_t>(kDim);
  std::vector<std::int8_t> offsets = std::vector<std::int8_t>(kDim);
  KvAnsStates states;
  const std::byte* words = nullptr;  // Up to the end of `scales`.

  explicit Work(KvDtype dtype)
      : x(2 * kValues), codes(kValues), rest(kValues), scales(2 * kValues), minima(2 * kValues) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < kValues; ++i) {
      const float value = normal(random);
      const auto bits = dtype == KvDtype::kF16 ? static_cast<std::uint16_t>(ToF16(value))
                                               : static_cast<std::uint16_t>(ToBF16(value));
      std::memcpy(x.data() + 2 * i, &bits, 2);
    }
  }
};

using Run = std::function<void(Work&)>;

void Measure(benchmark::State& state, KvDtype dtype, const Run& prepare, const Run& run) {
  std::vector<Work> all(kMatrices, Work(dtype));
  std::vector<Work> copies = all;
  for (Work& work : all) prepare(work);
  BestTimes times(1);
  BestTimes copy_times(1);
  for (auto _ : state) {
    for (std::size_t piece = 0; piece < kPieces; ++piece) {
      times.Run(0, [&] {
        for (Work& work : all) run(work);
      });
      copy_times.Run(0, [&] {
        for (std::size_t i = 0; i < kMatrices; ++i) {
          std::memcpy(copies[i].x.data(), all[i].x.data(), all[i].x.size());
        }
        benchmark::ClobberMemory();
      });
    }
  }
  const double bytes = 2.0 * kValues * kMatrices;
  state.counters["GBps"] = bytes / times.Sum() * 1e-9;
  state.counters["memcpy_GBps"] = bytes / copy_times.Sum() * 1e-9;
}

void Register(const std::string& name, KvDtype dtype, const Run& prepare, const Run& run) {
  benchmark::RegisterBenchmark(
      (name + "/" + std::string(ToString(dtype))).c_str(),
      [=](benchmark::State& state) { Measure(state, dtype, prepare, run); })
      ->Iterations(1)
      ->Unit(benchmark::kMillisecond);
}

void RegisterQuant(const KvQuantTarget& t, KvDtype dtype) {
  const KvMatrix shape = {dtype, kRows, kDim};
  const std::string target(t.name);
  const Run int8 = [=](Work& w) {
    t.quantize_int8(shape, w.x.data(), w.codes.data(), w.scales.data());
  };
  Register("int8/" + target, dtype, int8, int8);
  Register("int8_back/" + target, dtype, int8,
           [=](Work& w) { t.dequantize_int8(shape, w.codes.data(), w.scales.data(), w.x.data()); });
  for (const bool channels : {false, true}) {
    const std::string name = channels ? "channels4" : "groups4";
    const Run there = [=](Work& w) {
      (channels ? t.quantize_channels : t.quantize_groups)(4, shape, w.x.data(), w.codes.data(),
                                                           w.scales.data(), w.minima.data());
    };
    Register(absl::StrCat(name, "/", target), dtype, there, there);
    Register(absl::StrCat(name, "_back/", target), dtype, there, [=](Work& w) {
      (channels ? t.dequantize_channels : t.dequantize_groups)(
          4, shape, w.codes.data(), w.scales.data(), w.minima.data(), w.x.data());
    });
  }
}

void RegisterPlanes(const KvPlanesTarget& t, KvDtype dtype) {
  // Normal numbers up to some 4: of the exponents from there down.
  const int top = dtype == KvDtype::kF16 ? 16 : 128;
  const std::vector<std::uint8_t> firsts(
      kKvChunkValues, static_cast<std::uint8_t>(top - KvExponentCodes(dtype) + 1));
  const std::string target(t.name);
  const Run split = [=](Work& w) {
    const KvExponents e = {dtype, kValues, firsts.data(), firsts.size()};
    benchmark::DoNotOptimize(
        t.split(e, w.x.data(), w.rest.data(), w.codes.data(), w.scales.data()));
  };
  Register("planes/" + target, dtype, split, split);
  Register("planes_back/" + target, dtype, split, [=](Work& w) {
    const KvExponents e = {dtype, kValues, firsts.data(), firsts.size()};
    benchmark::DoNotOptimize(
        t.join(e, w.rest.data(), w.codes.data(), w.scales.data(), kValues, w.x.data()));
  });
}

void RegisterSteps(const KvStepsTarget& t, KvDtype dtype) {
  const KvMatrix shape = {dtype, kRows, kDim};
  const std::string target(t.name);
  const Run keys = [=](Work& w) {
    t.quantize_keys(shape, 0.3f, w.x.data(), w.scales.data(), w.offsets.data(),
                    w.steps_codes.data(), w.tops.data());
  };
  Register("key_steps/" + target, dtype, keys, keys);
  Register("key_steps_back/" + target, dtype, keys, [=](Work& w) {
    t.dequantize_keys(shape, w.scales.data(), w.offsets.data(), w.steps_codes.data(), w.x.data());
  });
  const Run values = [=](Work& w) {
    t.quantize_values(shape, 0.5f, w.x.data(), w.scales.data(), w.steps_codes.data(),
                      w.tops.data());
  };
  Register("value_steps/" + target, dtype, values, values);
  Register("value_steps_back/" + target, dtype, values, [=](Work& w) {
    t.dequantize_values(shape, w.scales.data(), w.steps_codes.data(), w.x.data());
  });
}

// One class of codes from -15 to 15, all of them as likely.
const KvAnsTables& EvenTables() {
  static const KvAnsTables tables = [] {
    std::vector<std::uint16_t> even(16, 33);
    even[0] = 34;
    const std::span<const std::uint16_t> classes[] = {even};
    return MakeAnsTables(classes);
  }();
  return tables;
}

void RegisterAns(const KvAnsTarget& t) {
  static constexpr std::uint8_t kClasses[kDim] = {};
  const KvAnsRows rows = {kRows, kDim, kClasses};
  const std::string target(t.name);
  const Run encode = [=](Work& w) {
    w.states.fill(kAnsLow);
    w.words = t.encode(EvenTables(), rows, w.steps_codes.data(), w.states,
                       w.scales.data() + w.scales.size());
  };
  const Run prepare = [=](Work& w) {
    for (std::size_t i = 0; i < kValues; ++i) {
      w.steps_codes[i] = static_cast<std::int16_t>(static_cast<int>(i * 7 % 31) - 15);
    }
    encode(w);
  };
  Register("ans/" + target, KvDtype::kF16, prepare, encode);
  Register("ans_back/" + target, KvDtype::kF16, prepare, [=](Work& w) {
    KvAnsStates states = w.states;
    benchmark::DoNotOptimize(t.decode(EvenTables(), rows, states, w.words,
                                      w.scales.data() + w.scales.size(), w.steps_codes.data()));
  });
}

const bool kRegistered = [] {
  for (const KvAnsTarget& target : KvAnsTargets()) RegisterAns(target);

  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16}) {
    for (const KvQuantTarget& target : KvQuantTargets()) RegisterQuant(target, dtype);
    for (const KvStepsTarget& target : KvStepsTargets()) RegisterSteps(target, dtype);
    for (const KvPlanesTarget& target : KvPlanesTargets()) RegisterPlanes(target, dtype);
  }
  return true;
}();

}  // namespace
}  // namespace penstock::kernels
