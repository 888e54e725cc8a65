// SPDX-License-Identifier: Apache-2.0
#include "transfer/frame_socket.h"

#include <sys/socket.h>

#include <utility>

#include "base/status.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kReceiveBytes = std::size_t{64} << 10;

}  // namespace

void FrameSocket::Start(Events& events) {
  events_ = &events;
  socket_.Start(*this);
}

ssize_t FrameSocket::Receive(int socket) {
  const std::size_t before = buffer_.size();
  buffer_.resize(before + kReceiveBytes);
  const ssize_t got = ::recv(socket, buffer_.data() + before, kReceiveBytes, MSG_DONTWAIT);
  buffer_.resize(before + static_cast<std::size_t>(got > 0 ? got : 0));
  return got;
}

// All frames that are whole.
absl::Status FrameSocket::Take(std::size_t, const Life::Watch& life) {
  std::size_t at = 0;
  while (socket_.open() && buffer_.size() - at >= kHeaderBytes) {
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
    RETURN_IF_ERROR(socket_.CheckReads());
  }
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(at));
  return absl::OkStatus();
}

void FrameSocket::End(const absl::Status& status) {
  if (std::exchange(ended_, true)) return;
  socket_.Close();
  events_->OnEnd(status);
}

}  // namespace penstock::transfer
