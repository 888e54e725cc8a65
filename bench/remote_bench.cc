// SPDX-License-Identifier: Apache-2.0
// The remote tier with a redis-server of this machine, over its Unix socket, frames of 720 KiB (32
// tokens of SmolLM2), kInFlight at a time:
//   put_GBps  the server said that it has them
//   get_GBps  copied to where they were wanted; as they came, unverified
// A figure is that of the median round.
#include <benchmark/benchmark.h>

#include <functional>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "bench/in_flight.h"
#include "kvstore/eviction_testing.h"
#include "kvstore/remote/redis_testing.h"
#include "kvstore/remote/remote_tier.h"

namespace penstock::bench {
namespace {

using kvstore::RemoteTier;
using kvstore::TestKey;

constexpr std::size_t kFrameBytes = 720 << 10;
constexpr std::uint64_t kFrames = 256;  // Of a round: 189 MB.
constexpr int kInFlight = 8;
constexpr int kRounds = 5;

double GbPerSecond(EpollLoop& loop, const StartPiece& start) {
  return double{kFrameBytes} * kFrames / SecondsInFlight(loop, kFrames, kInFlight, start) / 1e9;
}

void RemoteTierFrames(benchmark::State& state) {
  if (!kvstore::RealRedis::Exists()) return state.SkipWithError("no redis-server here");
  const kvstore::TestFolder folder;
  const kvstore::RealRedis redis(folder.path());
  CHECK(redis.trouble().empty());
  const auto loop = *EpollLoop::Make("remote");
  std::unique_ptr<RemoteTier> tier;
  loop->Run([&] {
    auto link = kvstore::OpenRedisLink(*loop, {.address = redis.address()});
    CHECK(link.ok());
    tier = std::make_unique<RemoteTier>(*loop, *std::move(link), RemoteTier::Options());
  });
  const auto frame = std::make_shared<std::vector<std::byte>>(kFrameBytes, std::byte{7});
  std::vector<std::byte> to(kFrameBytes);
  std::vector<double> put, get;
  for ([[maybe_unused]] auto _ : state) {
    for (int round = 0; round < kRounds; ++round) {
      put.push_back(GbPerSecond(*loop, [&](std::uint64_t number, std::function<void()> done) {
        tier->Put(TestKey(number), {.bytes = *frame, .owner = frame}, [done](const auto& status) {
          CHECK(status.ok());
          done();
        });
      }));
      get.push_back(GbPerSecond(*loop, [&](std::uint64_t number, std::function<void()> done) {
        tier->Get(TestKey(number), RemoteTier::In(to), loop->Now() + std::chrono::minutes(1),
                  [done](const auto& bytes) {
                    CHECK(bytes.ok());
                    done();
                  });
      }));
    }
  }
  loop->Run([&] { tier.reset(); });
  state.counters["put_GBps"] = Median(put);
  state.counters["get_GBps"] = Median(get);
}
BENCHMARK(RemoteTierFrames)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace penstock::bench
