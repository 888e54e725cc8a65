// SPDX-License-Identifier: Apache-2.0
// Channels between processes of a cluster: a peer that went silent is noticed within seconds, and
// one that comes back is found again soon.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/channel.h"

namespace penstock::rpc {

inline constexpr int kPingEveryMs = 5000;

// To "host:port". Connects when first used, tries again soon, and sees within two pings that the
// other host is gone. Unencrypted.
//
// Who holds it last must not be a thread of gRPC's: the end of a process's last channel and server
// joins those threads, and one that joins itself goes on with what is freed. A call's context holds
// its channel, so whoever is told by gRPC that a call is over hands the context to another thread
// and keeps nothing: rpc/client_stream.h and rpc/open_calls.h do.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// "host:port", or several with commas between them: 1 to 16, none empty. INVALID_ARGUMENT names
// `flag`.
absl::StatusOr<std::vector<std::string>> SplitAddresses(std::string_view flag,
                                                        std::string_view text);

}  // namespace penstock::rpc
