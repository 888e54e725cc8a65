// SPDX-License-Identifier: Apache-2.0
// Addresses of endpoints, and the sockets that belong to them.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "transfer/link.h"

namespace penstock::transfer {

// Which machine, since it last started: what processes must share to use shared memory.
// UNAVAILABLE where the system does not tell.
absl::StatusOr<std::string> HostId();

// One way to reach an endpoint.
struct Route {
  Kind kind{};
  std::string host;  // Of shm: the HostId. Of the others: a numeric address.
  std::string path;  // Of shm.
  std::uint16_t port = 0;
  // Of nccl: which GPUs of which machine, as their CudaDevices have it; may be empty.
  std::vector<std::string> gpus = {};
  bool operator==(const Route&) const = default;
};
// "shm:HOST-ID:PATH,nccl:GPU+GPU@127.0.0.1:4000,ucx:[::1]:4000".
std::string FormatRoutes(const std::vector<Route>& routes);
// INVALID_ARGUMENT with the part that is wrong. Unknown kinds are left out: newer peers have them.
absl::StatusOr<std::vector<Route>> ParseRoutes(std::string_view address);

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
// INVALID_ARGUMENT: not a numeric address, or a path too long for a socket, with the limit.
absl::StatusOr<SocketAddress> AddressOf(const Route& route);

// Listening and non-blocking; `route` gets the port that it has. A Unix socket is for this user
// only, and takes the place of one that a dead process left behind. UNAVAILABLE naming the address
// when it is taken.
absl::StatusOr<UniqueFd> Listen(Route& route);
// Connecting, or already connected: writable tells. UNAVAILABLE naming the address.
absl::StatusOr<UniqueFd> BeginConnect(const Route& route);
// How that went, once writable.
absl::Status ConnectResult(int fd, const Route& route);

// Who is at the other end of a TCP socket: "127.0.0.1:4000", "[::1]:4000", or "?".
std::string PeerAddress(int fd);

}  // namespace penstock::transfer
