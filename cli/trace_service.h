// SPDX-License-Identifier: Apache-2.0
// A serving process's spans and the service that shows them, as its flags want.
#pragma once

#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "base/spans.h"
#include "grpcpp/impl/service_type.h"

namespace penstock::cli {

struct TraceFlags {
  bool off = false;
};
void AddTraceFlags(CLI::App& command, TraceFlags& flags);

// Outlives the process's server and all that records.
class TracePart {
 public:
  TracePart(const TraceFlags& flags, const std::string& role, const std::string& name);
  SpanRing* spans() const { return spans_.get(); }  // Null: off.
  grpc::Service* service() const { return service_.get(); }

 private:
  std::unique_ptr<SpanRing> spans_;
  std::unique_ptr<grpc::Service> service_;
};

}  // namespace penstock::cli
