// SPDX-License-Identifier: Apache-2.0
#include "transfer/shm_link.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "transfer/life.h"
#include "transfer/mapped_segment.h"
#include "transfer/puller.h"
#include "transfer/wire.h"

namespace penstock::transfer {
namespace {

// One packet each. Behind the type: a message's bytes, or a segment's number.
enum class Type : std::uint8_t {
  kMessage = 1,
  kMap = 2,        // Let me map this segment.
  kMapped = 3,     // Here it is: its size, and a descriptor.
  kNoSegment = 4,  // There is none, or none any more.
};

constexpr std::size_t kPacketBytesMax = 1 + Link::kMessageBytesMax;
constexpr int kPacketsPerTurn = 64;
// Answers wait beside the messages; who asks and never reads is cut off.
constexpr std::size_t kWaitingBytesMax = 2 * Link::kQueueBytesMax;

class ShmLink final : public Link, private SegmentTable::Watcher {
 public:
  ShmLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own)
      : loop_(loop),
        own_(own),
        socket_(std::move(socket)),
        puller_(loop,
                [this](ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) {
                  events_->OnRead(id, status, crcs);
                }) {
    own_.AddWatcher(*this);
  }
  ~ShmLink() override {
    own_.RemoveWatcher(*this);
    if (events_ != nullptr && socket_) loop_.Unwatch(socket_.get());
  }

  void Start(LinkEvents& events) override {
    CHECK(events_ == nullptr);
    events_ = &events;
    watched_ = EPOLLIN;
    const absl::Status status =
        loop_.Watch(socket_.get(), watched_, [this](std::uint32_t ready) { OnReady(ready); });
    if (status.ok()) return Flush();
    socket_.Reset();
    loop_.Post(life_.Guard([this, status] { Close(status); }));
  }
  Kind kind() const override { return Kind::kShm; }
  std::string Describe() const override {
    std::size_t mapped = 0;
    for (const auto& [id, theirs] : theirs_) mapped += theirs.state == State::kMapped ? 1 : 0;
    return absl::StrCat("shm, ", mapped, mapped == 1 ? " segment mapped" : " segments mapped");
  }

  absl::Status Send(std::span<const std::byte> message) override {
    CHECK(!message.empty());
    CHECK_LE(message.size(), kMessageBytesMax);
    if (!socket_) return absl::UnavailableError("the peer is gone");
    if (waiting_bytes_ + message.size() > kQueueBytesMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat(waiting_bytes_, " bytes of messages wait, at most ", kQueueBytesMax));
    }
    Packet packet;
    WireWriter writer(packet.bytes);
    packet.bytes.reserve(1 + message.size());
    writer.Number(static_cast<std::uint8_t>(Type::kMessage));
    writer.Bytes(message);
    Enqueue(std::move(packet));
    return absl::OkStatus();
  }

  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool) override {
    if (!socket_) return puller_.AddFailed(id, absl::UnavailableError("the peer is gone"));
    const auto [entry, first] = theirs_.try_emplace(segment);
    Theirs& theirs = entry->second;
    if (first) Enqueue(About(Type::kMap, segment));
    switch (theirs.state) {
      case State::kAsked:
        theirs.waiting.push_back({id, units});
        break;
      case State::kMapped:
        puller_.Add(id, segment, theirs.mapped->bytes(), units);
        break;
      case State::kNone:
        puller_.AddFailed(id, NoSegment(segment));
        break;
    }
  }

  void Cancel(ReadId id) override {
    for (auto& [segment, theirs] : theirs_) {
      if (std::erase_if(theirs.waiting, [&](const Waiting& w) { return w.id == id; }) > 0) {
        return puller_.AddFailed(id, absl::CancelledError("read cancelled"));
      }
    }
    puller_.Cancel(id);
  }

  bool maps() const override { return true; }
  MappedMemory Mapped(SegmentId segment) const override {
    const auto it = theirs_.find(segment);
    if (it == theirs_.end() || it->second.state != State::kMapped) return {};
    return {.bytes = it->second.mapped->bytes(), .owner = it->second.mapped};
  }

 private:
  enum class State : std::uint8_t { kAsked, kMapped, kNone };
  struct Waiting {
    ReadId id{};
    std::span<const Unit> units;
  };
  struct Theirs {
    State state = State::kAsked;
    std::shared_ptr<const MappedSegment> mapped;  // With those who were given it by Mapped.
    std::vector<Waiting> waiting;                 // For the answer.
  };
  struct Packet {
    std::vector<std::byte> bytes;
    SegmentId segment{};  // Of kMapped: its descriptor goes with it.
  };

  static absl::Status NoSegment(SegmentId segment) {
    return absl::NotFoundError(
        absl::StrCat("no segment ", static_cast<std::uint32_t>(segment), " that can be mapped"));
  }

  static Packet About(Type type, SegmentId segment) {
    Packet packet;
    WireWriter writer(packet.bytes);
    writer.Number(static_cast<std::uint8_t>(type));
    writer.Number(static_cast<std::uint32_t>(segment));
    return packet;
  }

  // Whoever has it mapped must let go of it.
  void OnWithdraw(SegmentId segment) override {
    if (socket_) Enqueue(About(Type::kNoSegment, segment));
  }

  // ---- Sending.

  void Enqueue(Packet packet) {
    waiting_bytes_ += packet.bytes.size();
    waiting_.push_back(std::move(packet));
    if (events_ != nullptr) Flush();
  }

  void Flush() {
    while (!waiting_.empty()) {
      const Packet& packet = waiting_.front();
      if (!SendPacket(packet)) break;
      waiting_bytes_ -= packet.bytes.size();
      waiting_.pop_front();
    }
    // That the peer is gone shows when receiving: after what it sent before.
    const std::uint32_t want = waiting_.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT;
    if (want == watched_) return;
    watched_ = want;
    loop_.ChangeWatch(socket_.get(), watched_);
  }

  // False when it has to wait. A packet that the peer will never get counts as sent.
  bool SendPacket(const Packet& packet) {
    const SegmentTable::Segment* segment = nullptr;
    if (packet.segment != SegmentId{}) {
      segment = own_.Find(packet.segment);
      if (segment == nullptr) return true;  // Withdrawn: kNoSegment is behind it.
    }
    iovec part{const_cast<std::byte*>(packet.bytes.data()), packet.bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    if (segment != nullptr) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* const header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(header), &segment->shared_fd, sizeof(int));
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent >= 0 ||
           (errno != EAGAIN && errno != ENOBUFS && errno != EINTR && errno != ETOOMANYREFS);
  }

  // ---- Receiving.

  void OnReady(std::uint32_t ready) {
    if ((ready & EPOLLOUT) != 0) Flush();
    const Life::Watch life = life_.watch();
    bool reset = false;
    for (int i = 0; i < kPacketsPerTurn; ++i) {
      std::array<UniqueFd, 1> fd;
      bool whole = true;
      const ssize_t size = Receive(fd[0], whole);
      if (size < 0 && errno == EINTR) continue;
      if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (size < 0 && errno == ECONNRESET && !reset) {
        reset = true;  // Told once, before what the peer sent before it went.
        continue;
      }
      if (size <= 0) return Close(absl::UnavailableError("the peer is gone"));
      if (!whole) return Close(absl::InvalidArgumentError("a packet is too long"));
      const absl::Status status =
          OnPacket(std::span(buffer_).first(static_cast<std::size_t>(size)), std::move(fd[0]));
      if (life.over()) return;
      if (!status.ok()) return Close(status);
      if (!socket_) return;
    }
  }

  ssize_t Receive(UniqueFd& fd, bool& whole) {
    iovec part{buffer_.data(), buffer_.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    message.msg_control = control.data();
    message.msg_controllen = CMSG_LEN(sizeof(int));  // One: the system closes others.
    const ssize_t size = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0) return size;
    for (cmsghdr* h = CMSG_FIRSTHDR(&message); h != nullptr; h = CMSG_NXTHDR(&message, h)) {
      if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
      int number = -1;
      std::memcpy(&number, CMSG_DATA(h), sizeof(number));
      fd.Reset(number);
    }
    whole = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
    return size;
  }

  absl::Status OnPacket(std::span<const std::byte> packet, UniqueFd fd) {
    WireReader reader(packet);
    const auto type = static_cast<Type>(reader.Number<std::uint8_t>());
    if (fd && type != Type::kMapped) {
      return absl::InvalidArgumentError("a descriptor that nobody asked for");
    }
    if (type == Type::kMessage) {
      if (reader.left() == 0) return absl::InvalidArgumentError("an empty message");
      events_->OnMessage(packet.subspan(1));
      return absl::OkStatus();
    }
    const SegmentId segment{reader.Number<std::uint32_t>()};
    switch (type) {
      case Type::kMap:
        if (!reader.ok() || reader.left() > 0) break;
        return Answer(segment);
      case Type::kMapped: {
        const auto bytes = reader.Number<std::uint64_t>();
        if (!reader.ok() || reader.left() > 0) break;
        return OnMapped(segment, bytes, std::move(fd));
      }
      case Type::kNoSegment:
        if (!reader.ok() || reader.left() > 0) break;
        OnNoSegment(segment);
        return absl::OkStatus();
      case Type::kMessage:
        break;
    }
    return absl::InvalidArgumentError(absl::StrCat("a packet of type ", static_cast<int>(type),
                                                   " and ", packet.size(), " bytes"));
  }

  absl::Status Answer(SegmentId segment) {
    if (waiting_bytes_ > kWaitingBytesMax) {
      return absl::InvalidArgumentError("the peer asks, but does not read the answers");
    }
    const SegmentTable::Segment* const found = own_.Find(segment);
    if (found == nullptr || found->shared_fd < 0) {
      Enqueue(About(Type::kNoSegment, segment));
      return absl::OkStatus();
    }
    Packet packet = About(Type::kMapped, segment);
    WireWriter(packet.bytes).Number(std::uint64_t{found->bytes.size()});
    packet.segment = segment;
    Enqueue(std::move(packet));
    return absl::OkStatus();
  }

  absl::Status OnMapped(SegmentId segment, std::uint64_t bytes, UniqueFd fd) {
    const auto found = theirs_.find(segment);
    if (found == theirs_.end() || found->second.state != State::kAsked) {
      return absl::InvalidArgumentError(absl::StrCat(
          "segment ", static_cast<std::uint32_t>(segment), " was sent, but not asked for"));
    }
    Theirs& theirs = found->second;
    absl::StatusOr<MappedSegment> mapped = MappedSegment::Map(fd.get(), bytes);
    if (absl::IsInvalidArgument(mapped.status())) return mapped.status();
    if (!mapped.ok()) {  // Ours to mend, not the peer's fault: the next read asks again.
      for (const Waiting& read : theirs.waiting) {
        puller_.AddFailed(read.id, absl::UnavailableError(mapped.status().message()));
      }
      theirs_.erase(found);
      return absl::OkStatus();
    }
    theirs.mapped = std::make_shared<const MappedSegment>(*std::move(mapped));
    theirs.state = State::kMapped;
    for (const Waiting& read : std::exchange(theirs.waiting, {})) {
      puller_.Add(read.id, segment, theirs.mapped->bytes(), read.units);
    }
    return absl::OkStatus();
  }

  void OnNoSegment(SegmentId segment) {
    const auto found = theirs_.find(segment);
    if (found == theirs_.end()) return;  // Withdrawn before this side ever asked.
    Theirs& theirs = found->second;
    theirs.state = State::kNone;
    puller_.DropSegment(segment);
    theirs.mapped.reset();
    for (const Waiting& read : std::exchange(theirs.waiting, {})) {
      puller_.AddFailed(read.id, NoSegment(segment));
    }
  }

  // Events may destroy this: nothing of it is touched afterwards.
  void Close(const absl::Status& status) {
    if (socket_) {
      loop_.Unwatch(socket_.get());
      socket_.Reset();
    }
    waiting_.clear();
    const absl::Status unavailable = absl::UnavailableError(status.message());
    for (auto& [segment, theirs] : theirs_) {
      for (const Waiting& read : std::exchange(theirs.waiting, {})) {
        puller_.AddFailed(read.id, unavailable);
      }
    }
    if (!puller_.FailAll(unavailable)) return;
    events_->OnClosed(status);
  }

  EpollLoop& loop_;
  SegmentTable& own_;
  UniqueFd socket_;  // Closed with the link.
  LinkEvents* events_ = nullptr;
  std::uint32_t watched_ = 0;
  std::deque<Packet> waiting_;  // To be sent.
  std::size_t waiting_bytes_ = 0;
  std::map<SegmentId, Theirs> theirs_;
  std::array<std::byte, kPacketBytesMax> buffer_;
  Puller puller_;
  Life life_;
};

}  // namespace

std::unique_ptr<Link> MakeShmLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own) {
  return std::make_unique<ShmLink>(loop, std::move(socket), own);
}

}  // namespace penstock::transfer
