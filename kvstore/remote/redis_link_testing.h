// SPDX-License-Identifier: Apache-2.0
// A link to a server that is a map, under a virtual clock: slow, lost, silent, full or mad as a test
// wants, the same for the same seed.
//
// Of one loop, which outlives it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.h"
#include "base/time.h"
#include "kvstore/remote/redis_link.h"

namespace penstock::kvstore {

class FakeRedisLink final : public RedisLink {
 public:
  // Chances, of each command unless said otherwise.
  struct Faults {
    double refuse = 0;    // Of each attempt to connect: it fails.
    double lose = 0;      // The connection ends instead of a reply; what was asked may be done.
    double silent = 0;    // No reply to it, nor to any later one, until the link has enough.
    double error = 0;     // An error.
    double full = 0;      // Of a SET: "-OOM ...".
    double nonsense = 0;  // A reply of another kind.
    Duration latency_max = std::chrono::milliseconds(1);
  };
  // `values`: what the server holds, by name; it outlives the link.
  using Values = std::map<std::string, std::string, std::less<>>;
  FakeRedisLink(Loop& loop, std::uint64_t seed, Values& values)
      : loop_(loop), random_(seed), values_(values) {}
  // May change at any time.
  Faults& faults() { return faults_; }

  void Start(Events events) override;
  bool is_up() const override { return up_; }
  void Send(Command command) override;
  Stats stats() const override { return stats_; }

 private:
  void Attempt();
  void Lose(const char* why);
  void Serve(Command command);
  // False: it is no reply that the asker can use.
  bool Reply(const RedisReply& reply);
  bool Answer(const std::vector<std::string_view>& arguments, std::string_view value);
  bool Chance(double p) { return std::bernoulli_distribution(p)(random_); }
  Duration Latency();
  template <typename F>
  void After(Duration wait, F task);

  Loop& loop_;
  std::mt19937_64 random_;
  Values& values_;
  Faults faults_;
  Events events_;
  Stats stats_;
  bool up_ = false;
  bool silent_ = false;
  std::uint64_t connection_ = 0;
  MonoTime serve_next_{};  // Commands are served in order.
  std::shared_ptr<int> life_ = std::make_shared<int>();
};

}  // namespace penstock::kvstore
