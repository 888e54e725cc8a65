// SPDX-License-Identifier: Apache-2.0
// UCX on a loop: one context and worker, the connections of its links, and the buffers that are
// under way. All of it on the loop's thread; the loop waits for UCX as for any socket.
//
// A buffer belongs to UCX from the call that hands it over to the call that gives it back, whatever
// becomes of the link meanwhile: no memory of a link's user is ever UCX's.
#pragma once

#include <ucp/api/ucp.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "transfer/life.h"
#include "transfer/ucx_config.h"
#include "transfer/ucx_frames.h"

namespace penstock::transfer {

// Bytes of UCX's callbacks and ours; of a pool where they are large.
struct UcxBuffer {
  std::unique_ptr<std::byte[]> memory;
  std::size_t size = 0;
  std::size_t capacity = 0;
  std::span<std::byte> bytes() const { return {memory.get(), size}; }
};

class UcxWorker {
 public:
  // A link. Called while UCX runs: it must not call its user, or the worker but for Take and Give.
  class Receiver {
   public:
    virtual ~Receiver() = default;
    // A frame came; `payload`, of the size that its header says, is valid only inside this call.
    virtual void OnFrame(const UcxHeader& header, std::span<const std::byte> payload) = 0;
    // Of a frame whose payload comes later, by OnPayload: false to do without it.
    virtual bool OnAnnounced(const UcxHeader& header) = 0;
    virtual void OnPayload(std::uint64_t sequence, UcxBuffer payload) = 0;
    // A frame that cost so many bytes has left its buffer.
    virtual void OnSent(std::size_t bytes) = 0;
    // A frame of the peer's is not one, or the connection failed. The last call.
    virtual void OnBroken(const absl::Status& status) = 0;
  };
  struct Connection;

  static absl::StatusOr<std::unique_ptr<UcxWorker>> Make(EpollLoop& loop,
                                                         const UcxDevices& devices);
  ~UcxWorker();  // All connections are closed (CHECKed).

  // What peers need to connect.
  std::span<const std::byte> address() const { return address_; }
  // "tcp/lo", "ib,tcp on eth0 mlx5_0:1".
  const std::string& devices() const { return devices_; }

  // Frames for the connection's number go to `receiver` from here on.
  Connection* Open(Receiver& receiver);
  static std::uint64_t number(const Connection& connection);
  // Once, before Send. `peer` is the other's address, its number there `peer_link`. UNAVAILABLE
  // where there is no way.
  absl::Status Connect(Connection& connection, std::span<const std::byte> peer,
                       std::uint64_t peer_link);
  // Sends header.type, id and `payload`; the rest of the header is filled in. Costs
  // payload.size + kUcxMessageCost bytes until OnSent, which may come from inside, as OnBroken may.
  void Send(Connection& connection, UcxHeader header, UcxBuffer payload);
  // The receiver is not called any more. What it sent may be lost.
  void Close(Connection* connection);

  // Lets UCX do what it can without waiting, a bounded number of steps. False: perhaps there is
  // more.
  bool Progress();

  UcxBuffer Take(std::size_t bytes);
  void Give(UcxBuffer buffer);

 private:
  // A buffer that is UCX's.
  struct Operation {
    UcxWorker* worker = nullptr;
    std::uint64_t link = 0;
    std::uint64_t sequence = 0;
    std::size_t bytes = 0;
    std::array<std::byte, kUcxHeaderBytes> header{};
    UcxBuffer buffer;
    std::list<Operation>::iterator self;
  };
  explicit UcxWorker(EpollLoop& loop);
  absl::Status Init(const UcxDevices& devices);
  absl::Status InitWorker();
  absl::Status WatchWorker();

  void Kick();
  void Turn();
  std::list<Operation>::iterator AddOperation(std::uint64_t link, UcxBuffer buffer);
  Receiver* Find(std::uint64_t link) const;
  ucs_status_t OnActiveMessage(std::span<const std::byte> header, void* data, std::size_t length,
                               const ucp_am_recv_param_t& param);
  ucs_status_t Announce(Receiver& receiver, const UcxHeader& header, void* data);
  void EndReceive(Operation& operation, ucs_status_t status);
  void EndSend(Operation& operation, ucs_status_t status);
  void Forget(Connection* connection);

  static ucs_status_t ActiveMessage(void* self, const void* header, std::size_t header_bytes,
                                    void* data, std::size_t length,
                                    const ucp_am_recv_param_t* param);
  static void Sent(void* request, ucs_status_t status, void* operation);
  static void Received(void* request, ucs_status_t status, std::size_t length, void* operation);
  static void Closed(void* request, ucs_status_t status, void* connection);
  static void Failed(void* connection, ucp_ep_h endpoint, ucs_status_t status);

  EpollLoop& loop_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  bool scheduled_ = false;
  std::string devices_;
  std::vector<std::byte> address_;
  std::uint64_t next_ = 0;
  std::map<std::uint64_t, std::unique_ptr<Connection>> connections_;  // And those that close.
  std::list<Operation> operations_;
  std::vector<UcxBuffer> free_;
  Life life_;
};

}  // namespace penstock::transfer
