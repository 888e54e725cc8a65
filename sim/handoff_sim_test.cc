// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers' own state machines, and the handoff between them, under a virtual
// clock: engines are tables of bytes that a hash of the tokens fills, links lose, repeat, delay and
// change what they carry, workers die. Whatever happens: every request ends once, no wrong byte is
// ever used, no byte is written after its memory was given back, and nothing is left held.
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/virtual_loop.h"
#include "decode/decode_state.h"
#include "gtest/gtest.h"
#include "prefill/prefill_state.h"
#include "transfer/fault_link.h"
#include "transfer/inproc_link.h"

namespace penstock::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using transfer::HandoffReceiver;
using transfer::HandoffSender;
using transfer::PoolGroup;

constexpr std::int32_t kBlockTokens = 4;
constexpr std::byte kPoison{0xDB};

std::uint64_t Mix(std::uint64_t x) {  // splitmix64's finalizer.
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A pool of slabs of all groups; what is free holds poison, and is found changed when it does not.
class Memory {
 public:
  Memory(std::int32_t page_tokens, std::int32_t slabs) {
    for (const std::int32_t window : {0, 10}) {
      const KvGroup shape{.window_tokens = window,
                          .cache_layers = window == 0 ? 2 : 1,
                          .kv_heads = 2,
                          .k_dim = 8,
                          .v_dim = 8,
                          .dtype = KvDtype::kF16};
      Group group;
      group.layout = *PageLayout::Make(shape, kBlockTokens, page_tokens);
      group.bytes.assign(group.layout.slab_bytes() * static_cast<std::size_t>(slabs), kPoison);
      for (std::int32_t i = slabs - 1; i >= 0; --i) {
        group.free.push_back(static_cast<std::uint32_t>(i));
      }
      groups_.push_back(std::move(group));
    }
  }

  std::vector<PoolGroup> Describe(transfer::SegmentTable& segments) {
    std::vector<PoolGroup> described;
    for (Group& g : groups_) {
      described.push_back({.segment = segments.Register({.bytes = g.bytes, .shared_fd = -1}),
                           .slab_bytes = g.layout.slab_bytes(),
                           .side = {.layout = g.layout, .head_begin = 0}});
    }
    return described;
  }
  std::vector<const std::byte*> bases() const {
    std::vector<const std::byte*> all;
    for (const Group& g : groups_) all.push_back(g.bytes.data());
    return all;
  }
  std::int32_t groups() const { return static_cast<std::int32_t>(groups_.size()); }
  const PageLayout& layout(std::int32_t g) const { return At(g).layout; }
  bool Has(std::size_t blocks) const {
    return std::ranges::all_of(groups_, [&](const Group& g) { return g.free.size() >= blocks; });
  }
  std::byte* Address(std::int32_t g, std::uint32_t slab) {
    return At(g).bytes.data() + slab * At(g).layout.slab_bytes();
  }
  std::uint32_t Take(std::int32_t g) {
    const std::uint32_t slab = At(g).free.back();
    At(g).free.pop_back();
    const std::byte* const at = Address(g, slab);
    EXPECT_TRUE(std::all_of(at, at + At(g).layout.slab_bytes(), [](std::byte b) {
      return b == kPoison;
    })) << "written after it was given back";
    return slab;
  }
  void Give(std::int32_t g, std::uint32_t slab) {
    std::fill_n(Address(g, slab), At(g).layout.slab_bytes(), kPoison);
    At(g).free.insert(At(g).free.begin(), slab);  // Rested longest before it is used again.
  }
  bool AllFree() const {
    return std::ranges::all_of(groups_, [](const Group& g) {
      return g.free.size() * g.layout.slab_bytes() == g.bytes.size();
    });
  }

  // The KV of one layer of block `b` of a prompt, element by element.
  template <typename F>
  void ForElements(std::int32_t g, std::int32_t layer, const std::vector<TokenId>& tokens,
                   std::int32_t b, F element) const {
    const PageLayout& layout = At(g).layout;
    std::uint64_t prefix = 7;
    for (std::int32_t t = 0; t < kBlockTokens; ++t) {
      const std::int32_t position = b * kBlockTokens + t;
      if (position >= static_cast<std::int32_t>(tokens.size())) return;
      for (std::int32_t p = t == 0 ? 0 : position; p <= position; ++p) {
        prefix = Mix(prefix + static_cast<std::uint64_t>(tokens[static_cast<std::size_t>(p)]));
      }
      for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
        const std::size_t page = layout.PageOffset(layer, head, t / layout.page_tokens);
        for (std::int32_t d = 0; d < 16; ++d) {
          const std::size_t row = static_cast<std::size_t>(t % layout.page_tokens) * 16;
          const std::size_t at = d < 8
                                     ? row + static_cast<std::size_t>(d) * 2
                                     : layout.k_bytes() + row + static_cast<std::size_t>(d - 8) * 2;
          const auto seed = static_cast<std::uint64_t>(g * 1000 + layer * 100 + head * 20 + d);
          element(page + at, static_cast<std::uint16_t>(Mix(prefix + seed)));
        }
      }
    }
  }
  void Fill(std::int32_t g, std::uint32_t slab, std::int32_t layer,
            const std::vector<TokenId>& tokens, std::int32_t b) {
    ForElements(g, layer, tokens, b, [&](std::size_t at, std::uint16_t value) {
      std::memcpy(Address(g, slab) + at, &value, sizeof(value));
    });
  }
  bool IsRight(std::int32_t g, const std::byte* slab, const std::vector<TokenId>& tokens,
               std::int32_t b) const {
    bool right = true;
    for (std::int32_t layer = 0; layer < At(g).layout.group.cache_layers; ++layer) {
      ForElements(g, layer, tokens, b, [&](std::size_t at, std::uint16_t value) {
        right &= std::memcmp(slab + at, &value, sizeof(value)) == 0;
      });
    }
    return right;
  }
  std::int32_t FirstNeeded(std::int32_t g, std::int32_t tokens) const {
    const std::int32_t window = At(g).layout.group.window_tokens;
    return window == 0 || tokens < window ? 0 : (tokens - window + 1) / kBlockTokens;
  }

 private:
  struct Group {
    PageLayout layout;
    std::vector<std::byte> bytes;
    std::vector<std::uint32_t> free;
  };
  Group& At(std::int32_t g) { return groups_[static_cast<std::size_t>(g)]; }
  const Group& At(std::int32_t g) const { return groups_[static_cast<std::size_t>(g)]; }

  std::vector<Group> groups_;
};

std::int32_t BlocksOf(std::size_t tokens) {
  return (static_cast<std::int32_t>(tokens) + kBlockTokens - 1) / kBlockTokens;
}

// What a test does to a simulated cluster.
struct Faults {
  transfer::FaultPlan link;
  double refuse = 0;  // Of engines.
  double release = 0;
  double kill = 0;  // Of one worker, per request.
};

class FakePrefillEngine final : public prefill::PrefillEngine {
 public:
  FakePrefillEngine(Loop& loop, Memory& memory, std::mt19937& rng, double refuse)
      : loop_(loop), memory_(memory), rng_(rng), refuse_(refuse) {}
  ~FakePrefillEngine() override {
    for (auto& [id, job] : jobs_) loop_.CancelTimer(job.timer);
  }
  void Connect(prefill::PrefillState& state) { state_ = &state; }

  void Submit(prefill::JobId id, prefill::Prompt prompt) override {
    Job& job = jobs_[id];
    job.tokens = std::move(prompt.tokens);
    job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Begin(id); });
  }
  void End(prefill::JobId id) override {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    loop_.CancelTimer(it->second.timer);
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      for (const std::uint32_t slab : it->second.slabs[static_cast<std::size_t>(g)]) {
        memory_.Give(g, slab);
      }
    }
    jobs_.erase(it);
  }

 private:
  struct Job {
    std::vector<TokenId> tokens;
    std::vector<std::vector<std::uint32_t>> slabs{2};
    std::int32_t done = 0;  // Blocks.
    Loop::TimerId timer{};
  };
  Duration Think() { return std::chrono::microseconds(rng_() % 20000); }

  void Begin(prefill::JobId id) {
    Job& job = jobs_.at(id);
    const std::int32_t blocks = BlocksOf(job.tokens.size());
    if (!memory_.Has(static_cast<std::size_t>(blocks)) ||
        std::uniform_real_distribution<>()(rng_) < refuse_) {
      jobs_.erase(id);
      state_->OnRefused(id, absl::ResourceExhaustedError("no room"));
      return;
    }
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      for (std::int32_t b = 0; b < blocks; ++b) {
        job.slabs[static_cast<std::size_t>(g)].push_back(memory_.Take(g));
      }
    }
    job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Chunk(id); });
  }
  // Some blocks, in all layers.
  void Chunk(prefill::JobId id) {
    Job& job = jobs_.at(id);
    const std::int32_t blocks = BlocksOf(job.tokens.size());
    const auto left = static_cast<unsigned>(blocks - job.done);
    const std::int32_t end = job.done + 1 + static_cast<std::int32_t>(rng_() % left);
    std::vector<HandoffSender::Told> all;
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      for (std::int32_t layer = 0; layer < memory_.layout(g).group.cache_layers; ++layer) {
        HandoffSender::Told told{.group = g, .cache_layer = layer, .first_block = 0, .slabs = {}};
        told.first_block = std::max(
            job.done, memory_.FirstNeeded(g, static_cast<std::int32_t>(job.tokens.size())));
        for (std::int32_t b = job.done; b < end; ++b) {
          const std::uint32_t slab =
              job.slabs[static_cast<std::size_t>(g)][static_cast<std::size_t>(b)];
          memory_.Fill(g, slab, layer, job.tokens, b);
          if (b >= told.first_block) told.slabs.push_back(slab);
        }
        if (!told.slabs.empty()) all.push_back(std::move(told));
      }
    }
    job.done = end;
    if (end < blocks) job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Chunk(id); });
    for (const HandoffSender::Told& told : all) state_->OnTold(id, told);
  }

  Loop& loop_;
  Memory& memory_;
  std::mt19937& rng_;
  const double refuse_;
  prefill::PrefillState* state_ = nullptr;
  std::map<prefill::JobId, Job> jobs_;
};

struct FakeWork final : decode::DecodeEngine::Work {
  std::vector<TokenId> moved;  // The prompt but for its last token.
};

class FakeDecodeEngine final : public decode::DecodeEngine {
 public:
  // `prompts` are known by the first chain, or by their size: what Reserve is about.
  FakeDecodeEngine(Loop& loop, Memory& memory, std::mt19937& rng, double refuse)
      : loop_(loop), memory_(memory), rng_(rng), refuse_(refuse) {}
  ~FakeDecodeEngine() override {
    for (auto& [id, job] : jobs_) loop_.CancelTimer(job.timer);
  }
  void Connect(decode::DecodeState& state) { state_ = &state; }
  // The tokens behind chains, which the engine itself never learns.
  void Know(const std::vector<Chain>& chains, const std::vector<TokenId>& moved) {
    if (!chains.empty()) known_[chains.back()] = moved;
  }

  void Reserve(decode::JobId id, std::int32_t tokens, std::vector<Chain> chains,
               std::function<void(absl::StatusOr<decode::Room>)> done) override {
    jobs_[id].timer = loop_.At(loop_.Now() + Think(), [this, id, tokens, chains, done] {
      done(Room(id, tokens, chains));
    });
  }
  void EndReservation(decode::JobId id, std::int32_t blocks_valid) override {
    Job& job = jobs_.at(id);
    ASSERT_FALSE(job.ended);
    job.ended = true;
    if (!job.moved.empty()) ExpectRight(job, blocks_valid);
    Free(id);
  }
  void Run(decode::JobId id, std::unique_ptr<Work> work) override {
    Job& job = jobs_[id];
    const std::vector<TokenId>& moved = static_cast<FakeWork&>(*work).moved;
    job.moved = moved;
    if (!job.slabs[0].empty()) {  // Else it prefills by itself.
      ASSERT_EQ(job.tokens, static_cast<std::int32_t>(moved.size()));
      ExpectRight(job, BlocksOf(moved.size()));
    }
    job.left = 1 + static_cast<int>(rng_() % 5);
    job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Token(id); });
  }
  void Cancel(decode::JobId id) override { Free(id); }

 private:
  struct Job {
    std::int32_t tokens = 0;
    std::vector<TokenId> moved;  // Where known.
    std::vector<std::vector<std::uint32_t>> slabs{2};
    std::vector<std::int32_t> first{0, 0};
    int left = 0;
    bool ended = false;
    Loop::TimerId timer{};
  };
  Duration Think() { return std::chrono::microseconds(rng_() % 20000); }

  absl::StatusOr<decode::Room> Room(decode::JobId id, std::int32_t tokens,
                                    const std::vector<Chain>& chains) {
    Job& job = jobs_.at(id);
    const std::int32_t blocks = BlocksOf(static_cast<std::size_t>(tokens));
    if (!memory_.Has(static_cast<std::size_t>(blocks)) ||
        std::uniform_real_distribution<>()(rng_) < refuse_) {
      jobs_.erase(id);
      return absl::ResourceExhaustedError("no room");
    }
    job.tokens = tokens;
    const auto known = chains.empty() ? known_.end() : known_.find(chains.back());
    std::int32_t reused = 0;
    if (known != known_.end()) {
      job.moved = known->second;
      if (rng_() % 2 == 0) reused = static_cast<std::int32_t>(rng_() % (chains.size() + 1));
    }
    decode::Room room{.reused_tokens = reused * kBlockTokens, .groups = {}};
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      const auto i = static_cast<std::size_t>(g);
      job.first[i] = memory_.FirstNeeded(g, tokens);
      HandoffReceiver::Target::Group group{.first_block = job.first[i], .slabs = {}};
      for (std::int32_t b = job.first[i]; b < blocks; ++b) {
        const std::uint32_t slab = memory_.Take(g);
        job.slabs[i].push_back(slab);
        group.slabs.push_back(memory_.Address(g, slab));
        if (b >= reused) continue;
        for (std::int32_t layer = 0; layer < memory_.layout(g).group.cache_layers; ++layer) {
          memory_.Fill(g, slab, layer, job.moved, b);
        }
      }
      room.groups.push_back(std::move(group));
    }
    return room;
  }
  void ExpectRight(const Job& job, std::int32_t blocks) {
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      const auto i = static_cast<std::size_t>(g);
      for (std::int32_t b = job.first[i]; b < blocks; ++b) {
        const std::uint32_t slab = job.slabs[i][static_cast<std::size_t>(b - job.first[i])];
        EXPECT_TRUE(memory_.IsRight(g, memory_.Address(g, slab), job.moved, b))
            << "group " << g << ", block " << b << " of " << job.tokens << " tokens";
      }
    }
  }
  void Token(decode::JobId id) {
    Job& job = jobs_.at(id);
    const bool last = --job.left == 0;
    if (!last) job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Token(id); });
    state_->OnTokens(id, std::make_shared<int>(job.left));
    if (!last) return;
    Free(id);
    state_->OnEnd(id, absl::OkStatus());
  }
  void Free(decode::JobId id) {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    loop_.CancelTimer(it->second.timer);
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      for (const std::uint32_t slab : it->second.slabs[static_cast<std::size_t>(g)]) {
        memory_.Give(g, slab);
      }
    }
    jobs_.erase(it);
  }

  Loop& loop_;
  Memory& memory_;
  std::mt19937& rng_;
  const double refuse_;
  decode::DecodeState* state_ = nullptr;
  std::map<decode::JobId, Job> jobs_;
  std::map<Chain, std::vector<TokenId>> known_;
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
        receiver(loop, registered.pool(), {}, nullptr),
        state(loop, engine, receiver, {.epoch = own_epoch}) {
    engine.Connect(state);
  }
  const std::string name;
  const std::uint64_t epoch;
  transfer::SegmentTable& segments;
  Memory memory;
  Registered registered;
  FakeDecodeEngine engine;
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
  void Get(const std::string& address, std::uint64_t epoch,
           std::function<void(absl::StatusOr<transfer::Channel*>)> done) override {
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
    decode->engine.Know(order.chains, moved);
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
            (void)prefills_[p]->state.Start(
                attempt,
                {.grant = promise->grant, .decode_address = decode->name, .deadline = deadline});
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
    (void)prefills_[p]->state.Submit(attempt, {.tokens = moved, .salt = "", .priority = 0},
                                     deadline, [](const auto&) {});
  }
  void Decode(int number, const Attempt& attempt, const std::vector<TokenId>& moved,
              DecodeWorker& decode) {
    auto work = std::make_unique<FakeWork>();
    work->moved = moved;
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
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    Cluster cluster(seed, {});
    cluster.Run(30);
    // Pools are small: some find no room.
    EXPECT_GE(cluster.answered(), 20);
  }
}

TEST(HandoffSimTest, UnderFaultsEveryRequestEndsAndNothingIsHeld) {
  int answered = 0;
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
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
