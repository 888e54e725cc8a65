// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_links.h"

#include <variant>

#include "base/check.h"
#include "base/log.h"

namespace penstock::kvstore {

std::uint64_t StoreLink::Expect(OnAnswer on_answer) {
  waiting_[next_] = std::move(on_answer);
  return next_++;
}

StoreLinks::~StoreLinks() = default;

void StoreLinks::Get(const StoreAddress& store, Done done) {
  const Key key = {store.peer.name, store.peer.epoch};
  const auto [it, added] = entries_.try_emplace(key);
  if (it->second.link != nullptr) return done(it->second.link.get());
  it->second.waiting.push_back(std::move(done));
  if (!added) return;
  connect_(store.peer, store.address,
           [this, watch = life_.watch(),
            key](absl::StatusOr<std::unique_ptr<transfer::Channel>> channel) {
             if (!watch.over()) OnConnected(key, std::move(channel));
           });
}

void StoreLinks::OnConnected(const Key& key,
                             absl::StatusOr<std::unique_ptr<transfer::Channel>> channel) {
  Entry& entry = entries_.at(key);
  const std::vector<Done> waiting = std::move(entry.waiting);
  if (!channel.ok()) {
    entries_.erase(key);
    for (const Done& done : waiting) done(channel.status());
    return;
  }
  entry.link = std::make_unique<StoreLink>();
  entry.link->channel_ = *std::move(channel);
  entry.link->channel_->Start(
      {.on_message = [this, key](std::span<const std::byte> bytes) { OnMessage(key, bytes); },
       .on_closed = [this, key](const absl::Status& why) { OnClosed(key, why); }});
  const transfer::Life::Watch watch = life_.watch();
  for (const Done& done : waiting) {
    const auto it = entries_.find(key);  // One of them may have ended it.
    done(it == entries_.end() ? absl::StatusOr<StoreLink*>(absl::UnavailableError("it is gone"))
                              : it->second.link.get());
    if (watch.over()) return;
  }
}

void StoreLinks::OnMessage(const Key& key, std::span<const std::byte> bytes) {
  const absl::StatusOr<StoreMessage> message = Decode(bytes);
  if (!message.ok()) return OnClosed(key, message.status());
  StoreLink& link = *entries_.at(key).link;
  const std::uint64_t id = std::visit([](const auto& m) { return m.id; }, *message);
  const auto it = link.waiting_.find(id);
  if (it == link.waiting_.end()) return;  // Nobody wants to know any more.
  const StoreLink::OnAnswer on_answer = it->second;
  on_answer(message);
}

void StoreLinks::OnClosed(const Key& key, const absl::Status& why) {
  const auto it = entries_.find(key);
  if (it == entries_.end() || it->second.link == nullptr) return;
  LOG_WARNING("store node lost", {{"store", key.first}, {"reason", why.ToString()}});
  const std::unique_ptr<StoreLink> link = std::move(it->second.link);
  entries_.erase(it);
  // Reads end before those who wait hear of the end: no byte is written afterwards.
  link->channel_.reset();
  const transfer::Life::Watch watch = life_.watch();
  const auto waiting = std::move(link->waiting_);
  for (const auto& [id, on_answer] : waiting) {
    on_answer(why);
    if (watch.over()) return;
  }
}

}  // namespace penstock::kvstore
