// SPDX-License-Identifier: Apache-2.0
#include "transfer/watched_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "transfer/link.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kBytesPerTurn = std::size_t{4} << 20;
constexpr int kPingsInSilence = 4;
constexpr std::size_t kWaitingBytesMax = 2 * Link::kQueueBytesMax;

}  // namespace

WatchedSocket::WatchedSocket(EpollLoop& loop, UniqueFd socket, const SegmentTable& own,
                             Duration silence_max)
    : loop_(loop), silence_max_(silence_max), socket_(std::move(socket)), sender_(own) {
  const int one = 1;  // Ignored by sockets that are not TCP: tests.
  (void)::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

void WatchedSocket::Start(Events& events) {
  CHECK(events_ == nullptr);
  events_ = &events;
  watched_ = EPOLLIN;
  const absl::Status status =
      loop_.Watch(socket_.get(), watched_, [this](std::uint32_t ready) { OnReady(ready); });
  if (!status.ok()) {
    socket_.Reset();
    loop_.Post(life_.Guard([this, status] { Break(status); }));
    return;
  }
  heard_ = loop_.Now();
  Tick();
  Flush();
}

void WatchedSocket::Send(FrameType type, std::uint64_t id, std::span<const std::byte> payload) {
  if (!socket_) return;
  sender_.Enqueue(type, id, payload);
  Flush();
}

absl::Status WatchedSocket::CheckReads() const {
  if (sender_.control_bytes() <= kWaitingBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError("the peer asks, but does not read the answers");
}

// What is queued in one turn goes out together.
void WatchedSocket::Flush() {
  if (flush_scheduled_ || events_ == nullptr || !socket_ || (watched_ & EPOLLOUT) != 0) return;
  flush_scheduled_ = true;
  loop_.Post(life_.Guard([this] {
    flush_scheduled_ = false;
    if (socket_) FlushNow();
  }));
}

void WatchedSocket::FlushNow() {
  const absl::StatusOr<TcpSender::Flushed> flushed = sender_.Flush(socket_.get());
  // A socket that failed tells so when read, after what the peer sent before.
  const bool more = flushed.ok() && *flushed == TcpSender::Flushed::kMore;
  const std::uint32_t want = more ? EPOLLIN | EPOLLOUT : EPOLLIN;
  if (want == watched_) return;
  watched_ = want;
  loop_.ChangeWatch(socket_.get(), want);
}

void WatchedSocket::Tick() {
  const MonoTime now = loop_.Now();
  if (now - heard_ > silence_max_) {
    return Break(absl::UnavailableError(absl::StrCat(
        "the peer said nothing for ",
        std::chrono::duration_cast<std::chrono::milliseconds>(now - heard_).count(), " ms")));
  }
  if (sender_.bytes_sent() == sent_at_tick_ && sender_.control_bytes() == 0) {
    Send(FrameType::kPing, 0, {});
  }
  sent_at_tick_ = sender_.bytes_sent();
  tick_ = loop_.At(now + silence_max_ / kPingsInSilence, [this] {
    tick_.reset();
    Tick();
  });
}

void WatchedSocket::OnReady(std::uint32_t ready) {
  if ((ready & EPOLLOUT) != 0) FlushNow();
  const Life::Watch life = life_.watch();
  for (std::size_t turn = 0; turn < kBytesPerTurn;) {
    const ssize_t got = events_->Receive(socket_.get());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) {
      return Break(absl::UnavailableError(
          got == 0 ? "the peer is gone" : absl::StrCat("receiving: ", std::strerror(errno))));
    }
    heard_ = loop_.Now();
    turn += static_cast<std::size_t>(got);
    const absl::Status status = events_->Take(static_cast<std::size_t>(got), life);
    if (life.over()) return;
    if (!status.ok()) return Break(status);
    if (!socket_) return;
  }
}

void WatchedSocket::Break(const absl::Status& status) {
  Close();
  events_->OnBroken(status);
}

void WatchedSocket::Close() {
  if (tick_) loop_.CancelTimer(*tick_);
  tick_.reset();
  if (events_ != nullptr && socket_) loop_.Unwatch(socket_.get());
  socket_.Reset();
}

}  // namespace penstock::transfer
