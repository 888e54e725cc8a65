// SPDX-License-Identifier: Apache-2.0
// penstock.v1.Inference over a Gateway: turns messages into plain structs and back. A client that
// reads too slowly is cut: at most kStreamMessagesMax messages, or kStreamBytesMax bytes, wait.
#pragma once

#include <cstddef>
#include <memory>

#include "gateway/gateway.h"
#include "grpcpp/impl/service_type.h"

namespace penstock::gateway {

inline constexpr std::size_t kStreamMessagesMax = 4096;
inline constexpr std::size_t kStreamBytesMax = std::size_t{1} << 20;

// The trailing metadata that says after how many milliseconds to try again.
inline constexpr char kRetryAfterKey[] = "retry-after-ms";

// `gateway` outlives the service's server.
std::unique_ptr<grpc::Service> MakeInferenceService(Gateway& gateway);

}  // namespace penstock::gateway
