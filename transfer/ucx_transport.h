// SPDX-License-Identifier: Apache-2.0
// Kind ucx: links whose bytes move over what UCX finds between two hosts, by active messages alone.
// No memory is registered for peers and no remote write or read is ever asked for; what is under
// way lies in buffers of ours, packed from a segment and unpacked into pages by this process's own
// hands, with the checksum computed in that pass. So a late answer finds no read to land in, and a
// segment may be withdrawn at any time.
//
// Peers meet at a TCP socket of ours: there they say who they are and compare the releases of UCX,
// exchange UCX's addresses, and see each other go. Only then is anything handed to UCX.
//
// What is trusted: UCX's own sockets and wire, on the network interface of `host`, are not hardened
// against strangers, who can make UCX use memory, write it, or end the process; neither is UCX
// against an address that a peer of the right identity made up. Use kind ucx in a network where
// only the cluster's machines can reach them. Our own frames inside are checked like those of TCP.
//
// Which transports UCX uses is decided here, not by its environment variables: tcp on that
// interface, and the RDMA devices of the machine if it has any. RDMA is compiled in, and unproven.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "transfer/link.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

// On the loop's thread, as all that it makes; outlives it.
class UcxTransport {
 public:
  // Whether this program was built with UCX.
  static bool Built();
  // `host`: numeric, as Endpoint::Options::tcp_host. UNIMPLEMENTED when this was built without UCX;
  // UNAVAILABLE when UCX does not start, or no interface has that address.
  static absl::StatusOr<std::unique_ptr<UcxTransport>> Make(EpollLoop& loop,
                                                            const std::string& host);
  virtual ~UcxTransport() = default;

  // Of the library that runs and of the API that this was built with, equal at both ends of every
  // link: "1.13.1 (API 1.13)".
  virtual std::string release() const = 0;

  // A link being made over a connected socket; ends untold when destroyed.
  class Exchange {
   public:
    virtual ~Exchange() = default;
  };
  struct LinkOptions {
    std::string peer_address;                         // For people.
    Duration silence_max = std::chrono::seconds(10);  // As TcpOptions.
  };
  // May destroy the exchange.
  using Done = std::function<void(absl::StatusOr<std::unique_ptr<Link>> link)>;
  // `socket`: a non-blocking stream, both sides of which know each other; the link keeps it. `done`
  // is told once, never from inside this call; DEADLINE_EXCEEDED at `deadline`. `own` outlives the
  // link.
  virtual std::unique_ptr<Exchange> Begin(UniqueFd socket, SegmentTable& own, LinkOptions options,
                                          MonoTime deadline, Done done) = 0;
};

}  // namespace penstock::transfer
