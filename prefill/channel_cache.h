// SPDX-License-Identifier: Apache-2.0
// Channels of a prefill worker to decode workers: one for each life of each, opened when first
// needed. Where one of kind nccl broke, the next to that life is of another kind; nccl is tried again
// beside it after a minute, and after twice as long each time: GPUs that cannot reach each other
// cost a pair few requests, not each of its requests. On the loop's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "prefill/prefill_state.h"
#include "transfer/endpoint.h"
#include "transfer/handoff_sender.h"

namespace penstock::prefill {

class ChannelCache final : public Channels {
 public:
  // `endpoint` ends before the cache does.
  // `without_nccl`: for how long at first.
  ChannelCache(const Loop& loop, transfer::Endpoint& endpoint, transfer::HandoffSender& sender,
               Duration without_nccl = std::chrono::minutes(1))
      : loop_(loop), endpoint_(endpoint), sender_(sender), without_nccl_min_(without_nccl) {}

  void Get(const transfer::Peer& peer, const std::string& address, Done done) override;
  // What is known of the open channel to that life of a worker.
  struct Known {
    transfer::Kind kind{};
    std::optional<transfer::PairFigures> figures;  // Once it was measured.
  };
  std::optional<Known> Find(const transfer::Peer& peer) const;
  // Ignored where there is no such channel any more.
  void Remember(const transfer::Peer& peer, const transfer::PairFigures& figures);
  // The channel is gone, and why.
  void Forget(const transfer::Channel& channel, const absl::Status& why);

 private:
  using Key = std::pair<std::string, std::uint64_t>;  // Name and epoch.
  struct Entry {
    transfer::Channel* channel = nullptr;  // Null while it is being opened.
    // Of another kind than nccl, as `channel` is; to go on with should that break.
    transfer::Channel* fallback = nullptr;
    std::vector<Done> waiting;
    std::optional<transfer::PairFigures> figures;
  };
  void TryNcclAgain(const Key& key, Entry& entry, const std::string& address);
  void OnConnected(const Key& key, absl::StatusOr<std::unique_ptr<transfer::Channel>> channel);

  // Of a life of a worker, whose channel of kind nccl broke.
  struct WithoutNccl {
    std::uint64_t epoch = 0;
    Duration time{};
    MonoTime until{};
  };

  const Loop& loop_;
  transfer::Endpoint& endpoint_;
  transfer::HandoffSender& sender_;
  const Duration without_nccl_min_;
  std::map<Key, Entry> entries_;
  std::map<std::string, WithoutNccl> without_nccl_;  // By name.
};

}  // namespace penstock::prefill
