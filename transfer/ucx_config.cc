// SPDX-License-Identifier: Apache-2.0
#include "transfer/ucx_config.h"

#include <dlfcn.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>
#include <ucs/debug/debug.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "transfer/socket_address.h"

namespace penstock::transfer {
namespace {

// Loading UCX takes SIGHUP and the signals of crashes, to print what it knows. They go back to whom
// they were before any of our code runs: a hang-up ends a command, a sanitizer reports its finds.
[[maybe_unused]] const bool kSignalsAreOurs = [] {
  for (const int signal : {SIGHUP, SIGILL, SIGBUS, SIGFPE, SIGSEGV, SIGABRT}) {
    struct sigaction action {};
    Dl_info info{};
    if (::sigaction(signal, nullptr, &action) != 0) continue;
    const void* const handler = reinterpret_cast<const void*>(action.sa_handler);
    if (handler == nullptr || ::dladdr(handler, &info) == 0 || info.dli_fname == nullptr) continue;
    const std::string_view library = info.dli_fname;
    if (library.find("libucs.so") != library.npos) ucs_debug_disable_signal(signal);
  }
  return true;
}();

struct Addressed {
  bool any = false;
  bool loopback = false;
  std::string interface;
};

bool SameHost(const sockaddr& a, const sockaddr& b) {
  if (a.sa_family != b.sa_family) return false;
  if (a.sa_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(a).sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in&>(b).sin_addr.s_addr;
  }
  return a.sa_family == AF_INET6 &&
         std::memcmp(&reinterpret_cast<const sockaddr_in6&>(a).sin6_addr,
                     &reinterpret_cast<const sockaddr_in6&>(b).sin6_addr, sizeof(in6_addr)) == 0;
}

absl::StatusOr<Addressed> FindInterface(const std::string& host) {
  ASSIGN_OR_RETURN(const SocketAddress address,
                   AddressOf({.kind = Kind::kTcp, .host = host, .path = "", .port = 0}));
  const auto& v4 = reinterpret_cast<const sockaddr_in&>(address.storage);
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
  const bool ipv6 = address.storage.ss_family == AF_INET6;
  Addressed found;
  found.any = ipv6 ? IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr) : v4.sin_addr.s_addr == INADDR_ANY;
  // Of 127.0.0.0/8 an interface has only one, and answers to all.
  found.loopback =
      ipv6 ? IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) : (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return absl::UnavailableError("the system names no interfaces");
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owned(list, ::freeifaddrs);
  for (const ifaddrs* one = list; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || !found.interface.empty()) continue;
    const bool is_loopback = (one->ifa_flags & IFF_LOOPBACK) != 0;
    if (found.loopback ? is_loopback : SameHost(*one->ifa_addr, *address.get())) {
      found.interface = one->ifa_name;
    }
  }
  if (found.interface.empty() && !found.any) {
    return absl::UnavailableError(absl::StrCat("kind ucx: no network interface has ", host));
  }
  return found;
}

// "mlx5_0:1": name and port.
std::vector<std::string> RdmaDevices() {
  std::vector<std::string> names;
  std::error_code none;
  for (const auto& device : std::filesystem::directory_iterator("/sys/class/infiniband", none)) {
    for (const auto& port : std::filesystem::directory_iterator(device.path() / "ports", none)) {
      names.push_back(device.path().filename().string() + ":" + port.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

std::string UcxDevices::Describe() const { return transports + "/" + names; }

absl::StatusOr<UcxDevices> ChooseUcxDevices(const std::string& host) {
  ASSIGN_OR_RETURN(const Addressed found, FindInterface(host));
  const std::vector<std::string> rdma = found.loopback ? std::vector<std::string>() : RdmaDevices();
  UcxDevices devices{.transports = rdma.empty() ? "tcp" : "ib,tcp", .names = "all"};
  if (!rdma.empty()) devices.rendezvous = "auto";
  if (found.any) return devices;
  devices.names = found.interface;
  if (!rdma.empty()) absl::StrAppend(&devices.names, ",", absl::StrJoin(rdma, ","));
  return devices;
}

absl::StatusOr<ucp_config_t*> MakeUcxConfig(const UcxDevices& devices) {
  ucp_config_t* config = nullptr;
  RETURN_IF_ERROR(FromUcs(ucp_config_read(nullptr, nullptr, &config), "reading UCX's settings"));
  const std::pair<const char*, const char*> settings[] = {
      {"TLS", devices.transports.c_str()},
      {"NET_DEVICES", devices.names.c_str()},
      {"PROTOS", "all"},
      // A remote write over UCX's TCP is the slowest way of all.
      {"PUT_ENABLE", "n"},
      // Links look after their peers themselves.
      {"KEEPALIVE_INTERVAL", "inf"},
      // Only buffers of ours are sent, and UCX need not watch the process's mappings for that.
      {"RCACHE_ENABLE", "n"},
      {"PROTO_ENABLE", "n"},
      {"WARN_INVALID_CONFIG", "n"},
      {"UNIFIED_MODE", "n"},
      {"ADDRESS_VERSION", "v1"},
      {"RNDV_SCHEME", "auto"},
      {"RNDV_THRESH", devices.rendezvous.c_str()},
      // Of TCP: a piece of a read in one, which is twice as fast as the default of 8K.
      {"TX_SEG_SIZE", "512K"},
      {"RX_SEG_SIZE", "512K"},
  };
  for (const auto& [name, value] : settings) {
    const ucs_status_t status = ucp_config_modify(config, name, value);
    if (status == UCS_OK) continue;
    ucp_config_release(config);
    return FromUcs(status, std::string("setting UCX's ") + name);
  }
  return config;
}

absl::Status FromUcs(ucs_status_t status, std::string_view what) {
  if (status == UCS_OK) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(ToAbsl(what), ": ", ucs_status_string(status)));
}

}  // namespace penstock::transfer
