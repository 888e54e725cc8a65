// SPDX-License-Identifier: Apache-2.0
#include "transfer/socket_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"

namespace penstock::transfer {
namespace {

constexpr int kBacklog = 128;

// Types of socket by kind: packets where one read is one frame, a stream between hosts.
int SocketType(Kind kind) { return kind == Kind::kShm ? SOCK_SEQPACKET : SOCK_STREAM; }

std::string ToText(const Route& route) {
  if (route.kind == Kind::kShm) return absl::StrCat("shm:", route.host, ":", route.path);
  const bool ipv6 = route.host.find(':') != std::string::npos;
  return absl::StrCat(ToAbsl(ToString(route.kind)), ":", absl::StrJoin(route.gpus, "+"),
                      route.gpus.empty() ? "" : "@", ipv6 ? "[" : "", route.host, ipv6 ? "]" : "",
                      ":", route.port);
}

absl::Status Unavailable(const Route& route, int error) {
  return absl::UnavailableError(absl::StrCat(ToText(route), ": ", std::strerror(error)));
}

std::optional<Route> ParseRoute(Kind kind, std::string_view rest) {
  Route route;
  route.kind = kind;
  if (const std::size_t at = rest.find('@'); kind == Kind::kNccl && at != std::string_view::npos) {
    for (const absl::string_view gpu : absl::StrSplit(ToAbsl(rest.substr(0, at)), '+')) {
      route.gpus.emplace_back(gpu);
    }
    rest.remove_prefix(at + 1);
  }
  const bool bracket = kind != Kind::kShm && rest.starts_with('[');
  const std::size_t end = bracket ? rest.find("]:") : rest.find(':');
  if (end == std::string_view::npos) return std::nullopt;
  route.host = rest.substr(bracket ? 1 : 0, bracket ? end - 1 : end);
  rest.remove_prefix(end + (bracket ? 2 : 1));
  if (kind == Kind::kShm) {
    route.path = rest;
    if (route.host.empty() || route.path.empty()) return std::nullopt;
    return route;
  }
  const auto [last, error] = std::from_chars(rest.data(), rest.data() + rest.size(), route.port);
  if (error != std::errc() || last != rest.data() + rest.size() || route.port == 0) {
    return std::nullopt;
  }
  return AddressOf(route).ok() ? std::optional(route) : std::nullopt;
}

}  // namespace

absl::StatusOr<std::string> HostId() {
  absl::StatusOr<std::string> id = ReadFile("/proc/sys/kernel/random/boot_id", 64);
  if (!id.ok()) return absl::UnavailableError(id.status().message());
  std::erase_if(*id, [](char c) { return c == '\n' || c == ',' || c == ':'; });
  return id;
}

std::string FormatRoutes(const std::vector<Route>& routes) {
  std::string text;
  for (const Route& route : routes) absl::StrAppend(&text, text.empty() ? "" : ",", ToText(route));
  return text;
}

absl::StatusOr<std::vector<Route>> ParseRoutes(std::string_view address) {
  std::vector<Route> routes;
  while (!address.empty()) {
    const std::string_view part = address.substr(0, address.find(','));
    address.remove_prefix(std::min(part.size() + 1, address.size()));
    const std::string_view kind = part.substr(0, part.find(':'));
    if (kind.size() == part.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("an address is KIND:..., got '", ToAbsl(part), "'"));
    }
    for (const Kind known : {Kind::kShm, Kind::kTcp, Kind::kUcx, Kind::kNccl}) {
      if (kind != ToString(known)) continue;
      const std::optional<Route> route = ParseRoute(known, part.substr(kind.size() + 1));
      if (!route) {
        return absl::InvalidArgumentError(
            absl::StrCat("an address is shm:HOST:PATH, or tcp, ucx or nccl:ADDRESS:PORT, got '",
                         ToAbsl(part), "'"));
      }
      routes.push_back(*route);
    }
  }
  return routes;
}

absl::StatusOr<SocketAddress> AddressOf(const Route& route) {
  SocketAddress address;
  if (route.kind == Kind::kShm) {
    auto& to = reinterpret_cast<sockaddr_un&>(address.storage);
    if (route.path.empty() || route.path.size() >= sizeof(to.sun_path)) {
      return absl::InvalidArgumentError(absl::StrCat("the path of a socket has at most ",
                                                     sizeof(to.sun_path) - 1, " bytes, got ",
                                                     route.path.size(), ": ", route.path));
    }
    to.sun_family = AF_UNIX;
    std::memcpy(to.sun_path, route.path.data(), route.path.size());
    address.size = sizeof(to);
    return address;
  }
  auto& v4 = reinterpret_cast<sockaddr_in&>(address.storage);
  auto& v6 = reinterpret_cast<sockaddr_in6&>(address.storage);
  if (::inet_pton(AF_INET, route.host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(route.port);
    address.size = sizeof(v4);
  } else if (::inet_pton(AF_INET6, route.host.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(route.port);
    address.size = sizeof(v6);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("a numeric IPv4 or IPv6 address is needed, got '", route.host, "'"));
  }
  return address;
}

absl::StatusOr<UniqueFd> BeginConnect(const Route& route) {
  ASSIGN_OR_RETURN(const SocketAddress address, AddressOf(route));
  UniqueFd fd(::socket(address.storage.ss_family,
                       SocketType(route.kind) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Unavailable(route, errno);
  // A Unix socket whose backlog is full says EAGAIN: busy, not gone, but there is no waiting for
  // it.
  if (::connect(fd.get(), address.get(), address.size) != 0 && errno != EINPROGRESS) {
    return Unavailable(route, errno);
  }
  return fd;
}

absl::Status ConnectResult(int fd, const Route& route) {
  int error = 0;
  socklen_t size = sizeof(error);
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  return error == 0 ? absl::OkStatus() : Unavailable(route, error);
}

absl::StatusOr<UniqueFd> Listen(Route& route) {
  ASSIGN_OR_RETURN(const SocketAddress address, AddressOf(route));
  UniqueFd fd(::socket(address.storage.ss_family,
                       SocketType(route.kind) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Unavailable(route, errno);
  const int one = 1;  // A restart must not wait for the connections of the life before.
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  int failed = ::bind(fd.get(), address.get(), address.size);
  if (failed != 0 && errno == EADDRINUSE && route.kind == Kind::kShm) {
    if (BeginConnect(route).ok()) return Unavailable(route, EADDRINUSE);
    (void)::unlink(route.path.c_str());
    failed = ::bind(fd.get(), address.get(), address.size);
  }
  if (failed != 0) return Unavailable(route, errno);
  // Before anybody can connect: that takes listen().
  if (route.kind == Kind::kShm && ::chmod(route.path.c_str(), S_IRUSR | S_IWUSR) != 0) {
    return Unavailable(route, errno);
  }
  if (::listen(fd.get(), kBacklog) != 0) return Unavailable(route, errno);
  if (route.kind != Kind::kShm) {
    SocketAddress bound;
    bound.size = sizeof(bound.storage);
    if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound.storage), &bound.size) != 0) {
      return Unavailable(route, errno);
    }
    // In the same place in both families.
    route.port = ntohs(reinterpret_cast<const sockaddr_in&>(bound.storage).sin_port);
  }
  return fd;
}

std::string PeerAddress(int fd) {
  SocketAddress peer;
  peer.size = sizeof(peer.storage);
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer.storage), &peer.size) != 0) return "?";
  const bool ipv6 = peer.storage.ss_family == AF_INET6;
  const auto& v4 = reinterpret_cast<const sockaddr_in&>(peer.storage);
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(peer.storage);
  const void* const bytes =
      ipv6 ? static_cast<const void*>(&v6.sin6_addr) : static_cast<const void*>(&v4.sin_addr);
  if (::inet_ntop(peer.storage.ss_family, bytes, text.data(), text.size()) == nullptr) return "?";
  return absl::StrCat(ipv6 ? "[" : "", text.data(), ipv6 ? "]" : "", ":",
                      ntohs(ipv6 ? v6.sin6_port : v4.sin_port));
}

}  // namespace penstock::transfer
