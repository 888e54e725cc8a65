// SPDX-License-Identifier: Apache-2.0
// One lane of a link of kind nccl: one GPU of each side, which have a communicator while they move
// something, and both ends' part in every read between them. The communicator is made with the
// first read, and again with the next read after it was lost: then the reads under way end as
// UNAVAILABLE, and the lane goes on. Where one cannot be made, or moves nothing, rank 0 ends the
// link.
//
// Owned by its link, on whose loop it lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "transfer/life.h"
#include "transfer/link.h"
#include "transfer/nccl_comms.h"
#include "transfer/nccl_frames.h"
#include "transfer/nccl_in.h"
#include "transfer/nccl_out.h"
#include "transfer/segment_table.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {

class NcclLane final : private NcclComms::Events, private NcclWire {
 public:
  // The link. Frames come without the lane's number, and go so.
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual bool open() const = 0;
    virtual void SendFrame(const NcclLane& lane, FrameType type, std::uint64_t id,
                           std::span<const std::byte> payload) = 0;
    virtual void SendNccl(const NcclLane& lane, NcclFrame frame) = 0;
    // Both may destroy link and lane.
    virtual void End(const absl::Status& status) = 0;
    virtual void OnRead(ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs,
                        const ReadParts& parts) = 0;
  };
  struct Options {
    std::uint16_t number = 0;
    std::size_t gpu = 0;  // Which of the own ones, whose `comms` are given.
    bool first = false;   // Rank 0.
  };

  // All of these outlive it. `served`: by all lanes of the link.
  NcclLane(Owner& link, EpollLoop& loop, const SegmentTable& own, ServingBudget& served,
           NcclComms& comms, Options options);
  ~NcclLane() override;

  std::uint16_t number() const { return options_.number; }
  bool comm_open() const { return state_ == State::kOpen; }

  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums);
  // Unknown ones are ignored.
  void Cancel(ReadId id);
  // kRead, kEnd or kCancel; and what a kNccl says. May destroy it.
  absl::Status OnFrame(const FrameHeader& header, std::span<const std::byte> payload);
  absl::Status OnNccl(const NcclFrame& frame);
  void OnWithdraw(SegmentId segment);
  // The link is over: nothing more goes out, and no communicator is left.
  void Stop();
  // Then: ends all reads, and tells. False when a callback destroyed it.
  bool FailAll(const absl::Status& status);
  bool has_ends() const { return in_.has_ends(); }

 private:
  // Of the communicator, as nccl_frames.h has its life.
  enum class State : std::uint8_t {
    kNone,
    kOpening,  // Begun here; open on no side, or on one.
    kOpen,     // On both.
    kClosing,  // Over here; the peer has not said kClosed.
  };

  void SendNccl(const NcclFrame& frame) override { link_.SendNccl(*this, frame); }
  void SendEnd(std::uint64_t read, const absl::Status& status) override {
    link_.SendFrame(*this, FrameType::kEnd, read, EncodeEnd(status));
  }

  absl::Status OnNcclFrame(const NcclFrame& frame);
  absl::Status OnCommClosed(const std::string& text, bool stale);
  absl::Status OnAnswer(const NcclFrame& frame);
  absl::Status CheckOrder(const NcclFrame& frame);

  void Open(std::optional<NcclId> id);
  void OnId(const NcclId& id) override { SendNccl({.type = NcclFrame::Type::kOpen, .id = id}); }
  void OnOpen(std::shared_ptr<NcclRing> ring) override;
  void AttachIfOpen();
  bool IsUseless() const;
  void Move(bool send, std::byte* data, std::size_t bytes);
  void OnMoved(Duration took) override;
  void OnYield() override;
  void OnBroken(const absl::Status& status) override;
  void Failed(const absl::Status& status);
  void Break(const absl::Status& why);

  void Work();
  void Answer();
  void PollCopies();

  Owner& link_;
  EpollLoop& loop_;
  NcclComms& comms_;
  const Options options_;
  State state_ = State::kNone;
  bool opened_here_ = false, opened_there_ = false;
  bool moved_ = false;  // Something, over this communicator.
  std::uint64_t next_order_ = 0;
  std::shared_ptr<NcclRing> ring_;  // Open here, and not there. Shared with the communicator.
  std::deque<bool> moves_;          // Posted and not yet moved: whether it sends.
  std::optional<Loop::TimerId> poll_;
  bool tell_scheduled_ = false;
  NcclOut out_;
  NcclIn in_;
  std::unique_ptr<NcclComms::Comm> comm_;  // Null in states kNone and kClosing.
  Life life_;
};

}  // namespace penstock::transfer
