// SPDX-License-Identifier: Apache-2.0
// Where a server listens: a path, or what the resolver says of a host and port.
//
// Plain values.
#pragma once

#include <sys/socket.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace penstock::kvstore {

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t bytes = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

// Of "host:port", "[v6]:port" or "unix:PATH": at least one, best first. INVALID_ARGUMENT: none of
// these; UNAVAILABLE: the resolver does not know the host. May wait for the resolver.
absl::StatusOr<std::vector<SocketAddress>> ResolveRedis(std::string_view address);

}  // namespace penstock::kvstore
