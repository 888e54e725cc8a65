// SPDX-License-Identifier: Apache-2.0
// penstock.v1.Trace over a process's ring of spans. Registered with the process's server beside its
// other services.
#pragma once

#include <memory>
#include <string>

#include "base/spans.h"
#include "grpcpp/impl/service_type.h"

namespace penstock::rpc {

struct TraceServiceParts {
  const SpanRing* spans = nullptr;  // Null: not traced. Outlives the service's server.
  std::string process = {};         // Its name in the deployment.
  std::string role = {};            // "coordinator", "gateway", "prefill" or "decode".
};

// Any thread; answers on gRPC's own. Of spans, at most 256 at a time wait to be sent.
std::unique_ptr<grpc::Service> MakeTraceService(const TraceServiceParts& parts);

}  // namespace penstock::rpc
