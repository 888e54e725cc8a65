// SPDX-License-Identifier: Apache-2.0
// A link as its users see it: every read has a deadline and expected checksums, every end is told
// once, and what moved is counted.
//
//   channel->Start({.on_message = ..., .on_closed = ...});
//   channel->Read({.segment = s, .units = ..., .crcs = ..., .deadline = now + 2s},
//                 [](const absl::Status& status) { ... });
//
// On the endpoint's loop, as Link. After on_closed a channel only waits to be destroyed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "transfer/life.h"
#include "transfer/link.h"

namespace penstock::transfer {

// A life of an endpoint, as it calls itself.
struct Peer {
  std::string name;
  std::uint64_t epoch = 0;
  bool operator==(const Peer&) const = default;
};

class Channel final : private LinkEvents {
 public:
  // Of the user; called on the loop. Destroying the channel from inside is allowed, there and in
  // every ReadDone.
  struct Events {
    std::function<void(std::span<const std::byte> message)> on_message;
    // Once, the last call: UNAVAILABLE, or INVALID_ARGUMENT when the peer broke the protocol. Every
    // read has ended before.
    std::function<void(const absl::Status& status)> on_closed;
  };
  struct ReadRequest {
    SegmentId segment{};
    std::vector<Unit> units;  // The memory and runs that they name live until the read has ended.
    std::vector<std::uint32_t> crcs;  // Expected, one per unit (CHECKed).
    MonoTime deadline;
    ReadParts* parts = nullptr;  // Set before `done`, where the kind has parts; lives until then.
    Lane lane = {};              // As Link::ReadOn.
    bool verify = true;  // Only benchmarks say no: nothing is compared then, and crcs is ignored.
  };
  // OK: every byte is there and every checksum is right. DATA_LOSS names the unit and both
  // checksums. DEADLINE_EXCEEDED, CANCELLED, UNAVAILABLE, and what LinkEvents::OnRead says. In all
  // cases no byte of the units is written afterwards.
  using ReadDone = std::function<void(const absl::Status& status)>;

  struct Stats {
    std::int64_t reads = 0;  // Ended, in whatever way.
    std::int64_t reads_failed = 0;
    std::int64_t bytes_read = 0;  // Of those that ended well.
    std::int64_t units_corrupt = 0;
    std::int64_t messages_sent = 0;
    std::int64_t messages_received = 0;
  };

  // `loop` outlives the channel.
  Channel(Loop& loop, Peer peer, std::unique_ptr<Link> link);
  // Reads that have not ended never tell; no byte of theirs is written afterwards.
  ~Channel() override;
  // Once, before Send and Read. What the peer sent before waits until then.
  void Start(Events events);

  const Peer& peer() const { return peer_; }
  Kind kind() const { return link_->kind(); }
  // As Link's.
  bool maps() const { return link_->maps(); }
  bool checks_alone() const { return link_->checks_alone(); }
  MappedMemory Mapped(SegmentId segment) const { return link_->Mapped(segment); }
  std::string Describe() const { return link_->Describe(); }
  // By which LinkTurns knows what is read over it, and what is offered to the peer.
  const std::string& link_in() const { return link_in_; }
  const std::string& link_out() const { return link_out_; }
  bool open() const { return open_; }
  const Stats& stats() const { return stats_; }
  std::size_t reads_pending() const { return pending_.size(); }

  // As Link::Send.
  absl::Status Send(std::span<const std::byte> message);
  // `done` is called once, never from inside this call.
  ReadId Read(ReadRequest request, ReadDone done);
  // The read ends as CANCELLED unless it already ended; its `done` tells when.
  void Cancel(ReadId id);

 private:
  struct Pending {
    std::vector<Unit> units;
    std::vector<std::uint32_t> crcs;
    ReadParts* parts = nullptr;
    bool verify = true;
    ReadDone done;
    Loop::TimerId timer{};
    bool late = false;  // The deadline passed; waiting for the link to let go.
  };
  void OnMessage(std::span<const std::byte> message) override;
  void OnRead(ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) override;
  void OnClosed(const absl::Status& status) override;
  absl::Status Compare(const Pending& read, std::span<const std::uint32_t> crcs);

  Loop& loop_;
  const Peer peer_;
  std::string link_in_ = "local";
  std::string link_out_ = "local";
  std::shared_ptr<const Events> events_;  // Shared with the call that is running.
  bool open_ = false;
  std::uint64_t next_read_ = 1;
  std::map<ReadId, Pending> pending_;
  Stats stats_;
  std::unique_ptr<Link> link_;  // After the units that it reads into.
  Life life_;
};

}  // namespace penstock::transfer
