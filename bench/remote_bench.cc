// SPDX-License-Identifier: Apache-2.0
// The remote tier with a redis-server of this machine, over its Unix socket, frames of 720 KiB (32
// tokens of SmolLM2), kInFlight at a time:
//   put_GBps  the server said that it has them
//   get_GBps  copied to where they were wanted; as they came, unverified
// A figure is that of the median round.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <future>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/epoll_loop.h"
#include "base/time.h"
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

using Start = std::function<void(std::uint64_t number, std::function<void()> done)>;

double GbPerSecond(EpollLoop& loop, const Start& start) {
  const auto over = std::make_shared<std::promise<void>>();
  const MonoTime begin = SteadyClock().Now();
  std::uint64_t next = 0, ended = 0;
  std::function<void()> more;
  loop.Run([&] {
    more = [&] {
      start(next++, [&] {
        if (++ended == kFrames) return over->set_value();
        if (next < kFrames) more();
      });
    };
    for (int i = 0; i < kInFlight; ++i) more();
  });
  over->get_future().wait();
  return double{kFrameBytes} * kFrames / ToSeconds(SteadyClock().Now() - begin) / 1e9;
}

double Median(std::vector<double> all) {
  std::nth_element(all.begin(), all.begin() + all.size() / 2, all.end());
  return all[all.size() / 2];
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
