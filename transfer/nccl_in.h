// SPDX-License-Identifier: Apache-2.0
// The reading side of a link of kind nccl: which reads may be asked for, the slots that the peer
// offers for them, and their way out of slots to the units' places. Those are written by one kernel
// only, which is begun for reads that are still wanted, and whose end is awaited before theirs is
// told.
//
//   offered -> answered -> posted -> unpacking -> gone      skipped instead of answered, and not
//                                                           unpacked, where its read has ended
//
// On the loop, as its link, which carries frames and posts moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "transfer/life.h"
#include "transfer/link.h"
#include "transfer/nccl_copies.h"
#include "transfer/nccl_frames.h"
#include "transfer/nccl_out.h"
#include "transfer/nccl_ring.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {

class NcclIn {
 public:
  // As LinkEvents::OnRead; may destroy this. Called by TellEnds and FailAll only.
  using Done = std::function<void(ReadId, const absl::Status&, std::span<const std::uint32_t>)>;
  NcclIn(const Loop& loop, NcclWire& wire, CudaDevice& device, CopyUnitsFn copy_units, Done done)
      : loop_(loop), wire_(wire), done_(std::move(done)), copies_(device, copy_units) {}

  // As Link::Read. Those of no bytes, and those too large to ask for, end in the next TellEnds.
  void Add(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums);
  void AddFailed(ReadId id, absl::Status status);
  struct Question {
    ReadId id{};
    std::vector<std::byte> request;
  };
  // The next to ask for, unless as many as may be are under way.
  std::optional<Question> NextQuestion();
  // Ends a read. True when the peer is to be told.
  bool Cancel(ReadId id);
  // The peer's EncodeEnd. INVALID_ARGUMENT when it is none, or of a read that is not under way.
  absl::Status OnEnd(ReadId id, std::span<const std::byte> payload);

  // A communicator is open on both sides; or over: what was asked for ends so. Gives those of which
  // the peer is to be told that they are cancelled.
  void Attach(std::shared_ptr<NcclRing> ring);
  std::vector<ReadId> Detach(const absl::Status& status);

  // INVALID_ARGUMENT: nobody asked for that. Between Detach and the peer's kClosed its bytes are
  // lost.
  absl::Status OnPacked(const NcclFrame& packed);
  struct Reserved {
    std::uint64_t number = 0;
    std::byte* data = nullptr;
    std::size_t bytes = 0;
  };
  // The next offer that is wanted and has a slot from now on: to be answered. Skips the others.
  std::optional<Reserved> Answer();
  // One that was answered and is to be posted now. INVALID_ARGUMENT: another is next.
  absl::StatusOr<Reserved> Post(std::uint64_t number);
  // The first that was posted has moved, in that time. INVALID_ARGUMENT: a slot holds more runs than it may;
  // INTERNAL: the GPU failed.
  absl::Status OnMoved(Duration took);
  // Takes what was unpacked. INTERNAL: the GPU failed.
  absl::Status Advance();

  bool wants() const;  // A read that was asked for and has not ended.
  bool copying() const { return copies_.under_way() > 0; }
  bool idle() const { return reads_.empty() && slots_.empty(); }

  bool has_ends() const { return !ended_.empty(); }
  // Tells of those that have ended. False when a callback destroyed this.
  bool TellEnds();
  // Of the one that is being told.
  const ReadParts& parts() const { return parts_; }
  // Ends all, and tells; waits for what is being unpacked. False when a callback destroyed this.
  bool FailAll(const absl::Status& status);

 private:
  struct Reading {
    UnitCursor cursor;  // Not touched once `over`: the units may be gone.
    std::vector<std::uint32_t> crcs;
    bool checksums = true;
    ReadParts parts = {};
    std::uint64_t unoffered = 0;
    std::vector<std::byte> request;  // Empty once it was asked for.
    std::size_t request_bytes = 0;
    bool peer_done = false;  // It offers no more.
    std::size_t slots = 0;   // Offered and not gone.
    std::size_t copies = 0;  // Of these, unpacking.
    bool over = false;       // It has ended, but for being told while copies go on.
    std::optional<absl::Status> end = std::nullopt;
  };
  struct Slot {
    enum class State : std::uint8_t { kOffered, kAnswered, kPosted, kUnpacking, kGone } state{};
    std::uint64_t number = 0;
    ReadId read{};
    std::size_t bytes = 0;
    std::size_t index = 0;  // Of the ring, from kAnswered on.
    NcclRing::Slot memory = {};
    SlotCut cut = {};
    MonoTime offered = {};
    bool orphan = false;  // Its communicator is over.
  };
  struct Ended {
    ReadId id{};
    absl::Status status;
    std::vector<std::uint32_t> crcs;
    ReadParts parts = {};
  };
  using Reads = std::map<ReadId, Reading>;
  Reads::iterator Asked(ReadId id);
  void PeerDone(Reading& read);
  void End(Reads::iterator read, const absl::Status& status);
  void Settle(Reads::iterator read);
  Slot* First(Slot::State state);
  void Free(Slot& slot);

  const Loop& loop_;
  NcclWire& wire_;
  const Done done_;
  std::shared_ptr<NcclRing> ring_;  // Null: there is no communicator. Shared with its owner.
  std::vector<std::size_t> free_;
  std::uint64_t next_number_ = 0;
  Reads reads_;
  std::deque<ReadId> waiting_;  // Not yet asked for.
  std::size_t asked_ = 0;
  std::size_t asked_bytes_ = 0;
  std::deque<Slot> slots_;  // By number, those of an earlier communicator first.
  std::deque<Ended> ended_;
  ReadParts parts_;
  NcclCopies copies_;  // Of slots in state kUnpacking, in their order.
  Life life_;
};

}  // namespace penstock::transfer
