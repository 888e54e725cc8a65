// SPDX-License-Identifier: Apache-2.0
// Channels to store nodes: one to each life of each, opened when first needed, and the answers that
// come on them, told to who asked.
//
// On one loop. Callbacks are not called from inside, unless said.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "kvstore/node/store_messages.h"
#include "transfer/channel.h"
#include "transfer/life.h"

namespace penstock::kvstore {

struct StoreAddress {
  transfer::Peer peer = {};
  std::string address = {};  // Of its transfer endpoint.
  bool operator==(const StoreAddress&) const = default;
};

class StoreLink {
 public:
  // An answer; or, not OK and the last call, the end of the channel.
  using OnAnswer = std::function<void(const absl::StatusOr<StoreMessage>& answer)>;

  // A new number, under which `on_answer` hears from now on until Forget.
  std::uint64_t Expect(OnAnswer on_answer);
  void Forget(std::uint64_t id) { waiting_.erase(id); }
  // Another hears under a number that Expect gave.
  void Listen(std::uint64_t id, OnAnswer on_answer) { waiting_[id] = std::move(on_answer); }
  // As the channel's; once that is gone, UNAVAILABLE, and nothing to cancel.
  absl::Status Send(const StoreMessage& message) {
    if (channel_ == nullptr) return absl::UnavailableError("the store node is gone");
    return channel_->Send(Encode(message));
  }
  void Cancel(transfer::ReadId read) {
    if (channel_ != nullptr) channel_->Cancel(read);
  }
  // Null once it is gone.
  transfer::Channel* channel() { return channel_.get(); }

 private:
  friend class StoreLinks;
  std::unique_ptr<transfer::Channel> channel_;
  std::uint64_t next_ = 1;
  std::map<std::uint64_t, OnAnswer> waiting_;
};

class StoreLinks {
 public:
  // Endpoint::Connect, or what stands for it.
  using Connected = std::function<void(absl::StatusOr<std::unique_ptr<transfer::Channel>>)>;
  using Connect =
      std::function<void(const transfer::Peer& peer, const std::string& address, Connected done)>;

  explicit StoreLinks(Connect connect) : connect_(std::move(connect)) {}
  ~StoreLinks();

  // The open link, or a new one; `done` may be called from inside. The link is good until its
  // answers end. What Connect says.
  using Done = std::function<void(absl::StatusOr<StoreLink*> link)>;
  void Get(const StoreAddress& store, Done done);

 private:
  using Key = std::pair<std::string, std::uint64_t>;  // Name and epoch.
  struct Entry {
    std::unique_ptr<StoreLink> link;  // Null while it is being opened.
    std::vector<Done> waiting;
  };
  void OnConnected(const Key& key, absl::StatusOr<std::unique_ptr<transfer::Channel>> channel);
  void OnMessage(const Key& key, std::span<const std::byte> bytes);
  void OnClosed(const Key& key, const absl::Status& why);

  const Connect connect_;
  std::map<Key, Entry> entries_;
  transfer::Life life_;
};

}  // namespace penstock::kvstore
