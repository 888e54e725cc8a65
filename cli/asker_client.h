// SPDX-License-Identifier: Apache-2.0
// Questions of an operator to a coordinator; each waits for its answer.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "penstock/v1/cluster.grpc.pb.h"

namespace penstock::cli {

class Asker {
 public:
  // `server`: "host:port". `patience`: with a coordinator that does not answer.
  explicit Asker(const std::string& server,
                 std::chrono::seconds patience = std::chrono::seconds(5));

  // UNAVAILABLE, DEADLINE_EXCEEDED: nobody answers there, which is named; and what it says.
  absl::StatusOr<v1::StatusResponse> Status();
  absl::StatusOr<std::string> Explain(const std::string& request);

 private:
  template <typename Response, typename Call>
  absl::StatusOr<Response> Ask(const Call& call);

  const std::string server_;
  const std::chrono::seconds patience_;
  const std::unique_ptr<v1::Cluster::Stub> stub_;
};

}  // namespace penstock::cli
