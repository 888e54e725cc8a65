// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/redis_address.h"

#include <netdb.h>
#include <sys/un.h>

#include <charconv>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::kvstore {
namespace {

constexpr std::string_view kUnix = "unix:";

absl::Status Wrong(std::string_view address, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("address must be host:port or unix:PATH, got '",
                                                 ToAbsl(address.substr(0, 128)),
                                                 "': ", ToAbsl(why)));
}

absl::StatusOr<std::vector<SocketAddress>> OfPath(std::string_view address) {
  const std::string_view path = address.substr(kUnix.size());
  sockaddr_un to = {};
  to.sun_family = AF_UNIX;
  if (path.empty()) return Wrong(address, "the path is empty");
  if (path.find('\0') != std::string_view::npos) return Wrong(address, "the path has a zero byte");
  if (path.size() >= sizeof(to.sun_path)) {
    return Wrong(address, ToStd(absl::StrCat("a path has at most ", sizeof(to.sun_path) - 1,
                                             " bytes, got ", path.size())));
  }
  std::memcpy(to.sun_path, path.data(), path.size());
  SocketAddress out = {.bytes = sizeof(to)};
  std::memcpy(&out.storage, &to, sizeof(to));
  return std::vector{out};
}

}  // namespace

absl::StatusOr<std::vector<SocketAddress>> ResolveRedis(std::string_view address) {
  if (address.starts_with(kUnix)) return OfPath(address);
  const std::size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return Wrong(address, "there is no port");
  std::string host(address.substr(0, colon));
  const std::string port(address.substr(colon + 1));
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  if (host.empty() || host.find('\0') != std::string::npos) return Wrong(address, "no host");
  std::uint16_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size() || number == 0) {
    return Wrong(address, "a port is a number from 1 to 65535");
  }
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int failed = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); failed != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot resolve ", host, ": ", ::gai_strerror(failed)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> all(found, &::freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    if (one->ai_addrlen > sizeof(sockaddr_storage)) continue;
    SocketAddress& out = addresses.emplace_back();
    out.bytes = one->ai_addrlen;
    std::memcpy(&out.storage, one->ai_addr, one->ai_addrlen);
  }
  if (addresses.empty()) return absl::UnavailableError(absl::StrCat("no address of ", host));
  return addresses;
}

}  // namespace penstock::kvstore
