// SPDX-License-Identifier: Apache-2.0
// The reads of one side of a link whose peer sends the bytes: which may be asked for, what they
// still expect, where it goes, and their checksums. Bytes are written only into a read that was
// asked for and has not ended, never beyond what it asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "transfer/life.h"
#include "transfer/link.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {

class Landings {
 public:
  // As LinkEvents::OnRead; may destroy the landings. Called by TellEnds and FailAll only.
  using Done = std::function<void(ReadId, const absl::Status&, std::span<const std::uint32_t>)>;
  explicit Landings(Done done) : done_(std::move(done)) {}

  // As Link::Read. Reads of no bytes, and those too large to ask for, end in the next TellEnds.
  void Add(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums);
  // A read that ends in its turn without having begun.
  void AddFailed(ReadId id, absl::Status status);

  struct Question {
    ReadId id{};
    std::vector<std::byte> request;
  };
  // The next to ask for, unless as many as may be are under way.
  std::optional<Question> NextQuestion();

  // Ends a read; its bytes that still come go nowhere. True when it was asked for: tell the peer.
  bool Cancel(ReadId id);
  // The next bytes of a read. INVALID_ARGUMENT when it did not ask for so many.
  absl::Status Land(ReadId id, std::span<const std::byte> bytes);
  // The peer's EncodeEnd. INVALID_ARGUMENT when it is none, or of a read that is not under way.
  absl::Status End(ReadId id, std::span<const std::byte> payload);

  bool has_ends() const { return !ended_.empty(); }
  // Tells of those that have ended. False when a callback destroyed this.
  bool TellEnds();
  // Ends all, and tells. False when a callback destroyed this.
  bool FailAll(const absl::Status& status);

 private:
  struct Landing {
    UnitCursor cursor;
    std::vector<std::uint32_t> crcs;
    bool checksums = true;
    std::uint64_t left = 0;
    std::vector<std::byte> request;  // Empty once it was asked for.
    std::size_t request_bytes = 0;
    bool drain = false;  // It has ended here: what still comes goes nowhere.
  };
  struct Ended {
    ReadId id{};
    absl::Status status;
    std::vector<std::uint32_t> crcs;
  };
  // One that was asked for; null when there is none.
  Landing* Asked(ReadId id);
  // Of a read that was asked for: the peer sends no more of it.
  void Finish(ReadId id, const absl::Status& status);

  const Done done_;
  std::map<ReadId, Landing> reads_;  // Waiting, under way, and those to drain.
  std::deque<ReadId> waiting_;       // Not yet asked for.
  std::size_t asked_ = 0;
  std::size_t asked_bytes_ = 0;
  std::deque<Ended> ended_;
  Life life_;
};

}  // namespace penstock::transfer
