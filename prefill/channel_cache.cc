// SPDX-License-Identifier: Apache-2.0
#include "prefill/channel_cache.h"

#include "base/log.h"
#include "base/status.h"

namespace penstock::prefill {

void ChannelCache::Get(const transfer::Peer& peer, const std::string& address, Done done) {
  const Key key{peer.name, peer.epoch};
  const auto [it, is_new] = entries_.try_emplace(key);
  Entry& entry = it->second;
  if (entry.channel != nullptr) {
    TryNcclAgain(key, entry, address);
    return done(entry.channel);
  }
  entry.waiting.push_back(std::move(done));
  if (!is_new) return;
  const auto found = without_nccl_.find(peer.name);
  const bool without = found != without_nccl_.end() && found->second.epoch == peer.epoch &&
                       loop_.Now() < found->second.until;
  endpoint_.Connect(
      peer, address,
      [this, key](absl::StatusOr<std::unique_ptr<transfer::Channel>> channel) {
        OnConnected(key, std::move(channel));
      },
      without ? std::optional(transfer::Kind::kNccl) : std::nullopt);
}

void ChannelCache::TryNcclAgain(const Key& key, Entry& entry, const std::string& address) {
  const auto found = without_nccl_.find(key.first);
  if (found == without_nccl_.end() || found->second.epoch != key.second ||
      entry.fallback != nullptr || loop_.Now() < found->second.until) {
    return;
  }
  found->second.until = loop_.Now() + found->second.time;  // One try at a time.
  endpoint_.Connect({key.first, key.second}, address,
                    [this, key](absl::StatusOr<std::unique_ptr<transfer::Channel>> channel) {
                      const auto it = entries_.find(key);
                      if (!channel.ok() || (*channel)->kind() != transfer::Kind::kNccl ||
                          it == entries_.end() || it->second.channel == nullptr) {
                        return;
                      }
                      it->second.fallback = it->second.channel;
                      it->second.channel = &sender_.AddPeer(*std::move(channel));
                      it->second.figures.reset();
                    });
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
    WithoutNccl& without = without_nccl_[channel.peer().name];
    const bool again = without.epoch == channel.peer().epoch;
    without.epoch = channel.peer().epoch;
    without.time = again ? 2 * without.time : without_nccl_min_;
    without.until = loop_.Now() + without.time;
    LOG_INFO("a channel between GPUs is gone; to this life of the worker KV goes through the host",
             {{"peer", channel.peer().name},
              {"seconds", ToSeconds(without.time)},
              {"reason", why.ToString()}});
  }
  const auto it = entries_.find({channel.peer().name, channel.peer().epoch});
  if (it == entries_.end()) return;
  Entry& entry = it->second;
  if (entry.fallback == &channel) entry.fallback = nullptr;
  if (entry.channel != &channel) return;
  entry.channel = std::exchange(entry.fallback, nullptr);
  entry.figures.reset();
  if (entry.channel == nullptr) entries_.erase(it);
}

}  // namespace penstock::prefill
