// SPDX-License-Identifier: Apache-2.0
// A decode worker's part in a cluster: what the coordinator wants of it goes to DecodeState, how
// attempts go, load and blocks go back.
//
// On the worker's loop.
#pragma once

#include <functional>
#include <memory>

#include "decode/decode_metrics.h"
#include "decode/decode_worker.h"
#include "engine/block_feed.h"
#include "rpc/session_client.h"

namespace penstock::decode {

class DecodeMember final : private DecodeState::Observer {
 public:
  struct Options {
    rpc::SessionClient::Options session;
    // Who this is; the pool's numbers are set here.
    rpc::WorkerRegistration registration;
    // Once: the process should end. Not OK: the coordinator will not have this worker.
    std::function<void(const absl::Status& why)> on_end;
  };

  // `worker` outlives the member.
  DecodeMember(DecodeWorker& worker, Options options);
  ~DecodeMember() override;
  // Says good-bye; then on_end.
  void Leave() { session_->Leave(); }
  void WriteMetrics(MetricsWriter& writer) const;

 private:
  void OnReserve(const rpc::ReserveCommand& command);
  void OnStart(const rpc::StartCommand& command);
  void OnRelease(const Attempt& attempt);
  rpc::WorkerLoad Load();
  void OnAdopted(const Attempt& attempt,
                 const transfer::HandoffReceiver::Outcome& handoff) override;
  void OnEnded(const Attempt& attempt, DecodeState::End how, const absl::Status& why) override;

  DecodeWorker& worker_;
  DecodeMetrics metrics_;
  bool releasing_ = false;  // The coordinator need not hear of what it wanted.
  double link_bytes_per_s_ = 0;
  std::unique_ptr<rpc::SessionClient> session_;
  std::unique_ptr<engine::BlockFeed> feed_;
};

}  // namespace penstock::decode
