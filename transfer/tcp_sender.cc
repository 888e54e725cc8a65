// SPDX-License-Identifier: Apache-2.0
#include "transfer/tcp_sender.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kBytesPerTurn = std::size_t{4} << 20;
constexpr std::size_t kPartsMax = 256;

class Parts {
 public:
  void Add(const std::byte* data, std::size_t bytes) {
    if (bytes > 0) parts_[count_++] = {const_cast<std::byte*>(data), bytes};
  }
  bool full() const { return count_ == parts_.size(); }
  ssize_t Send(int socket) {
    msghdr message{};
    message.msg_iov = parts_.data();
    message.msg_iovlen = count_;
    return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  }

 private:
  std::array<iovec, kPartsMax> parts_;
  std::size_t count_ = 0;
};

void AddData(Parts& parts, UnitCursor cursor, const std::byte* source, std::size_t left) {
  while (left > 0 && !parts.full()) {
    const UnitCursor::Piece piece = cursor.Next(left);
    parts.Add(source + piece.from, piece.bytes);
    cursor.Advance(piece.bytes);
    left -= piece.bytes;
  }
}

}  // namespace

void TcpSender::Enqueue(FrameType type, std::uint64_t id, std::span<const std::byte> payload) {
  const auto header = EncodeHeader(
      {.type = type, .payload_bytes = static_cast<std::uint32_t>(payload.size()), .id = id});
  queued_.insert(queued_.end(), header.begin(), header.end());
  queued_.insert(queued_.end(), payload.begin(), payload.end());
}

void TcpSender::End(std::uint64_t id, const absl::Status& status) {
  Enqueue(FrameType::kEnd, id, EncodeEnd(status));
}

void TcpSender::DropSegment(SegmentId segment) {
  for (Serving& read : serving_) {
    if (read.request.segment() != segment || read.source == nullptr) continue;
    if (frame_left_ > 0 && &read == &serving_.front()) {
      spill_.clear();
      UnitCursor cursor = read.cursor;
      while (spill_.size() < frame_left_) {
        const UnitCursor::Piece piece = cursor.Next(frame_left_ - spill_.size());
        spill_.insert(spill_.end(), read.source + piece.from,
                      read.source + piece.from + piece.bytes);
        cursor.Advance(piece.bytes);
      }
    }
    read.source = nullptr;
    if (read.status.ok()) read.status = absl::NotFoundError("the segment was withdrawn");
  }
}

// Begins the next data frame, after the ends of those reads that get none. False: there is none.
bool TcpSender::BeginFrame() {
  while (!serving_.empty() && !serving_.front().status.ok()) {
    End(serving_.front().id, serving_.front().status);
    serving_.Pop();
  }
  if (serving_.empty()) return false;
  frame_left_ = std::min<std::uint64_t>(serving_.front().left, kDataBytesMax);
  head_ = EncodeHeader({.type = FrameType::kData,
                        .payload_bytes = static_cast<std::uint32_t>(frame_left_),
                        .id = serving_.front().id});
  head_left_ = head_.size();
  return true;
}

absl::StatusOr<TcpSender::Flushed> TcpSender::Flush(int socket) {
  for (std::size_t turn = 0; turn < kBytesPerTurn;) {
    Parts parts;
    bool any = true;
    if (frame_left_ == 0) {
      any = BeginFrame();
      if (sent_ == sending_.size()) {
        sending_.clear();
        sending_.swap(queued_);
        sent_ = 0;
      }
      parts.Add(sending_.data() + sent_, sending_.size() - sent_);
      if (!any && sending_.empty()) return Flushed::kAll;
    } else if (sent_ < sending_.size()) {
      // The frame was begun in the same call as the control frames before it.
      parts.Add(sending_.data() + sent_, sending_.size() - sent_);
    }
    if (any) {
      parts.Add(head_.data() + head_.size() - head_left_, head_left_);
      const Serving& read = serving_.front();
      if (read.source != nullptr) {
        AddData(parts, read.cursor, read.source, frame_left_);
      } else {
        parts.Add(spill_.data() + spill_.size() - frame_left_, frame_left_);
      }
    }
    const ssize_t sent = parts.Send(socket);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Flushed::kMore;
    if (sent < 0) return absl::UnavailableError(absl::StrCat("sending: ", std::strerror(errno)));
    bytes_sent_ += static_cast<std::uint64_t>(sent);
    turn += static_cast<std::size_t>(sent);
    Consume(static_cast<std::size_t>(sent));
  }
  return Flushed::kMore;
}

void TcpSender::Consume(std::size_t bytes) {
  const auto take = [&](std::size_t most) {
    const std::size_t taken = std::min(bytes, most);
    bytes -= taken;
    return taken;
  };
  sent_ += take(sending_.size() - sent_);
  head_left_ -= take(head_left_);
  while (bytes > 0) {
    Serving& read = serving_.front();
    const std::size_t taken = take(read.cursor.Next(bytes).bytes);
    read.cursor.Advance(taken);
    read.left -= taken;
    frame_left_ -= taken;
  }
  if (frame_left_ == 0 && !serving_.empty() && head_left_ == 0) {
    const Serving& read = serving_.front();
    if (read.left == 0) serving_.Pop();
  }
}

}  // namespace penstock::transfer
