// SPDX-License-Identifier: Apache-2.0
// The decode worker's half of penstock.v1.Worker: checks messages, turns them into plain structs
// and posts them to the loop that owns DecodeState; tokens go back as streams.
//
// Whoever opened a stream and reads too slowly loses it: at most kStreamQueueMax messages wait, and
// once its answer has ended, for no longer than end_within.
#pragma once

#include <memory>

#include "base/epoll_loop.h"
#include "base/time.h"
#include "decode/decode_state.h"
#include "decode/engine_adapter.h"
#include "grpcpp/impl/service_type.h"
#include "penstock/v1/worker.pb.h"

namespace penstock::decode {

constexpr std::size_t kStreamQueueMax = 4096;

// All of it is used on the loop alone, and outlives the service's server.
struct DecodeServiceParts {
  EpollLoop* loop = nullptr;
  DecodeState* state = nullptr;
  EngineAdapter* engine = nullptr;
  v1::DescribeResponse description;
  Duration end_within = std::chrono::seconds(5);
};

std::unique_ptr<grpc::Service> MakeDecodeService(const DecodeServiceParts& parts);

}  // namespace penstock::decode
