// SPDX-License-Identifier: Apache-2.0
// The real coordinator over hosts with a prefill worker, a decode worker and a store node each, under a
// virtual clock. All prompts begin with the same system prompt, which one node has at first. Nodes give
// their bytes one fetch after the other.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/virtual_loop.h"
#include "coordinator/coordinator.h"

namespace penstock::sim {
namespace {

namespace co = coordinator;
using Kind = co::WorkerEvent::Kind;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kHosts = 4;
constexpr std::uint32_t kBlockTokens = 32;
constexpr std::uint32_t kShared = 64;  // Blocks of the system prompt.
constexpr std::uint32_t kBlockBytes = 1 << 20;
constexpr double kNodeBytesPerS = 4e9;
constexpr Namespace kSpace{{7}};

class HotPrompt {
 public:
  explicit HotPrompt(bool replicate) {
    co::Coordinator::Options options;
    options.replication.on = replicate;
    options.members.ttl = seconds(1000);
    coordinator_ = *co::Coordinator::Make(options);
    for (int host = 0; host < kHosts; ++host) {
      Join(co::Role::kPrefill, host);
      Join(co::Role::kDecode, host);
      Join(co::Role::kStore, host);
    }
    for (std::uint32_t i = 0; i < kShared; ++i) shared_.push_back(ChainOf(i));
    Have(0, shared_, std::nullopt);
  }

  // Of all that was fetched, the part that came from the node which gave most.
  double Run(int requests) {
    for (int i = 0; i < requests; ++i) {
      loop_.At(loop_.Now() + milliseconds(15) * i, [this, i] { Arrive(i); });
    }
    loop_.RunAll(loop_.Now() + seconds(200));
    EXPECT_EQ(ended_, requests);
    std::uint64_t most = 0, all = 0;
    for (const Node& node : nodes_) {
      most = std::max(most, node.given);
      all += node.given;
    }
    return static_cast<double>(most) / static_cast<double>(all);
  }
  double mean_wait_ms() const { return ToSeconds(waited_) * 1e3 / ended_; }
  std::uint64_t copied_blocks() const { return copied_; }

 private:
  struct Node {
    MonoTime free_at = {};
    std::uint64_t given = 0;  // To workers.
    std::uint64_t events = 0;
  };
  static Chain ChainOf(std::uint32_t number) {
    Chain chain;
    for (int i = 0; i < 4; ++i) {
      chain.bytes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(number >> (8 * i));
    }
    return chain;
  }
  void Join(co::Role role, int host) {
    co::Registration r;
    r.ref = {absl::StrCat(co::ToString(role), host), 1};
    r.role = role;
    r.transfer_address = absl::StrCat("shm:host", host, ":", r.ref.name);
    if (role != co::Role::kStore) {
      r.model = "m";
      r.identity = {{"weights", "w"}};
      r.block_tokens = kBlockTokens;
      r.kv_bytes_per_token = kBlockBytes / kBlockTokens;
      r.blocks_total = 100000;
      r.sequences_max = 256;
      r.groups = {{.copy_spaces = {kSpace}, .window_tokens = 0, .block_bytes = kBlockBytes}};
    }
    // Computing the system prompt takes a second; decode workers leave prompts to others.
    r.prefill_tokens_per_s = role == co::Role::kPrefill ? 2048 : 1;
    r.link_bytes_per_s = kNodeBytesPerS;
    ASSERT_TRUE(coordinator_->Register(r, loop_.Now()).ok());
    co::LoadReport load;
    load.tiers = {{.tier = Tier::kHost, .bytes_max = std::uint64_t{8} << 30}};
    ASSERT_TRUE(coordinator_->Report(r.ref, load, {}, loop_.Now()).ok());
  }
  static std::size_t HostOf(const std::string& name) {
    return static_cast<std::size_t>(name.back() - '0');
  }
  void Have(std::size_t host, const std::vector<Chain>& chains, std::optional<Chain> parent) {
    std::vector<CopyEvent> events;
    for (const Chain& chain : chains) {
      CopyEvent event = {.name = NameOf({kSpace, chain}), .codec = 1, .bytes = kBlockBytes};
      if (parent.has_value()) event.parent = NameOf({kSpace, *parent});
      parent = chain;
      events.push_back(event);
    }
    Node& node = nodes_[host];
    EXPECT_TRUE(
        coordinator_->Copies({absl::StrCat("store", host), 1}, node.events + 1, events, loop_.Now())
            .ok());
    node.events += events.size();
  }
  // When so many bytes of a node have come.
  MonoTime Give(std::size_t host, std::uint64_t bytes) {
    Node& node = nodes_[host];
    const double took = static_cast<double>(bytes) / kNodeBytesPerS;
    node.free_at = std::max(node.free_at, loop_.Now()) + FromSeconds(took);
    return node.free_at;
  }
  void Arrive(int number) {
    co::RouteQuery query;
    query.request = absl::StrCat("r", number);
    query.gateway = "g";
    query.model = "m";
    query.chains = shared_;
    query.chains.push_back(ChainOf(1000 + static_cast<std::uint32_t>(number)));
    query.prompt_tokens = (kShared + 1) * kBlockTokens + 1;
    arrived_[query.request] = loop_.Now();
    ASSERT_TRUE(coordinator_->Route(query, loop_.Now()).status.ok());
    Act();
  }
  void Say(const std::string& worker, Kind kind, const Attempt& id) {
    EXPECT_TRUE(
        coordinator_->On({worker, 1}, {.kind = kind, .id = id, .grant = 1}, loop_.Now()).ok());
  }
  void Act() {
    for (const co::Action& action : coordinator_->TakeActions()) {
      if (const auto* reserve = std::get_if<co::ReserveAction>(&action)) {
        Say(reserve->worker.ref.name, Kind::kGranted, reserve->id);
        Act();
      } else if (const auto* start = std::get_if<co::StartAction>(&action)) {
        Prefill(*start);
      } else if (const auto* copy = std::get_if<co::ReplicateAction>(&action)) {
        copied_ += copy->chains.size();
        const MonoTime there = Give(HostOf(copy->from.ref.name), copy->chains.size() * kBlockBytes);
        loop_.At(there, [this, copy = *copy] {
          Have(HostOf(copy.worker.ref.name), copy.chains, copy.parent);
          Act();
        });
      }
    }
  }
  void Prefill(const co::StartAction& start) {
    const std::string worker = start.worker.ref.name;
    Say(worker, Kind::kAccepted, start.id);
    MonoTime there = loop_.Now();
    std::uint32_t fetched = 0;
    for (const co::FetchSource& source : start.sources) {
      const std::uint32_t blocks = source.end_block - source.first_block;
      const std::size_t host = HostOf(source.store.ref.name);
      nodes_[host].given += std::uint64_t{blocks} * kBlockBytes;
      there = std::max(there, Give(host, std::uint64_t{blocks} * kBlockBytes));
      fetched += blocks;
    }
    const auto compute = std::chrono::duration_cast<Duration>(
        std::chrono::duration<double>((start.prompt_tokens - 1 - fetched * kBlockTokens) / 2048.0));
    loop_.At(there + compute, [this, worker, decode = start.decode.ref.name, id = start.id] {
      Say(worker, Kind::kComputed, id);
      Say(decode, Kind::kAdopted, id);
      Say(decode, Kind::kFinished, id);
      waited_ += loop_.Now() - arrived_.at(id.request_id);
      ++ended_;
      Act();
    });
  }

  VirtualLoop loop_;
  std::unique_ptr<co::Coordinator> coordinator_;
  std::vector<Chain> shared_;
  std::array<Node, kHosts> nodes_ = {};
  std::map<std::string, MonoTime> arrived_;
  Duration waited_{};
  int ended_ = 0;
  std::uint64_t copied_ = 0;
};

TEST(ReplicationSimTest, AHotSystemPromptGetsMoreHolders) {
  HotPrompt without(false);
  HotPrompt with(true);
  const double share_without = without.Run(1000);
  const double share_with = with.Run(1000);
  std::printf(
      "hottest node's share of fetched bytes: %.2f without replication, %.2f with it; mean time to "
      "the prompt's end: %.1f ms, %.1f ms; blocks copied: %llu\n",
      share_without, share_with, without.mean_wait_ms(), with.mean_wait_ms(),
      static_cast<unsigned long long>(with.copied_blocks()));
  EXPECT_EQ(without.copied_blocks(), 0u);
  EXPECT_GT(share_without, 0.99);
  EXPECT_LT(share_with, 0.6);
  EXPECT_LE(with.mean_wait_ms(), without.mean_wait_ms());
  // Two more holders, and no block is sent anywhere twice.
  EXPECT_LE(with.copied_blocks(), 2 * kShared);
  EXPECT_GE(with.copied_blocks(), kShared);
}

}  // namespace
}  // namespace penstock::sim
