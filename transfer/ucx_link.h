// SPDX-License-Identifier: Apache-2.0
// A link over a connection of a UcxWorker. Frames are taken in the order in which they were sent,
// whatever way each went; the user is called from tasks of the loop, never from inside UCX.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/epoll_loop.h"
#include "base/unique_fd.h"
#include "transfer/landings.h"
#include "transfer/life.h"
#include "transfer/link.h"
#include "transfer/segment_table.h"
#include "transfer/servings.h"
#include "transfer/ucx_transport.h"
#include "transfer/ucx_worker.h"

namespace penstock::transfer {

class UcxLink final : public Link, private UcxWorker::Receiver, private SegmentTable::Watcher {
 public:
  // All outlive the link.
  UcxLink(EpollLoop& loop, UcxWorker& worker, SegmentTable& own, UcxTransport::LinkOptions options);
  ~UcxLink() override;

  // What the peer puts into its frames for this link.
  std::uint64_t number() const { return UcxWorker::number(*connection_); }
  // As UcxWorker::Connect; once, before Start.
  absl::Status Connect(std::span<const std::byte> address, std::uint64_t peer_link) {
    return worker_.Connect(*connection_, address, peer_link);
  }
  // The socket where both met: its end is the peer's. Before Start.
  void Keep(UniqueFd socket) { socket_ = std::move(socket); }

  void Start(LinkEvents& events) override;
  Kind kind() const override { return Kind::kUcx; }
  std::string Describe() const override;
  std::string host() const override { return HostOf(options_.peer_address); }
  absl::Status Send(std::span<const std::byte> message) override;
  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) override;
  void Cancel(ReadId id) override;

 private:
  // A frame that waits for its turn, or for its payload.
  struct Slot {
    UcxHeader header;
    UcxBuffer payload;
    bool whole = true;
  };

  void OnFrame(const UcxHeader& header, std::span<const std::byte> payload) override;
  bool OnAnnounced(const UcxHeader& header) override;
  void OnPayload(std::uint64_t sequence, UcxBuffer payload) override;
  void OnSent(std::size_t bytes) override;
  void OnBroken(const absl::Status& status) override;
  void OnWithdraw(SegmentId segment) override;

  void SendFrame(UcxFrameType type, std::uint64_t id, std::span<const std::byte> payload);
  bool Hold(const UcxHeader& header, UcxBuffer payload, bool whole);
  void Schedule();
  void Deliver();
  // False when it ended, or this is gone.
  bool TakeFrames();
  absl::Status TakeFrame(const UcxHeader& header, std::span<const std::byte> payload);
  void OnMessageFrame(std::span<const std::byte> message);
  void Ask();
  void Serve();
  void OnSocket();
  void Tick();
  void Disconnect();
  void Close(const absl::Status& status);

  EpollLoop& loop_;
  UcxWorker& worker_;
  SegmentTable& own_;
  const UcxTransport::LinkOptions options_;
  UcxWorker::Connection* connection_;  // Null once closed.
  UniqueFd socket_;
  bool watched_ = false;
  LinkEvents* events_ = nullptr;

  std::map<std::uint64_t, Slot> inbox_;  // By sequence.
  std::size_t inbox_bytes_ = 0;
  std::uint64_t next_ = 0;  // Sequence of the next frame to take.
  absl::Status broken_;     // Not OK: to be closed so, after what came before.
  bool scheduled_ = false;

  std::size_t in_flight_bytes_ = 0;    // Handed to UCX.
  std::size_t undelivered_bytes_ = 0;  // Cost of messages sent, until the peer says kDelivered.
  std::size_t delivered_bytes_ = 0;    // Of messages received, to be told.
  Landings landings_;
  Servings servings_;

  MonoTime heard_;
  std::uint64_t frames_sent_ = 0, sent_at_tick_ = 0;
  std::optional<Loop::TimerId> tick_;
  Life life_;
};

}  // namespace penstock::transfer
