// SPDX-License-Identifier: Apache-2.0
#include "prefill/channel_cache.h"

#include "base/log.h"
#include "base/status.h"

namespace penstock::prefill {

void ChannelCache::Get(const transfer::Peer& peer, const std::string& address, Done done) {
  const Key key{peer.name, peer.epoch};
  const auto [it, is_new] = entries_.try_emplace(key);
  Entry& entry = it->second;
  if (entry.channel != nullptr) return done(entry.channel);
  entry.waiting.push_back(std::move(done));
  if (!is_new) return;
  const auto found = without_nccl_.find(peer.name);
  const bool without = found != without_nccl_.end() && found->second == peer.epoch;
  endpoint_.Connect(
      peer, address,
      [this, key](absl::StatusOr<std::unique_ptr<transfer::Channel>> channel) {
        OnConnected(key, std::move(channel));
      },
      without ? std::optional(transfer::Kind::kNccl) : std::nullopt);
}

void ChannelCache::OnConnected(const Key& key,
                               absl::StatusOr<std::unique_ptr<transfer::Channel>> channel) {
  const absl::StatusOr<transfer::Channel*> result =
      channel.ok() ? absl::StatusOr<transfer::Channel*>(&sender_.AddPeer(*std::move(channel)))
                   : channel.status();
  Entry& entry = entries_.at(key);
  const std::vector<Done> waiting = std::exchange(entry.waiting, {});
  if (result.ok()) {
    entry.channel = *result;
  } else {
    entries_.erase(key);
  }
  for (const Done& done : waiting) done(result);
}

std::optional<ChannelCache::Known> ChannelCache::Find(const transfer::Peer& peer) const {
  const auto it = entries_.find({peer.name, peer.epoch});
  if (it == entries_.end() || it->second.channel == nullptr) return std::nullopt;
  return Known{it->second.channel->kind(), it->second.figures};
}

void ChannelCache::Remember(const transfer::Peer& peer, const transfer::PairFigures& figures) {
  const auto it = entries_.find({peer.name, peer.epoch});
  if (it != entries_.end()) it->second.figures = figures;
}

void ChannelCache::Forget(const transfer::Channel& channel, const absl::Status& why) {
  if (channel.kind() == transfer::Kind::kNccl) {
    LOG_WARNING("a channel between GPUs broke: the next to this worker goes through the host",
                {{"peer", channel.peer().name}, {"reason", why.ToString()}});
    without_nccl_[channel.peer().name] = channel.peer().epoch;
  }
  std::erase_if(entries_, [&](const auto& e) { return e.second.channel == &channel; });
}

}  // namespace penstock::prefill
