// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_lane.h"

#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {
namespace {

// How often it is asked whether a slot is packed or unpacked, which takes some 10 us.
constexpr Duration kCopyPoll = std::chrono::microseconds(20);

absl::Status Untimely(const NcclFrame& frame) {
  return absl::InvalidArgumentError(absl::StrCat("a frame of kind nccl, type ",
                                                 static_cast<int>(frame.type),
                                                 ", which does not fit the communicator's state"));
}

}  // namespace

NcclLane::NcclLane(Owner& link, EpollLoop& loop, const SegmentTable& own, ServingBudget& served,
                   NcclComms& comms, Options options)
    : link_(link),
      loop_(loop),
      comms_(comms),
      options_(options),
      out_(*this, own, options.gpu, served, comms.device(), comms.options().copy_units),
      in_(loop, *this, comms.device(), comms.options().copy_units,
          [this](ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) {
            link_.OnRead(id, status, crcs, in_.parts());
          }) {}

NcclLane::~NcclLane() {
  if (poll_) loop_.CancelTimer(*poll_);
}

void NcclLane::Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) {
  if (link_.open()) {
    in_.Add(id, segment, units, checksums);
  } else {
    in_.AddFailed(id, absl::UnavailableError("the peer is gone"));
  }
  Work();
}

void NcclLane::Cancel(ReadId id) {
  if (in_.Cancel(id)) {
    link_.SendFrame(*this, FrameType::kCancel, static_cast<std::uint64_t>(id), {});
  }
  Work();
}

void NcclLane::OnWithdraw(SegmentId segment) {
  out_.DropSegment(segment);
  Work();
}

void NcclLane::Stop() {
  comm_.reset();
  ring_.reset();
  state_ = State::kNone;
  out_.Detach();
  if (poll_) loop_.CancelTimer(*poll_);
  poll_.reset();
}

bool NcclLane::FailAll(const absl::Status& status) { return in_.FailAll(status); }

// ---- Frames in.

absl::Status NcclLane::OnFrame(const FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == FrameType::kRead) {
    ASSIGN_OR_RETURN(ReadRequest request, ReadRequest::Decode(payload));
    RETURN_IF_ERROR(out_.Serve(header.id, std::move(request), payload.size()));
  } else if (header.type == FrameType::kEnd) {
    RETURN_IF_ERROR(in_.OnEnd(ReadId{header.id}, payload));
  } else if (header.type == FrameType::kCancel) {
    out_.Cancel(header.id);
  }
  Work();
  return absl::OkStatus();
}

absl::Status NcclLane::OnNccl(const NcclFrame& frame) {
  RETURN_IF_ERROR(OnNcclFrame(frame));
  Work();
  return absl::OkStatus();
}

absl::Status NcclLane::OnNcclFrame(const NcclFrame& frame) {
  using Type = NcclFrame::Type;
  // What the peer said before it heard that the communicator is over here.
  const bool stale = state_ == State::kClosing;
  switch (frame.type) {
    case Type::kOpen:
      if (options_.first || state_ != State::kNone) return Untimely(frame);
      Open(frame.id);
      return absl::OkStatus();
    case Type::kOpened:
      if (stale) return absl::OkStatus();
      if (state_ != State::kOpening || opened_there_) return Untimely(frame);
      opened_there_ = true;
      AttachIfOpen();
      return absl::OkStatus();
    case Type::kClosed:
      if (state_ == State::kNone && options_.first) return Untimely(frame);
      return OnCommClosed(frame.text, stale);
    case Type::kPacked:
      if (state_ != State::kOpen && !stale) return Untimely(frame);
      return in_.OnPacked(frame);
    case Type::kSkip:
    case Type::kReady:
    case Type::kGo:
      if (stale) return absl::OkStatus();
      if (state_ != State::kOpen) return Untimely(frame);
      return OnAnswer(frame);
  }
  return absl::OkStatus();
}

absl::Status NcclLane::OnCommClosed(const std::string& text, bool stale) {
  const absl::Status why = absl::UnavailableError(absl::StrCat("at the peer: ", text));
  const bool useless = IsUseless();
  if (!stale) Break(why);
  state_ = State::kNone;
  return useless && options_.first ? why : absl::OkStatus();
}

absl::Status NcclLane::OnAnswer(const NcclFrame& frame) {
  if (frame.type == NcclFrame::Type::kSkip) return out_.OnSkip(frame.number);
  if (frame.type == NcclFrame::Type::kGo) {
    RETURN_IF_ERROR(CheckOrder(frame));
    ASSIGN_OR_RETURN(const NcclIn::Reserved slot, in_.Post(frame.number));
    Move(false, slot.data, slot.bytes);
    return absl::OkStatus();
  }
  if (!options_.first) RETURN_IF_ERROR(CheckOrder(frame));
  ASSIGN_OR_RETURN(const NcclOut::Offer offer, out_.OnReady(frame.number));
  if (options_.first) {
    SendNccl({.type = NcclFrame::Type::kGo, .number = frame.number, .order = next_order_++});
  }
  Move(true, offer.data, offer.bytes);
  return absl::OkStatus();
}

// Rank 0 gives the order, rank 1 sees that nothing is missing.
absl::Status NcclLane::CheckOrder(const NcclFrame& frame) {
  if (!options_.first && frame.order == next_order_) {
    ++next_order_;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("the peer posts move ", frame.order,
                                                 ", the next is ", next_order_,
                                                 options_.first ? " and not its to post" : ""));
}

// ---- The communicator.

void NcclLane::Open(std::optional<NcclId> id) {
  state_ = State::kOpening;
  opened_here_ = opened_there_ = moved_ = false;
  next_order_ = 0;
  comm_ = comms_.Open(loop_, *this, id);
}

void NcclLane::OnOpen(std::shared_ptr<NcclRing> ring) {
  ring_ = std::move(ring);
  opened_here_ = true;
  SendNccl({.type = NcclFrame::Type::kOpened});
  AttachIfOpen();
  Work();
}

void NcclLane::AttachIfOpen() {
  if (!opened_here_ || !opened_there_) return;
  state_ = State::kOpen;
  out_.Attach(ring_);
  in_.Attach(std::move(ring_));
}

// It could not be made, or what it was to move first did not move: so would the next one's.
bool NcclLane::IsUseless() const {
  return state_ == State::kOpening || (state_ == State::kOpen && !moved_ && !moves_.empty());
}

void NcclLane::Move(bool send, std::byte* data, std::size_t bytes) {
  moves_.push_back(send);
  comm_->Move(send, data, bytes);
}

// May destroy this.
void NcclLane::OnMoved(Duration took) {
  CHECK(!moves_.empty());
  moved_ = true;
  const bool sent = moves_.front();
  moves_.pop_front();
  if (sent) {
    out_.OnMoved();
  } else if (const absl::Status status = in_.OnMoved(took); absl::IsInternal(status)) {
    Failed(status);
  } else if (!status.ok()) {
    return link_.End(status);
  }
  Work();
}

void NcclLane::OnYield() {
  if (state_ != State::kOpen || !out_.idle() || !in_.idle()) return;
  Break(absl::UnavailableError("it was idle, and others wait for one"));
  Work();
}

// May destroy this.
void NcclLane::OnBroken(const absl::Status& status) {
  const bool useless = IsUseless();
  Break(status);
  if (useless && options_.first) return link_.End(absl::UnavailableError(status.message()));
  Work();
}

void NcclLane::Failed(const absl::Status& status) {
  comms_.SetUnhealthy(status);
  Break(status);
}

// It is over here: nothing of it is believed or posted any more, and the comm is being aborted.
// Tells the peer, and ends what was asked for on both sides.
void NcclLane::Break(const absl::Status& why) {
  comm_.reset();
  ring_.reset();
  moves_.clear();
  if (state_ != State::kClosing) {
    SendNccl({.type = NcclFrame::Type::kClosed, .text = std::string(ToStd(why.message()))});
  }
  state_ = State::kClosing;
  out_.Detach();
  for (const ReadId id : in_.Detach(absl::UnavailableError(why.message()))) {
    link_.SendFrame(*this, FrameType::kCancel, static_cast<std::uint64_t>(id), {});
  }
}

// ---- What can be done next.

void NcclLane::Work() {
  if (link_.open()) {
    while (const auto question = in_.NextQuestion()) {
      link_.SendFrame(*this, FrameType::kRead, static_cast<std::uint64_t>(question->id),
                      question->request);
    }
    absl::Status status = out_.Advance();
    if (status.ok()) status = in_.Advance();
    if (!status.ok()) Failed(status);
    if (state_ == State::kOpen) Answer();
    if (state_ == State::kNone && options_.first && (in_.wants() || out_.wants())) {
      Open(std::nullopt);
    }
    PollCopies();
  }
  if (!in_.has_ends() || tell_scheduled_) return;
  tell_scheduled_ = true;
  loop_.Post(life_.Guard([this] {
    tell_scheduled_ = false;
    if (in_.TellEnds() && in_.has_ends()) Work();
  }));
}

void NcclLane::Answer() {
  while (const std::optional<NcclIn::Reserved> slot = in_.Answer()) {
    NcclFrame ready = {.type = NcclFrame::Type::kReady, .number = slot->number};
    if (options_.first) {
      ready.order = next_order_++;
      CHECK(in_.Post(slot->number).ok());
      Move(false, slot->data, slot->bytes);
    }
    SendNccl(ready);
  }
}

void NcclLane::PollCopies() {
  if (poll_ || (!out_.copying() && !in_.copying())) return;
  poll_ = loop_.At(loop_.Now() + kCopyPoll, [this] {
    poll_.reset();
    Work();
  });
}

}  // namespace penstock::transfer
