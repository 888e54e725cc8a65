// SPDX-License-Identifier: Apache-2.0
#include "rpc/channel.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace penstock::rpc {

absl::StatusOr<std::vector<std::string>> SplitAddresses(std::string_view flag,
                                                        std::string_view text) {
  constexpr std::size_t kMost = 16;
  std::vector<std::string> addresses = absl::StrSplit(ToAbsl(text), ',');
  bool good = addresses.size() <= kMost;
  for (const std::string& one : addresses) {
    const std::size_t colon = one.rfind(':');
    good = good && colon != std::string::npos && colon > 0 && colon + 1 < one.size() &&
           one.find_first_of(" /") == std::string::npos;
  }
  if (good) return addresses;
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(flag), " must be 1 to ", kMost,
                   " addresses HOST:PORT with commas between them, got '", ToAbsl(text), "'"));
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingEveryMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingEveryMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace penstock::rpc
