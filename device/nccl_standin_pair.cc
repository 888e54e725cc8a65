// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>

#include "device/nccl_standin_comm.h"

namespace penstock::nccl_standin {
namespace {

constexpr int kTurnMs = 1;

// A name that is no file and is gone with its socket.
socklen_t AddressOf(const std::string& id, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, id.data(), id.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + id.size());
}

UniqueFd NewSocket() {
  return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

UniqueFd Accept(int listener, const std::atomic<bool>& stop) {
  while (!stop) {
    pollfd wait{listener, POLLIN, 0};
    if (::poll(&wait, 1, kTurnMs) > 0) {
      return UniqueFd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    }
  }
  return {};
}

UniqueFd Connect(const sockaddr_un& address, socklen_t size, const std::atomic<bool>& stop) {
  while (!stop) {
    UniqueFd socket = NewSocket();
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0) {
      return socket;
    }
    (void)::poll(nullptr, 0, kTurnMs);  // The other rank is not there yet.
  }
  return {};
}

}  // namespace

Pair Meet(const std::string& id, int rank, int peer, const std::atomic<bool>& stop) {
  sockaddr_un address;
  const socklen_t size = AddressOf(
      id + "-" + std::to_string(std::min(rank, peer)) + "-" + std::to_string(std::max(rank, peer)),
      address);
  Pair pair;
  if (rank < peer) {
    const UniqueFd listener = NewSocket();
    if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
        ::listen(listener.get(), 2) != 0) {
      return pair;
    }
    pair.to_peer = Accept(listener.get(), stop);
    pair.from_peer = Accept(listener.get(), stop);
  } else {
    pair.from_peer = Connect(address, size, stop);
    pair.to_peer = Connect(address, size, stop);
  }
  return pair;
}

}  // namespace penstock::nccl_standin
