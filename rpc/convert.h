// SPDX-License-Identifier: Apache-2.0
// Between messages of penstock.v1 and the plain structs that everything behind the services uses.
// Messages are checked here, once: INVALID_ARGUMENT names the field, its value and the limits.
// Any thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/attempt.h"
#include "base/copy_event.h"
#include "base/key.h"
#include "base/loss_class.h"
#include "base/store_load.h"
#include "base/time.h"
#include "google/protobuf/duration.pb.h"
#include "grpcpp/support/status.h"
#include "penstock/v1/cluster.pb.h"
#include "penstock/v1/common.pb.h"

namespace penstock::rpc {

grpc::Status ToGrpc(const absl::Status& status);
// Says, too, where the address is one for HTTP, which gRPC itself hardly does.
absl::Status FromGrpc(const grpc::Status& status);

// A request id of 1 to 64 printable ASCII bytes, a number from 1.
absl::StatusOr<Attempt> FromProto(const v1::Attempt& message);
void ToProto(const Attempt& attempt, v1::Attempt* message);

// Of 0 to a day.
absl::StatusOr<Duration> FromProto(std::string_view field,
                                   const google::protobuf::Duration& message);
void ToProto(Duration duration, google::protobuf::Duration* message);

// Of those that are known.
absl::StatusOr<Tier> FromProto(std::string_view field, v1::Tier message);

absl::StatusOr<LossClass> FromProto(std::string_view field, v1::LossClass message);

// 16 bytes each, in a row.
absl::StatusOr<std::vector<Chain>> ChainsFromProto(std::string_view bytes);
std::string ChainsToProto(std::span<const Chain> chains);
// A root chain: 16 bytes, or none.
absl::StatusOr<std::optional<Chain>> RootFromProto(std::string_view bytes);

void ToProto(const TierLoad& load, v1::WorkerMessage::TierLoad* message);

// Of an error's text; what is behind is dropped.
inline constexpr std::size_t kErrorBytesMax = 1024;
// An unset message is OK.
absl::Status FromProto(const v1::Error& message);
void ToProto(const absl::Status& status, v1::Error* message);

}  // namespace penstock::rpc
