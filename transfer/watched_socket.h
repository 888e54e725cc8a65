// SPDX-License-Identifier: Apache-2.0
// A TCP socket whose peer is watched: what is queued in one turn of the loop goes out together, pings
// keep the peer sure of this side, and a peer that sends nothing for too long, not even those, is gone.
// What comes is its user's to receive and to understand.
//
// On the endpoint's loop, as its user, whose member it is.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "transfer/life.h"
#include "transfer/segment_table.h"
#include "transfer/tcp_sender.h"

namespace penstock::transfer {

class WatchedSocket {
 public:
  class Events {
   public:
    virtual ~Events() = default;
    // Takes some of what has come, without waiting; as recvmsg, errno too.
    virtual ssize_t Receive(int socket) = 0;
    // What Receive took is there, so many bytes. May destroy the socket: `life` tells. Not OK: the
    // peer broke the protocol, and OnBroken comes with that.
    virtual absl::Status Take(std::size_t got, const Life::Watch& life) = 0;
    // The last, when the socket is closed already: as Take has it, or UNAVAILABLE. May destroy it.
    virtual void OnBroken(const absl::Status& status) = 0;
  };

  // `socket`: connected, a non-blocking stream. `loop` and `own` outlive this.
  WatchedSocket(EpollLoop& loop, UniqueFd socket, const SegmentTable& own, Duration silence_max);
  ~WatchedSocket() { Close(); }
  WatchedSocket(const WatchedSocket&) = delete;
  WatchedSocket& operator=(const WatchedSocket&) = delete;

  // Once. No event comes before, or from inside.
  void Start(Events& events);
  bool open() const { return static_cast<bool>(socket_); }

  // A control frame; it goes out with the next turns of the loop, in order. Not once it is closed.
  void Send(FrameType type, std::uint64_t id, std::span<const std::byte> payload);
  // Who queues there by itself says so with Flush.
  TcpSender& sender() { return sender_; }
  const TcpSender& sender() const { return sender_; }
  void Flush();
  // Answers wait beside the messages. INVALID_ARGUMENT: the peer asks, and never reads them.
  absl::Status CheckReads() const;

  // No event comes any more. Calling it again is harmless.
  void Close();

 private:
  void FlushNow();
  void Tick();
  void OnReady(std::uint32_t ready);
  void Break(const absl::Status& status);

  EpollLoop& loop_;
  const Duration silence_max_;
  UniqueFd socket_;
  Events* events_ = nullptr;
  TcpSender sender_;
  std::uint32_t watched_ = 0;
  bool flush_scheduled_ = false;
  MonoTime heard_;
  std::uint64_t sent_at_tick_ = 0;
  std::optional<Loop::TimerId> tick_;
  Life life_;
};

}  // namespace penstock::transfer
