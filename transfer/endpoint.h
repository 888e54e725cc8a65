// SPDX-License-Identifier: Apache-2.0
// What a process is among those that exchange KV: segments that peers may read, addresses to be
// reached at, and a channel to each peer, over the best kind that both have.
//
// All calls and callbacks on the loop's thread; nothing blocks. The loop outlives the endpoint, the
// endpoint its channels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "device/device.h"
#include "transfer/channel.h"
#include "transfer/link.h"

namespace penstock::transfer {

class NcclComms;

class Endpoint {
 public:
  // Must be equal on both sides of a channel, field by field in the same order: model, weights, KV
  // format, numerics. A connection with an unlike peer ends as FAILED_PRECONDITION naming the field
  // and both values, on both sides. At most 64 fields, 1 KiB each with its name. Kinds ucx and
  // nccl add one, the release of UCX or NCCL.
  using Identity = std::vector<std::pair<std::string, std::string>>;

  struct Options {
    Peer self;  // The name is unique in the deployment; the epoch is this life of the worker.
    Identity identity;
    // Best first; kUcx and kNccl are kinds, too.
    std::vector<Kind> kinds = {Kind::kShm, Kind::kTcp};
    std::vector<NcclComms*> nccl = {};  // Of kind nccl: those of each GPU; outlive the endpoint.
    std::string socket_folder;  // For shm: where its Unix socket is made, for this user only.
    // To listen on, a numeric IPv4 or IPv6 address; nothing listens beyond loopback unless this
    // says so. Of kinds ucx and nccl, too, whose port is any; ucx's data goes over that interface,
    // nccl's over those that NCCL chooses.
    std::string tcp_host = "127.0.0.1";
    std::uint16_t tcp_port = 0;  // 0: any.
    std::string tcp_advertise;   // What peers connect to; empty: tcp_host.
    // Of each kind tried, to connect; and then again for the peer to say who it is.
    Duration connect_timeout = std::chrono::seconds(5);
    Duration silence_max = std::chrono::seconds(10);  // As TcpOptions.
    std::size_t strangers_max = 64;  // Connections that have not yet said who they are; more wait.
  };
  // A peer has connected; the channel waits for Start.
  using Accept = std::function<void(std::unique_ptr<Channel> channel)>;
  // A peer was refused, for the log; FAILED_PRECONDITION when it is unlike.
  using Refuse = std::function<void(const absl::Status& status)>;

  // INVALID_ARGUMENT naming an option; UNAVAILABLE when an address is taken, naming it, or when UCX
  // does not start; UNIMPLEMENTED for a kind that this program was built without.
  static absl::StatusOr<std::unique_ptr<Endpoint>> Make(EpollLoop& loop, Options options,
                                                        Accept accept, Refuse refuse);
  ~Endpoint();  // Not from inside its callbacks. Connects under way never tell.

  // Where peers reach this one, for its registration: "shm:HOST-ID:PATH,tcp:ADDRESS:PORT".
  const std::string& address() const;

  // Lets peers read `memory`, which must outlive the endpoint or Withdraw. Over shared memory only
  // what device memory made with sharing has (DeviceMemory::shared_fd); what the host cannot load
  // from over nccl only: the memory of `gpu`, as Options::nccl counts them.
  SegmentId Register(DeviceMemory& memory, std::size_t gpu = 0);
  // The memory is not read by peers when this returns, but through mappings that they let go of as
  // soon as they hear of it.
  void Withdraw(SegmentId segment);

  // Connects to `peer` over the first of our kinds that its address has too and that works. `done`,
  // never called from inside this call, gets the channel, to Start, or why each kind failed:
  // UNAVAILABLE; DEADLINE_EXCEEDED; ABORTED when somebody else answers, or another life of it;
  // FAILED_PRECONDITION when it is unlike. `without`: a kind that is not tried.
  using Connected = std::function<void(absl::StatusOr<std::unique_ptr<Channel>> channel)>;
  void Connect(const Peer& peer, std::string_view address, Connected done,
               std::optional<Kind> without = {});

 private:
  class Impl;
  explicit Endpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::transfer
