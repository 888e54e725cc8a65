// SPDX-License-Identifier: Apache-2.0
// What recording a span costs: switched off, alone, and while all threads do.
#include <string>

#include "base/spans.h"
#include "benchmark/benchmark.h"

namespace penstock {
namespace {

Span Typical() {
  return {.name = SpanName::kWire,
          .request_id = "r-0123456789abcdef",
          .attempt = 1,
          .begin = MonoTime(Duration(1)),
          .end = MonoTime(Duration(2)),
          .bytes = 1 << 20,
          .blocks = 16,
          .layer = 3,
          .group = 0,
          .peer = "prefill-0",
          .transport = "shm"};
}

void BM_TraceOff(benchmark::State& state) {
  SpanRing* ring = nullptr;
  for (auto _ : state) {
    benchmark::DoNotOptimize(ring);
    Trace(ring, Typical());
  }
}
BENCHMARK(BM_TraceOff);

void BM_Record(benchmark::State& state) {
  static SpanRing ring;
  for (auto _ : state) Trace(&ring, Typical());
}
BENCHMARK(BM_Record)->Threads(1)->Threads(2);

}  // namespace
}  // namespace penstock
