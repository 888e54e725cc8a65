// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers' own state machines, and the handoff between them, under a virtual
// clock: engines are tables of bytes that a hash of the tokens fills, links lose, repeat, delay and
// change what they carry, workers die. Whatever happens: every request ends once, no wrong byte is
// ever used, no byte is written after its memory was given back, and nothing is left held.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/seed_testing.h"
#include "base/status.h"
#include "base/virtual_loop.h"
#include "decode/decode_state.h"
#include "gtest/gtest.h"
#include "prefill/prefill_state.h"
#include "sim/sim_engines.h"
#include "sim/sim_memory.h"
#include "transfer/fault_link.h"
#include "transfer/inproc_link.h"

namespace penstock::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using transfer::HandoffReceiver;
using transfer::HandoffSender;
using transfer::PoolGroup;

// What a test does to a simulated cluster.
struct Faults {
  transfer::FaultPlan link;
  double refuse = 0;  // Of engines.
  double release = 0;
  double kill = 0;  // Of one worker, per request.
};

// Gives a worker's memory back with the worker.
class Registered {
 public:
  Registered(transfer::SegmentTable& table, Memory& memory)
      : table_(table), pool_(memory.Describe(table)) {}
  ~Registered() {
    for (const PoolGroup& group : pool_) table_.Withdraw(group.segment);
  }
  const std::vector<PoolGroup>& pool() const { return pool_; }

 private:
  transfer::SegmentTable& table_;
  const std::vector<PoolGroup> pool_;
};

struct DecodeWorker {
  DecodeWorker(Loop& loop, std::mt19937& rng, transfer::SegmentTable& table, std::string own_name,
               std::uint64_t own_epoch, double refuse)
      : name(std::move(own_name)),
        epoch(own_epoch),
        segments(table),
        memory(std::vector<std::int32_t>{1, 2, 4}[rng() % 3], 60),
        registered(table, memory),
        engine(loop, memory, rng, refuse),
        turns(loop, nullptr),
        receiver(loop, turns, registered.pool(), {}, nullptr),
        state(loop, engine, receiver, {.epoch = own_epoch}) {
    engine.Connect(state);
  }
  const std::string name;
  const std::uint64_t epoch;
  transfer::SegmentTable& segments;
  Memory memory;
  Registered registered;
  FakeDecodeEngine engine;
  transfer::LinkTurns turns;
  HandoffReceiver receiver;
  decode::DecodeState state;
};

struct PrefillWorker final : prefill::Channels {
  using Dial = std::function<std::unique_ptr<transfer::Channel>(PrefillWorker&, const std::string&,
                                                                std::uint64_t)>;
  PrefillWorker(Loop& loop, std::mt19937& rng, transfer::SegmentTable& table, Dial own_dial,
                double refuse)
      : segments(table),
        memory(std::vector<std::int32_t>{1, 2, 4}[rng() % 3], 60),
        dial(std::move(own_dial)),
        registered(table, memory),
        engine(loop, memory, rng, refuse),
        sender(loop, registered.pool(), memory.bases(),
               [this](const transfer::Channel& channel, const absl::Status&) {
                 std::erase_if(channels, [&](const auto& c) { return c.second == &channel; });
               }),
        state(loop, engine, *this, sender, {}) {
    engine.Connect(state);
  }
  void Get(const transfer::Peer& peer, const std::string&, Done done) override {
    const std::string& address = peer.name;
    const std::uint64_t epoch = peer.epoch;
    transfer::Channel*& channel = channels[{address, epoch}];
    if (channel == nullptr) {
      std::unique_ptr<transfer::Channel> dialled = dial(*this, address, epoch);
      if (dialled == nullptr) {
        channels.erase({address, epoch});
        return done(absl::UnavailableError("no such worker, or another life of it"));
      }
      channel = &sender.AddPeer(std::move(dialled));
    }
    done(channel);
  }
  transfer::SegmentTable& segments;
  Memory memory;
  Dial dial;
  Registered registered;
  std::map<std::pair<std::string, std::uint64_t>, transfer::Channel*> channels;
  FakePrefillEngine engine;
  HandoffSender sender;
  prefill::PrefillState state;
};

class Cluster {
 public:
  Cluster(std::uint32_t seed, const Faults& faults) : rng_(seed), faults_(faults) {
    for (std::size_t i = 0; i < 1 + rng_() % 3; ++i) prefills_.push_back(NewPrefill());
    for (std::size_t i = 0; i < 1 + rng_() % 3; ++i) {
      decodes_.push_back(NewDecode(absl::StrCat("decode-", i)));
    }
  }

  void Run(int requests) {
    for (int i = 0; i < requests; ++i) {
      loop_.Advance(std::chrono::microseconds(rng_() % 15000));
      if (Chance(faults_.kill)) Kill();
      StartRequest(i);
    }
    loop_.Advance(seconds(60));
    EXPECT_EQ(ended_.size(), static_cast<std::size_t>(requests));
    for (const auto& prefill : prefills_) {
      EXPECT_EQ(prefill->state.attempts(), 0);
      EXPECT_EQ(prefill->sender.handoffs(), 0);
      EXPECT_TRUE(prefill->memory.AllFree());
    }
    for (const auto& decode : decodes_) {
      EXPECT_EQ(decode->state.attempts(), 0);
      EXPECT_EQ(decode->state.draining(), 0);
      EXPECT_EQ(decode->receiver.handoffs(), 0);
      EXPECT_TRUE(decode->memory.AllFree());
    }
  }
  int answered() const { return answered_; }

 private:
  bool Chance(double p) { return std::uniform_real_distribution<>()(rng_) < p; }
  Duration Soon() { return std::chrono::microseconds(rng_() % 10000); }

  transfer::SegmentTable& NewTable() {
    tables_.push_back(std::make_unique<transfer::SegmentTable>());
    return *tables_.back();
  }
  std::unique_ptr<PrefillWorker> NewPrefill() {
    return std::make_unique<PrefillWorker>(
        loop_, rng_, NewTable(),
        [this](PrefillWorker& from, const std::string& address, std::uint64_t epoch) {
          return Dial(from, address, epoch);
        },
        faults_.refuse);
  }
  std::unique_ptr<DecodeWorker> NewDecode(const std::string& name) {
    return std::make_unique<DecodeWorker>(loop_, rng_, NewTable(), name, ++epochs_, faults_.refuse);
  }
  std::unique_ptr<transfer::Channel> Dial(PrefillWorker& from, const std::string& address,
                                          std::uint64_t epoch) {
    const auto to = std::ranges::find_if(
        decodes_, [&](const auto& d) { return d->name == address && d->epoch == epoch; });
    if (to == decodes_.end()) return nullptr;
    auto [near, far] = transfer::MakeInprocLinks(loop_, from.segments, (*to)->segments);
    const auto hurt = [&](std::unique_ptr<transfer::Link> link) {
      transfer::FaultPlan plan = faults_.link;
      plan.seed = rng_();
      return transfer::MakeFaultLink(loop_, std::move(link), plan);
    };
    (*to)->receiver.AddPeer(std::make_unique<transfer::Channel>(
        loop_, transfer::Peer{.name = "prefill", .epoch = 1}, hurt(std::move(far))));
    return std::make_unique<transfer::Channel>(
        loop_, transfer::Peer{.name = address, .epoch = epoch}, hurt(std::move(near)));
  }
  void Kill() {
    if (rng_() % 2 == 0) {
      std::unique_ptr<PrefillWorker>& victim = prefills_[rng_() % prefills_.size()];
      victim.reset();
      victim = NewPrefill();
    } else {
      std::unique_ptr<DecodeWorker>& victim = decodes_[rng_() % decodes_.size()];
      const std::string name = victim->name;
      // Streams of a worker that dies break: their gateways see that.
      for (const int request : running_on_[victim.get()]) Ended(request, /*answered=*/false);
      running_on_.erase(victim.get());
      victim.reset();
      victim = NewDecode(name);
    }
  }
  void Ended(int request, bool answered) {
    EXPECT_TRUE(ended_.insert(request).second) << "request " << request << " ended twice";
    answered_ += answered ? 1 : 0;
  }

  // The coordinator's and the gateway's part, in short: reserve, start, send tokens to both.
  void StartRequest(int number) {
    const Attempt attempt{.request_id = absl::StrCat("request-", number), .number = 1};
    std::vector<TokenId> moved(1 + rng_() % 40);
    for (TokenId& token : moved) token = static_cast<TokenId>(rng_() % 50);
    const std::size_t p = rng_() % prefills_.size();
    DecodeWorker* const decode = decodes_[rng_() % decodes_.size()].get();
    const MonoTime deadline = loop_.Now() + milliseconds(200 + rng_() % 3000);
    decode::DecodeState::Order order;
    order.tokens = static_cast<std::int32_t>(moved.size());
    order.chains = ChainsOf(moved, "", kBlockTokens);
    order.local = rng_() % 6 == 0;
    order.deadline = deadline;
    const auto full_blocks = static_cast<std::int32_t>(order.chains.size());
    if (!order.local && full_blocks > 0 && rng_() % 2 == 0) {
      const auto end = 1 + static_cast<std::int32_t>(rng_() % static_cast<unsigned>(full_blocks));
      order.sources.push_back(
          {.first_block = static_cast<std::int32_t>(rng_() % static_cast<unsigned>(end)),
           .end_block = end});
    }
    decode->engine.KnowNext(moved);
    const bool local = order.local;
    running_on_[decode].insert(number);
    if (!local && rng_() % 2 == 0) Prompt(p, attempt, moved, deadline);
    decode->state.Reserve(
        attempt, std::move(order),
        [this, number, attempt, moved, p, decode, deadline,
         local](const absl::StatusOr<decode::DecodeState::Promise>& promise) {
          if (!promise.ok()) {
            running_on_[decode].erase(number);
            prefills_[p]->state.Release(attempt);
            return Ended(number, /*answered=*/false);
          }
          if (!local) {
            // The order may be refused (a duplicate prompt, a full table): then it ends by
            // deadline.
            (void)prefills_[p]->state.Start(attempt, {.grant = promise->grant,
                                                      .decode_name = decode->name,
                                                      .decode_address = "",
                                                      .deadline = deadline});
            Prompt(p, attempt, moved, deadline);
          }
          loop_.At(loop_.Now() + Soon(), [this, number, attempt, moved, decode] {
            if (!running_on_.contains(decode) || !running_on_[decode].contains(number)) return;
            Decode(number, attempt, moved, *decode);
          });
        });
    if (Chance(faults_.release)) {
      loop_.At(loop_.Now() + Soon() * 5, [this, number, attempt, p, decode] {
        prefills_[p]->state.Release(attempt);
        if (running_on_.contains(decode) && running_on_[decode].contains(number)) {
          decode->state.Release(attempt, absl::CancelledError("the client left"));
        }
      });
    }
  }
  void Prompt(std::size_t p, const Attempt& attempt, const std::vector<TokenId>& moved,
              MonoTime deadline) {
    // The second time it is refused: once is enough.
    (void)prefills_[p]->state.Submit(attempt, {.tokens = moved, .root = {}, .priority = 0},
                                     deadline, [](const auto&) {});
  }
  void Decode(int number, const Attempt& attempt, const std::vector<TokenId>& moved,
              DecodeWorker& decode) {
    auto work = std::make_unique<FakeWork>();
    work->prompt = moved;
    work->prompt.push_back(1);
    work->max_tokens = 1 + static_cast<std::int32_t>(rng_() % 5);
    const absl::Status taken = decode.state.Decode(
        attempt, std::move(work),
        {.on_tokens = [](const auto&) {},
         .on_end =
             [this, number, at = &decode](const absl::Status& status,
                                          const HandoffReceiver::Outcome&) {
               if (running_on_.contains(at) && running_on_[at].erase(number) != 0) {
                 Ended(number, status.ok());
               }
             }});
    if (!taken.ok()) {  // The reservation ended before.
      EXPECT_EQ(taken.code(), absl::StatusCode::kFailedPrecondition);
      running_on_[&decode].erase(number);
      Ended(number, /*answered=*/false);
    }
  }

  VirtualLoop loop_;
  std::mt19937 rng_;
  const Faults faults_;
  std::uint64_t epochs_ = 100;
  std::vector<std::unique_ptr<transfer::SegmentTable>> tables_;  // Links outlive their workers.
  std::vector<std::unique_ptr<DecodeWorker>> decodes_;
  std::vector<std::unique_ptr<PrefillWorker>> prefills_;
  std::map<DecodeWorker*, std::set<int>> running_on_;  // Requests of living workers.
  std::set<int> ended_;
  int answered_ = 0;
};

TEST(HandoffSimTest, WithoutFaultsEveryRequestIsAnswered) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    const RunningSeed running(seed);
    Cluster cluster(seed, {});
    cluster.Run(30);
    // Pools are small: some find no room.
    EXPECT_GE(cluster.answered(), 20);
  }
}

TEST(HandoffSimTest, UnderFaultsEveryRequestEndsAndNothingIsHeld) {
  int answered = 0;
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 rng(seed);
    const auto some = [&](double most) {
      return rng() % 2 == 0 ? 0 : most * static_cast<double>(rng() % 100) / 100;
    };
    Faults faults;
    faults.link.drop_message = some(0.1);
    faults.link.delay_message = some(0.5);
    faults.link.duplicate_message = some(0.3);
    faults.link.corrupt_message = some(0.03);
    faults.link.delay_read = some(0.5);
    faults.link.corrupt_read = some(0.2);
    faults.link.disconnect = some(0.03);
    faults.refuse = some(0.2);
    faults.release = some(0.3);
    faults.kill = some(0.1);
    Cluster cluster(seed, faults);
    cluster.Run(30);
    answered += cluster.answered();
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(answered, 400 * 5);
}

}  // namespace
}  // namespace penstock::sim
