// SPDX-License-Identifier: Apache-2.0
#include "cli/trace_service.h"

#include "rpc/trace_service.h"

namespace penstock::cli {

void AddTraceFlags(CLI::App& command, TraceFlags& flags) {
  command.add_flag("--no-trace", flags.off,
                   "Record no spans; `penstock trace` then knows nothing of this process");
}

TracePart::TracePart(const TraceFlags& flags, const std::string& role, const std::string& name)
    : spans_(flags.off ? nullptr : std::make_unique<SpanRing>()),
      service_(rpc::MakeTraceService({.spans = spans_.get(), .process = name, .role = role})) {}

}  // namespace penstock::cli
