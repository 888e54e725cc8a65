// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_link.h"

#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "transfer/life.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {
namespace {

// How often it is asked whether a slot is packed or unpacked, which takes some 10 us.
constexpr Duration kCopyPoll = std::chrono::microseconds(20);

class NcclLink final : public Link,
                       private FrameSocket::Events,
                       private NcclComms::Events,
                       private NcclWire,
                       private SegmentTable::Watcher {
 public:
  NcclLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own, NcclComms& comms,
           NcclLinkOptions options)
      : loop_(loop),
        own_(own),
        comms_(comms),
        options_(std::move(options)),
        socket_(loop, std::move(socket), own, options_.silence_max),
        out_(*this, own, comms.device(), comms.options().copy_units),
        in_(loop, *this, comms.device(), comms.options().copy_units,
            [this](ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) {
              events_->OnRead(id, status, crcs);
            }) {
    own_.AddWatcher(*this);
  }
  ~NcclLink() override {
    own_.RemoveWatcher(*this);
    if (poll_) loop_.CancelTimer(*poll_);
  }

  // ---- Link.

  void Start(LinkEvents& events) override {
    CHECK(events_ == nullptr);
    events_ = &events;
    socket_.Start(*this);
  }
  Kind kind() const override { return Kind::kNccl; }
  std::string Describe() const override {
    return absl::StrCat("nccl ", options_.peer_address,
                        state_ == State::kOpen ? ", communicator open" : ", no communicator");
  }
  std::string host() const override { return HostOf(options_.peer_address); }
  bool checks_alone() const override { return true; }

  absl::Status Send(std::span<const std::byte> message) override {
    CHECK(!message.empty());
    CHECK_LE(message.size(), kMessageBytesMax);
    if (!socket_.open()) return absl::UnavailableError("the peer is gone");
    if (socket_.bytes_waiting() + message.size() > kQueueBytesMax) {
      return absl::ResourceExhaustedError(absl::StrCat(
          socket_.bytes_waiting(), " bytes of messages wait, at most ", kQueueBytesMax));
    }
    socket_.Send(FrameType::kMessage, 0, message);
    return absl::OkStatus();
  }
  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) override {
    if (socket_.open()) {
      in_.Add(id, segment, units, checksums);
    } else {
      in_.AddFailed(id, absl::UnavailableError("the peer is gone"));
    }
    Work();
  }
  const ReadParts* parts() const override { return &in_.parts(); }
  void Cancel(ReadId id) override {
    if (in_.Cancel(id)) SendFrame(FrameType::kCancel, id, {});
    Work();
  }

 private:
  // Of the communicator, as nccl_frames.h has its life.
  enum class State : std::uint8_t {
    kNone,
    kOpening,  // Begun here; open on no side, or on one.
    kOpen,     // On both.
    kClosing,  // Over here; the peer has not said kClosed.
  };

  // ---- Frames out.

  void SendFrame(FrameType type, ReadId id, std::span<const std::byte> payload) {
    socket_.Send(type, static_cast<std::uint64_t>(id), payload);
  }
  void SendNccl(const NcclFrame& frame) override {
    socket_.Send(FrameType::kNccl, 0, frame.Encode());
  }
  void SendEnd(std::uint64_t read, const absl::Status& status) override {
    SendFrame(FrameType::kEnd, ReadId{read}, EncodeEnd(status));
  }

  // ---- Frames in. May destroy this.

  absl::Status OnFrame(const FrameHeader& header, std::span<const std::byte> payload) override {
    switch (header.type) {
      case FrameType::kMessage:
        events_->OnMessage(payload);
        return absl::OkStatus();
      case FrameType::kRead: {
        ASSIGN_OR_RETURN(ReadRequest request, ReadRequest::Decode(payload));
        RETURN_IF_ERROR(out_.Serve(header.id, std::move(request), payload.size()));
        break;
      }
      case FrameType::kEnd:
        RETURN_IF_ERROR(in_.OnEnd(ReadId{header.id}, payload));
        break;
      case FrameType::kCancel:
        out_.Cancel(header.id);
        break;
      case FrameType::kNccl: {
        ASSIGN_OR_RETURN(const NcclFrame frame, NcclFrame::Decode(payload));
        RETURN_IF_ERROR(OnNcclFrame(frame));
        break;
      }
      case FrameType::kPing:
      case FrameType::kData:
        break;
    }
    Work();
    return absl::OkStatus();
  }

  absl::Status OnNcclFrame(const NcclFrame& frame) {
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

  absl::Status OnCommClosed(const std::string& text, bool stale) {
    const absl::Status why = absl::UnavailableError(absl::StrCat("at the peer: ", text));
    const bool useless = IsUseless();
    if (!stale) Break(why);
    state_ = State::kNone;
    return useless && options_.first ? why : absl::OkStatus();
  }

  absl::Status OnAnswer(const NcclFrame& frame) {
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
  absl::Status CheckOrder(const NcclFrame& frame) {
    if (!options_.first && frame.order == next_order_) {
      ++next_order_;
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat("the peer posts move ", frame.order,
                                                   ", the next is ", next_order_,
                                                   options_.first ? " and not its to post" : ""));
  }
  static absl::Status Untimely(const NcclFrame& frame) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of kind nccl, type ", static_cast<int>(frame.type),
                     ", which does not fit the communicator's state"));
  }

  // ---- The communicator.

  void Open(std::optional<NcclId> id) {
    state_ = State::kOpening;
    opened_here_ = opened_there_ = moved_ = false;
    next_order_ = 0;
    comm_ = comms_.Open(loop_, *this, id);
  }
  void OnId(const NcclId& id) override { SendNccl({.type = NcclFrame::Type::kOpen, .id = id}); }
  void OnOpen(std::shared_ptr<NcclRing> ring) override {
    ring_ = std::move(ring);
    opened_here_ = true;
    SendNccl({.type = NcclFrame::Type::kOpened});
    AttachIfOpen();
    Work();
  }
  void AttachIfOpen() {
    if (!opened_here_ || !opened_there_) return;
    state_ = State::kOpen;
    out_.Attach(ring_);
    in_.Attach(std::move(ring_));
  }
  // It could not be made, or what it was to move first did not move: so would the next one's.
  bool IsUseless() const {
    return state_ == State::kOpening || (state_ == State::kOpen && !moved_ && !moves_.empty());
  }
  void Move(bool send, std::byte* data, std::size_t bytes) {
    moves_.push_back(send);
    comm_->Move(send, data, bytes);
  }
  // May destroy this.
  void OnMoved(Duration took) override {
    CHECK(!moves_.empty());
    moved_ = true;
    const bool sent = moves_.front();
    moves_.pop_front();
    if (sent) {
      out_.OnMoved();
    } else if (const absl::Status status = in_.OnMoved(took); absl::IsInternal(status)) {
      Failed(status);
    } else if (!status.ok()) {
      return socket_.End(status);
    }
    Work();
  }
  void OnYield() override {
    if (state_ != State::kOpen || !out_.idle() || !in_.idle()) return;
    Break(absl::UnavailableError("it was idle, and others wait for one"));
    Work();
  }
  // May destroy this.
  void OnBroken(const absl::Status& status) override {
    const bool useless = IsUseless();
    Break(status);
    if (useless && options_.first) return socket_.End(absl::UnavailableError(status.message()));
    Work();
  }
  void Failed(const absl::Status& status) {
    comms_.SetUnhealthy(status);
    Break(status);
  }

  // It is over here: nothing of it is believed or posted any more, and the comm is being aborted.
  // Tells the peer, and ends what was asked for on both sides.
  void Break(const absl::Status& why) {
    comm_.reset();
    ring_.reset();
    moves_.clear();
    if (state_ != State::kClosing) {
      SendNccl({.type = NcclFrame::Type::kClosed, .text = std::string(ToStd(why.message()))});
    }
    state_ = State::kClosing;
    out_.Detach();
    for (const ReadId id : in_.Detach(absl::UnavailableError(why.message()))) {
      SendFrame(FrameType::kCancel, id, {});
    }
  }

  // ---- What can be done next.

  void Work() {
    if (socket_.open()) {
      while (const auto question = in_.NextQuestion()) {
        SendFrame(FrameType::kRead, question->id, question->request);
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

  void Answer() {
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

  void PollCopies() {
    if (poll_ || (!out_.copying() && !in_.copying())) return;
    poll_ = loop_.At(loop_.Now() + kCopyPoll, [this] {
      poll_.reset();
      Work();
    });
  }

  void OnWithdraw(SegmentId segment) override {
    out_.DropSegment(segment);
    Work();
  }

  // Events may destroy this: nothing of it is touched afterwards.
  void OnEnd(const absl::Status& status) override {
    comm_.reset();
    ring_.reset();
    state_ = State::kNone;
    out_.Detach();
    if (poll_) loop_.CancelTimer(*poll_);
    poll_.reset();
    if (!in_.FailAll(absl::UnavailableError(status.message()))) return;
    events_->OnClosed(status);
  }

  EpollLoop& loop_;
  SegmentTable& own_;
  NcclComms& comms_;
  const NcclLinkOptions options_;
  LinkEvents* events_ = nullptr;
  FrameSocket socket_;
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

}  // namespace

absl::StatusOr<std::unique_ptr<Link>> MakeNcclLink(EpollLoop& loop, UniqueFd socket,
                                                   SegmentTable& own, NcclComms& comms,
                                                   NcclLinkOptions options) {
  if (const absl::Status healthy = comms.health(); !healthy.ok()) {
    return absl::UnavailableError(healthy.message());
  }
  return std::make_unique<NcclLink>(loop, std::move(socket), own, comms, std::move(options));
}

}  // namespace penstock::transfer
