// SPDX-License-Identifier: Apache-2.0
// A prefill worker's part in a cluster: what the coordinator wants of it goes to PrefillState, how
// attempts go, load and blocks go back.
//
// A preflight is a handoff like any other, of a made-up prompt of a block, under a grant that the
// decode worker takes from everybody: what is proven is the way that requests go. The first on a
// channel measures, too (transfer/pair_meter.h); what it found is told again by later ones.
//
// On the worker's loop.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "engine/block_feed.h"
#include "prefill/prefill_metrics.h"
#include "prefill/prefill_worker.h"
#include "rpc/session_client.h"

namespace penstock::prefill {

class PrefillMember final : private PrefillState::Observer {
 public:
  struct Options {
    rpc::SessionClient::Options session;
    // Who this is; the pool's numbers are set here.
    rpc::WorkerRegistration registration;
    // Once: the process should end. Not OK: the coordinator will not have this worker.
    std::function<void(const absl::Status& why)> on_end;
  };

  // `worker` outlives the member.
  PrefillMember(PrefillWorker& worker, Options options);
  ~PrefillMember() override;
  // Says good-bye; then on_end.
  void Leave() { session_->Leave(); }
  void WriteMetrics(MetricsWriter& writer) const;

 private:
  void OnStart(const rpc::StartCommand& command);
  void OnRelease(const Attempt& attempt);
  void OnPreflight(const rpc::PreflightCommand& command);
  rpc::WorkerLoad Load();
  void OnProbed(const Attempt& attempt, const PrefillState::Outcome& outcome);
  void OnComputed(const Attempt& attempt) override;
  void OnEnded(const Attempt& attempt, PrefillState::End how, const absl::Status& why) override;

  PrefillWorker& worker_;
  PrefillMetrics metrics_;
  const std::uint64_t first_probe_;
  bool releasing_ = false;  // The coordinator need not hear of what it wanted.
  std::map<Attempt, rpc::PreflightCommand> probes_;
  std::uint64_t next_probe_ = 1;
  std::unique_ptr<rpc::SessionClient> session_;
  std::unique_ptr<engine::BlockFeed> feed_;
};

}  // namespace penstock::prefill
