// SPDX-License-Identifier: Apache-2.0
#include "transfer/frame_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "transfer/link.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kReceiveBytes = std::size_t{64} << 10;
constexpr std::size_t kBytesPerTurn = std::size_t{4} << 20;
constexpr int kPingsInSilence = 4;
// Answers wait beside the messages; who asks and never reads is cut off.
constexpr std::size_t kWaitingBytesMax = 2 * Link::kQueueBytesMax;

}  // namespace

FrameSocket::FrameSocket(EpollLoop& loop, UniqueFd socket, const SegmentTable& own,
                         Duration silence_max)
    : loop_(loop), silence_max_(silence_max), socket_(std::move(socket)), sender_(own) {
  const int one = 1;  // Ignored by sockets that are not TCP: tests.
  (void)::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

FrameSocket::~FrameSocket() { Disconnect(); }

void FrameSocket::Start(Events& events) {
  CHECK(events_ == nullptr);
  events_ = &events;
  watched_ = EPOLLIN;
  const absl::Status status =
      loop_.Watch(socket_.get(), watched_, [this](std::uint32_t ready) { OnReady(ready); });
  if (!status.ok()) {
    socket_.Reset();
    loop_.Post(life_.Guard([this, status] { End(status); }));
    return;
  }
  heard_ = loop_.Now();
  Tick();
  ScheduleFlush();
}

void FrameSocket::Send(FrameType type, std::uint64_t id, std::span<const std::byte> payload) {
  if (!socket_) return;
  sender_.Enqueue(type, id, payload);
  ScheduleFlush();
}

// What is queued in one turn goes out together.
void FrameSocket::ScheduleFlush() {
  if (flush_scheduled_ || events_ == nullptr || !socket_ || (watched_ & EPOLLOUT) != 0) return;
  flush_scheduled_ = true;
  loop_.Post(life_.Guard([this] {
    flush_scheduled_ = false;
    if (socket_) Flush();
  }));
}

void FrameSocket::Flush() {
  const absl::StatusOr<TcpSender::Flushed> flushed = sender_.Flush(socket_.get());
  // A socket that failed tells so when read, after what the peer sent before.
  const bool more = flushed.ok() && *flushed == TcpSender::Flushed::kMore;
  const std::uint32_t want = more ? EPOLLIN | EPOLLOUT : EPOLLIN;
  if (want == watched_) return;
  watched_ = want;
  loop_.ChangeWatch(socket_.get(), want);
}

void FrameSocket::Tick() {
  const MonoTime now = loop_.Now();
  if (now - heard_ > silence_max_) {
    return End(absl::UnavailableError(absl::StrCat(
        "the peer said nothing for ",
        std::chrono::duration_cast<std::chrono::milliseconds>(now - heard_).count(), " ms")));
  }
  if (sender_.bytes_sent() == sent_at_tick_ && sender_.control_bytes() == 0) {
    sender_.Enqueue(FrameType::kPing, 0, {});
    ScheduleFlush();
  }
  sent_at_tick_ = sender_.bytes_sent();
  tick_ = loop_.At(now + silence_max_ / kPingsInSilence, [this] {
    tick_.reset();
    Tick();
  });
}

void FrameSocket::OnReady(std::uint32_t ready) {
  if ((ready & EPOLLOUT) != 0) Flush();
  const Life::Watch life = life_.watch();
  for (std::size_t turn = 0; turn < kBytesPerTurn;) {
    const std::size_t before = buffer_.size();
    buffer_.resize(before + kReceiveBytes);
    const ssize_t got = ::recv(socket_.get(), buffer_.data() + before, kReceiveBytes, MSG_DONTWAIT);
    buffer_.resize(before + static_cast<std::size_t>(got > 0 ? got : 0));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) {
      return End(absl::UnavailableError(
          got == 0 ? "the peer is gone" : absl::StrCat("receiving: ", std::strerror(errno))));
    }
    heard_ = loop_.Now();
    turn += static_cast<std::size_t>(got);
    const absl::Status status = Take(life);
    if (life.over()) return;
    if (!status.ok()) return End(status);
    if (!socket_) return;
  }
}

// All frames that are whole.
absl::Status FrameSocket::Take(const Life::Watch& life) {
  std::size_t at = 0;
  while (socket_ && buffer_.size() - at >= kHeaderBytes) {
    const auto rest = std::span<const std::byte>(buffer_).subspan(at);
    ASSIGN_OR_RETURN(const FrameHeader header, DecodeHeader(rest.first<kHeaderBytes>()));
    if (header.type == FrameType::kData) {
      return absl::InvalidArgumentError("data on a socket that has only control frames");
    }
    if (rest.size() - kHeaderBytes < header.payload_bytes) break;
    at += kHeaderBytes + header.payload_bytes;
    if (header.type == FrameType::kPing) continue;
    const absl::Status status =
        events_->OnFrame(header, rest.subspan(kHeaderBytes, header.payload_bytes));
    if (life.over()) return absl::OkStatus();
    RETURN_IF_ERROR(status);
    if (sender_.control_bytes() > kWaitingBytesMax) {
      return absl::InvalidArgumentError("the peer asks, but does not read the answers");
    }
  }
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(at));
  return absl::OkStatus();
}

void FrameSocket::Disconnect() {
  if (tick_) loop_.CancelTimer(*tick_);
  tick_.reset();
  if (events_ != nullptr && socket_) loop_.Unwatch(socket_.get());
  socket_.Reset();
}

void FrameSocket::End(const absl::Status& status) {
  if (std::exchange(ended_, true)) return;
  Disconnect();
  events_->OnEnd(status);
}

}  // namespace penstock::transfer
