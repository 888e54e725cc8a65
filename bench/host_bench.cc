// SPDX-License-Identifier: Apache-2.0
// What the host tier's bookkeeping costs when it holds kCopies; no byte of a frame is touched.
//   HostTierCycle  the life of one copy: reserve, publish, find, lease, end the lease, remove
//   HostTierFull   frames of unlike sizes keep coming: each evicts until it fits
//                  (filled: the share of the room that is taken in the long run)
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <cstdint>
#include <string>

#include "base/check.h"
#include "kvstore/eviction_testing.h"
#include "kvstore/host/host_tier.h"

namespace penstock::bench {
namespace {

using kvstore::HostTier;
using kvstore::TestKey;
using kvstore::TestTime;

constexpr std::uint64_t kCopies = 100'000;
constexpr std::uint64_t kTurns =
    2'000'000;  // How often the room is filled anew is kTurns / kCopies.

// Address space: only the pages of generations are ever touched.
class Room {
 public:
  explicit Room(std::uint64_t bytes) : bytes_(bytes) {
    memory_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory_ != MAP_FAILED);
  }
  ~Room() { ::munmap(memory_, bytes_); }
  std::span<std::byte> get() { return {static_cast<std::byte*>(memory_), bytes_}; }

 private:
  const std::uint64_t bytes_;
  void* memory_;
};

std::uint32_t BytesOf(std::uint64_t number, std::int64_t spread_percent) {
  constexpr std::uint32_t kBytes = 720 << 10;  // 32 tokens of SmolLM2.
  const std::uint64_t spread = kBytes * static_cast<std::uint64_t>(spread_percent) / 100;
  const std::uint64_t drawn = (number + 1) * 0x9e3779b97f4a7c15 >> 32;
  return kBytes - static_cast<std::uint32_t>(drawn % (spread + 1));
}

void HostTierCycle(benchmark::State& state, const std::string& policy) {
  const std::uint32_t bytes = BytesOf(0, 0);
  Room room((kCopies + 2) * (bytes + HostTier::kPageBytes));
  const auto tier = HostTier::Make(room.get(), {.policy = policy}).value();
  MonoTime now = TestTime(1);
  const auto put = [&](std::uint64_t number) {
    const auto place = tier->Reserve({.key = TestKey(number), .bytes = bytes}, now);
    CHECK(place.ok());
    benchmark::DoNotOptimize(place->offset);
    tier->Publish(TestKey(number), now);
  };
  for (std::uint64_t number = 0; number < kCopies; ++number) put(number);
  std::uint64_t number = kCopies;
  for ([[maybe_unused]] auto _ : state) {
    now += std::chrono::microseconds(1);
    put(number);
    const BlockKey key = TestKey(number++);
    CHECK(tier->Find(key, now).has_value());
    const auto lease = tier->Lease(key, now);
    CHECK(lease.ok());
    tier->EndLease(*lease, now);
    // One that has been there for long.
    tier->Remove(TestKey(number - kCopies), now);
  }
  CHECK(tier->stats().copies == kCopies);
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
}
BENCHMARK_CAPTURE(HostTierCycle, lru, "lru");
BENCHMARK_CAPTURE(HostTierCycle, reuse_density, "reuse-density");

void HostTierFull(benchmark::State& state) {
  Room room(kCopies * BytesOf(0, 0));
  for ([[maybe_unused]] auto _ : state) {
    const auto tier = HostTier::Make(room.get(), {.policy = "lru"}).value();
    double filled = 0;
    for (std::uint64_t number = 0; number < kTurns; ++number) {
      const MonoTime now = TestTime(static_cast<double>(number) * 1e-3);
      const std::uint32_t bytes = BytesOf(number, state.range(0));
      while (!tier->Reserve({.key = TestKey(number), .bytes = bytes}, now).ok()) {
        for (const HostTier::Copy& copy : tier->Evict(bytes, now)) tier->Remove(copy.key, now);
      }
      tier->Publish(TestKey(number), now);
      // Used again so that what goes is spread over the room.
      if (number > kCopies) tier->Find(TestKey(number - (number * 2654435761u) % kCopies), now);
      if (number >= kTurns / 2) {
        filled +=
            static_cast<double>(tier->stats().bytes) / static_cast<double>(tier->stats().bytes_max);
      }
    }
    state.counters["filled"] = filled / static_cast<double>(kTurns / 2);
    state.counters["puts_per_s"] =
        benchmark::Counter(static_cast<double>(kTurns), benchmark::Counter::kIsRate);
  }
}
BENCHMARK(HostTierFull)
    ->ArgName("spread%")
    ->Arg(0)
    ->Arg(10)
    ->Arg(50)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace penstock::bench
