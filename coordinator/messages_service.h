// SPDX-License-Identifier: Apache-2.0
// Between the messages of penstock.v1.Cluster and the plain structs of the coordinator. Messages
// are checked here, once: INVALID_ARGUMENT names the field, its value and the limits. What the
// state machine checks itself (numbers of a registration, lengths of a query) is not checked twice.
// Any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/coordinator.h"
#include "penstock/v1/cluster.pb.h"

namespace penstock::coordinator {

// 1 to `bytes_max` bytes without control characters.
absl::Status CheckName(std::string_view field, std::string_view value, std::size_t bytes_max);

absl::StatusOr<Registration> FromProto(const v1::WorkerMessage::Register& message);

struct Load {
  LoadReport report;
  std::vector<Attempt> live;
};
absl::StatusOr<Load> FromProto(const v1::WorkerMessage::Load& message);
absl::StatusOr<std::vector<BlockEvent>> FromProto(const v1::WorkerMessage::Blocks& message);
absl::StatusOr<std::vector<CopyEvent>> FromProto(const v1::WorkerMessage::Copies& message);
absl::StatusOr<WorkerEvent> FromProto(const v1::AttemptEvent& message);
absl::StatusOr<PairReport> FromProto(const v1::Preflight::Result& message);
// `gateway` asks.
absl::StatusOr<RouteQuery> FromProto(const std::string& gateway,
                                     const v1::GatewayMessage::Route& message);

v1::WorkerCommand ToProto(const ReserveAction& action);
v1::WorkerCommand ToProto(const StartAction& action);
v1::WorkerCommand ToProto(const ReleaseAction& action);
v1::WorkerCommand ToProto(const PreflightAction& action);
v1::WorkerCommand ToProto(const StoreAction& action);
v1::WorkerCommand ToProto(const PrefetchAction& action);
v1::WorkerCommand ToProto(const ReplicateAction& action);
v1::GatewayEvent ToProto(const PlannedAction& action);
v1::GatewayEvent ToProto(const LostAction& action);
v1::GatewayEvent ToProto(const EndedAction& action);
v1::GatewayEvent ToProto(const std::string& request, const RouteAnswer& answer);
void ToProto(const ModelView& from, v1::GatewayEvent::Model* to);
void ToProto(const WorkerView& from, v1::StatusResponse::WorkerStatus* to);
void ToProto(const StoreView& from, v1::StatusResponse::StoreStatus* to);
void ToProto(const PairView& from, v1::StatusResponse::Pair* to);

}  // namespace penstock::coordinator
