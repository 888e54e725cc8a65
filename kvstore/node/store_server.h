// SPDX-License-Identifier: Apache-2.0
// A store node towards its peers: takes the frames that workers offer, and finds copies for those who
// read them. Messages are store_messages.h's, bytes move by reads alone: the node reads what is offered
// out of the worker's segment, a worker what it asked for out of the node's.
//
// A put, from Offer to Taken:  refused (not a frame of that key, MAC wrong, not wanted, no room), or
// read when its turn on the link has come, verified by the checksums of its header, and only then found
// by anybody.
//
// A find, from Find to its end:
//
//   event                                next
//   a copy is in host memory             leased; told once all before it are
//   a copy is not to be had              Missing, once all before it are told; nothing more is looked for
//   Release of some                      their leases end; as many more are looked for
//   Keep of some                         their leases go on, beyond the find; as many more are looked
//                                        for
//   Release of all, peer gone            over
//   deadline                             Missing; leases end with their time
//
// A kept copy, which the peer reads where it is, from Keep to its end: Drop, the end of the peer, or of
// its lease, which Renew puts off; Renew after that is answered with Lost.
//
// Hostile peers: a message that breaks the protocol closes its channel; what one peer may have under
// way is bounded. What all peers keep together is, too: what is told with leave to be kept
// counts as kept until it is released, so that leases which are renewed again and again never take
// more than kept_share of the room.
//
// On one loop, that of the tiers; they outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/spans.h"
#include "base/time.h"
#include "kvstore/codecs/frame.h"
#include "kvstore/node/frame_put.h"
#include "kvstore/node/store_messages.h"
#include "kvstore/node/tier_set.h"
#include "transfer/channel.h"
#include "transfer/life.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

class StoreServer {
 public:
  struct Options {
    std::vector<std::byte> secret = {};  // The cluster's; empty: frames need no MAC.
    std::size_t find_ahead = 64;         // Copies told and not yet released, of one find.
    std::size_t finds_max = 256;         // Of one peer.
    std::size_t offers_max = 256;        // Of one peer, not yet read.
    std::size_t kept_max = 32768;        // Copies, of one peer.
    double kept_share = 0.25;            // Of the host tier's room, of all peers together.
    Duration read_within = std::chrono::seconds(10);  // Of an offer: to its turn, and then.
    Duration find_within_max = std::chrono::seconds(60);
  };
  struct Stats {
    std::uint64_t puts = 0;
    std::uint64_t puts_refused = 0;
    std::uint64_t bytes_put = 0;
    std::uint64_t finds = 0;
    std::uint64_t copies_told = 0;
    std::uint64_t bytes_told = 0;
    std::uint64_t hostile = 0;  // Channels closed for what was said on them, and frames of no good.
  };

  // `segment` is the host tier's memory at our endpoint. `turns` outlives it, too.
  StoreServer(Loop& loop, TierSet& tiers, transfer::LinkTurns& turns, transfer::SegmentId segment,
              Options options);
  ~StoreServer();

  // Its channel is not started yet; it goes when the peer does, or breaks the protocol.
  void AddPeer(std::unique_ptr<transfer::Channel> channel);

  const Stats& stats() const { return stats_; }
  std::size_t peers() const { return peers_.size(); }
  std::size_t finds() const;
  std::size_t offers() const;
  std::size_t kept() const;                                 // Copies that peers keep mapped.
  std::uint64_t kept_bytes() const { return kept_bytes_; }  // Of those, and of what may be kept.

 private:
  struct Peer;
  struct Find;
  struct Told;  // A copy, leased.

  void OnMessage(Peer& peer, std::span<const std::byte> bytes);
  void On(Peer& peer, const AskMessage& message);
  void On(Peer& peer, OfferMessage message);
  void On(Peer& peer, FindMessage message);
  void On(Peer& peer, const ReleaseMessage& message);
  void On(Peer& peer, const RenewMessage& message);
  void On(Peer& peer, const KeepMessage& message);
  void On(Peer& peer, const DropMessage& message);
  // Not a node's to hear.
  template <typename Message>
  void On(Peer& peer, const Message&) {
    Close(peer, absl::InvalidArgumentError("a message that is for peers, not for nodes"));
  }
  void Read(Peer& peer, std::uint64_t id);
  void EndPut(Peer& peer, std::uint64_t id, const absl::Status& status);
  void Look(Peer& peer, Find& find);
  void OnGot(Peer& peer, Find& find, std::size_t index, const absl::StatusOr<TierSet::Got>& got);
  void TellReady(Peer& peer, Find& find);
  bool MayKeep(Peer& peer, std::uint64_t bytes);
  void EndTold(Peer& peer, const Told& told);
  void EndFind(Peer& peer, std::uint64_t id);
  void EndPeer(Peer& peer);
  void Send(Peer& peer, const StoreMessage& message);
  void Close(Peer& peer, const absl::Status& why);

  Loop& loop_;
  TierSet& tiers_;
  transfer::LinkTurns& turns_;
  const transfer::SegmentId segment_;
  const Options options_;
  std::optional<Secret> secret_;
  Stats stats_;
  std::uint64_t kept_bytes_ = 0;
  std::map<const transfer::Channel*, std::unique_ptr<Peer>> peers_;
  transfer::Life life_;
};

}  // namespace penstock::kvstore
