// SPDX-License-Identifier: Apache-2.0
#include "transfer/ucx_link.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {
namespace {

// Packed and handed to UCX: enough to keep it busy while the next piece is packed.
constexpr std::size_t kWindowBytes = 4 * kUcxDataBytesMax;
// More than a peer that keeps to windows and limits can have waiting here.
constexpr std::size_t kInboxBytesMax =
    2 * Link::kQueueBytesMax + 2 * kRequestsBytesMax + 2 * kWindowBytes;
constexpr std::size_t kTellDeliveredBytes = Link::kQueueBytesMax / 8;
constexpr int kPingsInSilence = 4;

std::size_t Cost(std::size_t bytes) { return bytes + kUcxMessageCost; }

}  // namespace

UcxLink::UcxLink(EpollLoop& loop, UcxWorker& worker, SegmentTable& own,
                 UcxTransport::LinkOptions options)
    : loop_(loop),
      worker_(worker),
      own_(own),
      options_(std::move(options)),
      connection_(worker.Open(*this)),
      landings_([this](ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) {
        events_->OnRead(id, status, crcs);
      }),
      servings_(own) {
  own_.AddWatcher(*this);
}

UcxLink::~UcxLink() {
  own_.RemoveWatcher(*this);
  Disconnect();
}

void UcxLink::Start(LinkEvents& events) {
  CHECK(events_ == nullptr);
  events_ = &events;
  const absl::Status status =
      loop_.Watch(socket_.get(), EPOLLIN, [this](std::uint32_t) { OnSocket(); });
  watched_ = status.ok();
  if (!watched_ && broken_.ok()) broken_ = status;
  heard_ = loop_.Now();
  Tick();
  Schedule();
}

std::string UcxLink::Describe() const { return "ucx " + options_.peer_address; }

absl::Status UcxLink::Send(std::span<const std::byte> message) {
  CHECK(!message.empty());
  CHECK_LE(message.size(), kMessageBytesMax);
  if (connection_ == nullptr) return absl::UnavailableError("the peer is gone");
  if (undelivered_bytes_ + Cost(message.size()) > kQueueBytesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(undelivered_bytes_, " bytes of messages wait, at most ", kQueueBytesMax));
  }
  undelivered_bytes_ += Cost(message.size());
  SendFrame(UcxFrameType::kMessage, 0, message);
  return absl::OkStatus();
}

void UcxLink::Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) {
  if (connection_ == nullptr) {
    landings_.AddFailed(id, absl::UnavailableError("the peer is gone"));
  } else {
    landings_.Add(id, segment, units, checksums);
  }
  Schedule();
}

void UcxLink::Cancel(ReadId id) {
  if (landings_.Cancel(id) && connection_ != nullptr) {
    SendFrame(UcxFrameType::kCancel, static_cast<std::uint64_t>(id), {});
  }
  Schedule();
}

void UcxLink::OnWithdraw(SegmentId segment) { servings_.DropSegment(segment); }

// ---- From inside UCX: nobody is called here.

void UcxLink::OnFrame(const UcxHeader& header, std::span<const std::byte> payload) {
  if (!broken_.ok()) return;
  heard_ = loop_.Now();
  const bool in_turn = events_ != nullptr && inbox_.empty() && header.sequence == next_;
  if (in_turn && header.type == UcxFrameType::kData) {
    // Straight from UCX's buffer into the pages.
    ++next_;
    const absl::Status status = landings_.Land(ReadId{header.id}, payload);
    if (!status.ok()) return OnBroken(status);
    if (landings_.has_ends()) Schedule();
    return;
  }
  UcxBuffer copy = worker_.Take(payload.size());
  if (!payload.empty()) std::memcpy(copy.memory.get(), payload.data(), payload.size());
  (void)Hold(header, std::move(copy), true);
}

bool UcxLink::OnAnnounced(const UcxHeader& header) {
  if (!broken_.ok()) return false;
  heard_ = loop_.Now();
  return Hold(header, {}, false);
}

bool UcxLink::Hold(const UcxHeader& header, UcxBuffer payload, bool whole) {
  inbox_bytes_ += Cost(header.payload_bytes);
  const bool fits = inbox_bytes_ <= kInboxBytesMax && header.sequence >= next_;
  const bool added =
      fits &&
      inbox_
          .try_emplace(header.sequence,
                       Slot{.header = header, .payload = std::move(payload), .whole = whole})
          .second;
  if (!added) {
    OnBroken(absl::InvalidArgumentError(absl::StrCat("frame ", header.sequence,
                                                     " came twice, or with more than ",
                                                     kInboxBytesMax, " bytes before it")));
  } else if (whole) {
    Schedule();
  }
  return added;
}

void UcxLink::OnPayload(std::uint64_t sequence, UcxBuffer payload) {
  heard_ = loop_.Now();
  Slot& slot = inbox_.at(sequence);
  slot.payload = std::move(payload);
  slot.whole = true;
  Schedule();
}

void UcxLink::OnSent(std::size_t bytes) {
  in_flight_bytes_ -= bytes;
  if (!servings_.empty()) Schedule();
}

void UcxLink::OnBroken(const absl::Status& status) {
  if (!broken_.ok()) return;
  broken_ = status;
  Schedule();
}

// ---- Turns of the loop.

void UcxLink::Schedule() {
  if (scheduled_ || events_ == nullptr) return;
  scheduled_ = true;
  loop_.Post(life_.Guard([this] {
    scheduled_ = false;
    Deliver();
  }));
}

void UcxLink::Deliver() {
  if (connection_ == nullptr) {
    if (landings_.TellEnds() && landings_.has_ends()) Schedule();
    return;
  }
  if (!TakeFrames() || !landings_.TellEnds()) return;
  if (connection_ == nullptr) return;
  if (!broken_.ok()) return Close(broken_);
  Ask();
  Serve();
  if (landings_.has_ends()) Schedule();
}

bool UcxLink::TakeFrames() {
  const Life::Watch life = life_.watch();
  while (!inbox_.empty() && inbox_.begin()->first == next_ && inbox_.begin()->second.whole) {
    auto node = inbox_.extract(inbox_.begin());
    Slot& slot = node.mapped();
    ++next_;
    inbox_bytes_ -= Cost(slot.header.payload_bytes);
    const absl::Status status = TakeFrame(slot.header, slot.payload.bytes());
    if (life.over()) return false;
    worker_.Give(std::move(slot.payload));
    if (!status.ok()) {
      Close(status);
      return false;
    }
    if (connection_ == nullptr) return false;
  }
  return true;
}

// May destroy this.
absl::Status UcxLink::TakeFrame(const UcxHeader& header, std::span<const std::byte> payload) {
  switch (header.type) {
    case UcxFrameType::kMessage:
      OnMessageFrame(payload);
      return absl::OkStatus();
    case UcxFrameType::kRead: {
      ASSIGN_OR_RETURN(ReadRequest request, ReadRequest::Decode(payload));
      return servings_.Serve(header.id, std::move(request), payload.size());
    }
    case UcxFrameType::kData:
      return landings_.Land(ReadId{header.id}, payload);
    case UcxFrameType::kEnd:
      return landings_.End(ReadId{header.id}, payload);
    case UcxFrameType::kCancel:
      servings_.Cancel(header.id);
      return absl::OkStatus();
    case UcxFrameType::kDelivered:
      if (header.id > undelivered_bytes_) {
        return absl::InvalidArgumentError(
            absl::StrCat(header.id, " bytes delivered, of ", undelivered_bytes_, " sent"));
      }
      undelivered_bytes_ -= header.id;
      return absl::OkStatus();
    case UcxFrameType::kPing:
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

void UcxLink::OnMessageFrame(std::span<const std::byte> message) {
  delivered_bytes_ += Cost(message.size());
  if (delivered_bytes_ >= kTellDeliveredBytes) {
    SendFrame(UcxFrameType::kDelivered, std::exchange(delivered_bytes_, 0), {});
  }
  events_->OnMessage(message);
}

void UcxLink::Ask() {
  while (const std::optional<Landings::Question> question = landings_.NextQuestion()) {
    SendFrame(UcxFrameType::kRead, static_cast<std::uint64_t>(question->id), question->request);
  }
}

// The window goes for ends as well: a peer that asks and takes no answers asks one read too many.
void UcxLink::Serve() {
  while (in_flight_bytes_ < kWindowBytes && !servings_.empty()) {
    UcxBuffer buffer = worker_.Take(servings_.NextBytes(kUcxDataBytesMax));
    const Servings::Packed packed = servings_.Pack(buffer.bytes());
    if (!packed.status.ok()) {
      SendFrame(UcxFrameType::kEnd, packed.id, EncodeEnd(packed.status));
      continue;
    }
    ++frames_sent_;
    in_flight_bytes_ += Cost(buffer.size);
    worker_.Send(*connection_, {.type = UcxFrameType::kData, .id = packed.id}, std::move(buffer));
  }
}

void UcxLink::SendFrame(UcxFrameType type, std::uint64_t id, std::span<const std::byte> payload) {
  UcxBuffer buffer = worker_.Take(payload.size());
  if (!payload.empty()) std::memcpy(buffer.memory.get(), payload.data(), payload.size());
  ++frames_sent_;
  in_flight_bytes_ += Cost(buffer.size);
  worker_.Send(*connection_, {.type = type, .id = id}, std::move(buffer));
}

// ---- The peer's life.

void UcxLink::OnSocket() {
  std::byte any{};
  const ssize_t got = ::recv(socket_.get(), &any, 1, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  loop_.Unwatch(socket_.get());
  watched_ = false;
  if (got > 0) return OnBroken(absl::InvalidArgumentError("bytes where none belong"));
  (void)worker_.Progress();  // What it sent before comes first.
  OnBroken(absl::UnavailableError("the peer is gone"));
}

void UcxLink::Tick() {
  const MonoTime now = loop_.Now();
  if (now - heard_ > options_.silence_max) {
    return OnBroken(absl::UnavailableError(absl::StrCat(
        "the peer said nothing for ",
        std::chrono::duration_cast<std::chrono::milliseconds>(now - heard_).count(), " ms")));
  }
  if (frames_sent_ == sent_at_tick_) SendFrame(UcxFrameType::kPing, 0, {});
  sent_at_tick_ = frames_sent_;
  tick_ = loop_.At(now + options_.silence_max / kPingsInSilence, [this] {
    tick_.reset();
    Tick();
  });
}

// ---- The end.

void UcxLink::Disconnect() {
  if (tick_) loop_.CancelTimer(*tick_);
  tick_.reset();
  if (watched_) loop_.Unwatch(socket_.get());
  watched_ = false;
  socket_.Reset();
  if (connection_ != nullptr) worker_.Close(std::exchange(connection_, nullptr));
}

// Events may destroy this: nothing of it is touched afterwards.
void UcxLink::Close(const absl::Status& status) {
  const absl::Status why = status;  // Perhaps one of this.
  Disconnect();
  inbox_.clear();
  if (!landings_.FailAll(absl::UnavailableError(why.message()))) return;
  events_->OnClosed(why);
}

}  // namespace penstock::transfer
