// SPDX-License-Identifier: Apache-2.0
// For tests: a coordinator and a worker that speak gRPC and answer by the rule of relay_world.h.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/epoll_loop.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "penstock/v1/worker.grpc.pb.h"
#include "rpc/server_stream.h"

namespace penstock::gateway {

// What it was asked for is counted; waits are bounded by the test's own time limit.
class Counter {
 public:
  void Add() {
    const absl::MutexLock lock(&mutex_);
    ++value_;
  }
  void Await(int at_least) {
    const auto enough = [this, at_least]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return value_ >= at_least; };
    const absl::MutexLock lock(&mutex_, absl::Condition(&enough));
  }
  int value() {
    const absl::MutexLock lock(&mutex_);
    return value_;
  }

 private:
  absl::Mutex mutex_;
  int value_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Places every request on one worker.
class FakeCluster final : public v1::Cluster::CallbackService {
 public:
  // `worker` is the address that it plans with; `context_tokens` what it says of the model "tiny".
  FakeCluster(std::string worker, std::int32_t context_tokens);
  ~FakeCluster() override;

  grpc::ServerBidiReactor<v1::GatewayMessage, v1::GatewayEvent>* Attend(
      grpc::CallbackServerContext* context) override;
  // From now on every Route is answered so.
  void Refuse(const absl::Status& status, Duration retry_after);
  void EndStreams();

  Counter attended;
  Counter cancelled;

 private:
  using Stream = rpc::ServerStream<v1::GatewayMessage, v1::GatewayEvent>;
  void Hear(Stream& stream, const v1::GatewayMessage& message);

  const std::string worker_;
  const std::int32_t context_tokens_;
  std::unique_ptr<EpollLoop> loop_;
  // On the loop alone.
  std::map<std::string, std::uint32_t> attempts_;
  std::vector<std::weak_ptr<Stream>> streams_;
  absl::Status refusal_;
  Duration retry_after_{};
};

// Prefills never end by themselves; answers stop after `pause_after` tokens until Resume.
class FakeWorker final : public v1::Worker::CallbackService {
 public:
  grpc::ServerUnaryReactor* Prefill(grpc::CallbackServerContext* context,
                                    const v1::PrefillRequest* request,
                                    v1::PrefillResponse* response) override;
  grpc::ServerWriteReactor<v1::DecodeResponse>* Decode(grpc::CallbackServerContext* context,
                                                       const v1::DecodeRequest* request) override;
  grpc::ServerUnaryReactor* StopChoice(grpc::CallbackServerContext* context,
                                       const v1::StopChoiceRequest* request,
                                       v1::StopChoiceResponse* response) override;

  void PauseAfter(int tokens);
  void Resume();                // All, for good.
  void BreakAfter(int tokens);  // First attempts, with UNAVAILABLE.
  void Endless();               // No answer ends before max_tokens.

  Counter paused;
  Counter prefills;  // That have arrived.
  Counter decodes_cancelled;
  Counter prefills_cancelled;

 private:
  class Answer;
  bool Pauses(Answer& answer, int tokens);
  bool Breaks(std::uint32_t attempt, int tokens);
  bool Ends(TokenId token);

  absl::Mutex mutex_;
  int pause_after_ ABSL_GUARDED_BY(mutex_) = -1;
  int break_after_ ABSL_GUARDED_BY(mutex_) = -1;
  bool endless_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Answer*> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace penstock::gateway
