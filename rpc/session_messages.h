// SPDX-License-Identifier: Apache-2.0
// What a member of a cluster says and hears, between messages and the structs of session_client.h.
// What the coordinator says is checked: INVALID_ARGUMENT names the field. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "base/block_event.h"
#include "base/copy_event.h"
#include "penstock/v1/cluster.pb.h"
#include "rpc/session_client.h"

namespace penstock::rpc {

v1::WorkerMessage ToMessage(const WorkerRegistration& from, std::uint64_t session_epoch,
                            std::uint64_t term);
v1::WorkerMessage ToMessage(const WorkerLoad& from);
v1::WorkerMessage ToMessage(const WorkerAttemptEvent& from);
// Events number `first` and those behind it.
v1::WorkerMessage ToMessage(std::uint64_t first, std::span<const BlockEvent> events);
v1::WorkerMessage ToMessage(std::uint64_t first, std::span<const CopyEvent> events);

absl::StatusOr<ReserveCommand> Parse(const v1::WorkerCommand::Reserve& from);
absl::StatusOr<StartCommand> Parse(const v1::WorkerCommand::Start& from);
StoreCommand Parse(const v1::WorkerCommand::Store& from);
absl::StatusOr<PrefetchCommand> Parse(const v1::WorkerCommand::Prefetch& from);
absl::StatusOr<ReplicateCommand> Parse(const v1::WorkerCommand::Replicate& from);

}  // namespace penstock::rpc
