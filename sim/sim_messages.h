// SPDX-License-Identifier: Apache-2.0
// What travels on the simulated cluster's streams, in the structs of those who speak: penstock.v1
// without its encoding.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "base/attempt.h"
#include "base/time.h"
#include "coordinator/coordinator.h"
#include "gateway/relay_state.h"
#include "sim/sim_network.h"

namespace penstock::sim {

inline constexpr char kModel[] = "tiny";
inline constexpr char kCoordinatorAddress[] = "coordinator";

// Cluster.Join.
struct SayLoad {
  coordinator::LoadReport report = {};
  std::vector<Attempt> live = {};
};
struct SayBlocks {
  std::uint64_t first = 0;
  std::vector<BlockEvent> events = {};
};
struct SayCopies {
  std::uint64_t first = 0;
  std::vector<CopyEvent> events = {};
};
struct SayPreflight {
  std::string decode = {};
  std::uint64_t decode_epoch = 0;
  coordinator::PairReport report = {};
};
struct SayLeave {};
using WorkerMessage = std::variant<coordinator::Registration, SayLoad, SayBlocks, SayCopies,
                                   coordinator::WorkerEvent, SayPreflight, SayLeave>;
struct Joined {
  Duration report_every = {};
};
using WorkerCommand =
    std::variant<Joined, coordinator::ReserveAction, coordinator::StartAction,
                 coordinator::ReleaseAction, coordinator::SnapshotAction,
                 coordinator::DrainedAction, coordinator::PreflightAction, coordinator::StoreAction,
                 coordinator::PrefetchAction, coordinator::ReplicateAction>;
using JoinStream = Stream<WorkerMessage, WorkerCommand>;

// Cluster.Attend.
struct Hello {
  std::string name = {};
};
struct CancelRequest {
  std::string request = {};
};
using GatewayMessage = std::variant<Hello, coordinator::RouteQuery, CancelRequest>;
struct Attending {
  std::vector<coordinator::ModelView> models = {};
};
struct Routed {
  std::string request = {};
  coordinator::RouteAnswer answer = {};
};
using GatewayEvent = std::variant<Attending, Routed, coordinator::PlannedAction,
                                  coordinator::LostAction, coordinator::EndedAction>;
using AttendStream = Stream<GatewayMessage, GatewayEvent>;

// The calls of Worker.
struct PrefillCall {
  Attempt attempt = {};
  std::vector<TokenId> tokens = {};
  Duration timeout = {};
};
struct StopCall {
  Attempt attempt = {};
  std::int32_t choice = 0;
};
using WorkerCall = std::variant<gateway::DecodeOrder, PrefillCall, StopCall>;
using CallStream = Stream<WorkerCall, gateway::DecodeStep>;

}  // namespace penstock::sim
