// SPDX-License-Identifier: Apache-2.0
// Frames both ways over a watched socket, for links whose bytes go another way.
//
// On the endpoint's loop, as its link. Nothing that comes is believed: what is no frame ends it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "transfer/life.h"
#include "transfer/segment_table.h"
#include "transfer/tcp_frames.h"
#include "transfer/watched_socket.h"

namespace penstock::transfer {

class FrameSocket final : private WatchedSocket::Events {
 public:
  // Both may destroy the socket.
  class Events {
   public:
    virtual ~Events() = default;
    // All but pings and kData. Not OK: the peer broke the protocol; OnEnd comes.
    virtual absl::Status OnFrame(const FrameHeader& header, std::span<const std::byte> payload) = 0;
    // Once, the last: UNAVAILABLE, or INVALID_ARGUMENT when the peer broke the protocol.
    virtual void OnEnd(const absl::Status& status) = 0;
  };

  // As WatchedSocket.
  FrameSocket(EpollLoop& loop, UniqueFd socket, const SegmentTable& own, Duration silence_max)
      : socket_(loop, std::move(socket), own, silence_max) {}

  // Once. No event comes before, or from inside.
  void Start(Events& events);
  bool open() const { return socket_.open(); }
  // In order, with the next turns of the loop. Not once it has ended.
  void Send(FrameType type, std::uint64_t id, std::span<const std::byte> payload) {
    socket_.Send(type, id, payload);
  }
  std::size_t bytes_waiting() const { return socket_.sender().control_bytes(); }
  // Ends it from inside its user; OnEnd comes from inside this call.
  void End(const absl::Status& status);

 private:
  ssize_t Receive(int socket) override;
  absl::Status Take(std::size_t got, const Life::Watch& life) override;
  void OnBroken(const absl::Status& status) override { End(status); }

  WatchedSocket socket_;
  FrameSocket::Events* events_ = nullptr;
  bool ended_ = false;
  std::vector<std::byte> buffer_;  // Received and not yet taken.
};

}  // namespace penstock::transfer
