// SPDX-License-Identifier: Apache-2.0
// Frames both ways over a TCP socket whose peer is watched, for links whose bytes go another way. A
// peer that sends nothing for too long, not even pings, is gone.
//
// On the endpoint's loop, as its link. Nothing that comes is believed: what is no frame ends it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "transfer/life.h"
#include "transfer/segment_table.h"
#include "transfer/tcp_frames.h"
#include "transfer/tcp_sender.h"

namespace penstock::transfer {

class FrameSocket {
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

  // `socket`: connected, a non-blocking stream. `loop` and `own` outlive this.
  FrameSocket(EpollLoop& loop, UniqueFd socket, const SegmentTable& own, Duration silence_max);
  ~FrameSocket();
  FrameSocket(const FrameSocket&) = delete;
  FrameSocket& operator=(const FrameSocket&) = delete;

  // Once. No event comes before, or from inside.
  void Start(Events& events);
  bool open() const { return static_cast<bool>(socket_); }
  // In order, with the next turns of the loop. Not once it has ended.
  void Send(FrameType type, std::uint64_t id, std::span<const std::byte> payload);
  std::size_t bytes_waiting() const { return sender_.control_bytes(); }
  // Ends it from inside its user; OnEnd comes from inside this call.
  void End(const absl::Status& status);

 private:
  void ScheduleFlush();
  void Flush();
  void Tick();
  void OnReady(std::uint32_t ready);
  absl::Status Take(const Life::Watch& life);
  void Disconnect();

  EpollLoop& loop_;
  const Duration silence_max_;
  UniqueFd socket_;
  Events* events_ = nullptr;
  TcpSender sender_;
  std::uint32_t watched_ = 0;
  bool flush_scheduled_ = false;
  bool ended_ = false;
  std::vector<std::byte> buffer_;  // Received and not yet taken.
  MonoTime heard_;
  std::uint64_t sent_at_tick_ = 0;
  std::optional<Loop::TimerId> tick_;
  Life life_;
};

}  // namespace penstock::transfer
