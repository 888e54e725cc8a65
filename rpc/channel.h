// SPDX-License-Identifier: Apache-2.0
// Channels between processes of a cluster: a peer that went silent is noticed within seconds, and
// one that comes back is found again soon.
#pragma once

#include <memory>
#include <string>

#include "grpcpp/channel.h"

namespace penstock::rpc {

inline constexpr int kPingEveryMs = 5000;

// To "host:port". Connects when first used, tries again soon, and sees within two pings that the
// other host is gone. Unencrypted.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace penstock::rpc
