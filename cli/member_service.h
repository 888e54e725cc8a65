// SPDX-License-Identifier: Apache-2.0
// What the members of a cluster have in common, workers and store nodes: the flags that say who they
// are, and a life that lasts until a signal comes, or the coordinator will have them no more.
#pragma once

#include <unistd.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/epoll_loop.h"
#include "base/log.h"
#include "base/status.h"
#include "cli/metrics_service.h"
#include "cli/serving.h"
#include "cli/trace_service.h"
#include "nlohmann/json.hpp"
#include "rpc/channel.h"
#include "rpc/server.h"
#include "rpc/session_client.h"
#include "transfer/endpoint.h"

namespace penstock::cli {

struct MemberFlags {
  std::string coordinator;
  std::string name;
  std::string host = "127.0.0.1";
  int port = 0;
  std::string transfer;
  std::string socket_folder;
  std::string secret_file;
  std::string ready_file;
  TraceFlags trace;
  MetricsFlags metrics;
};
// `role` is "prefill", "decode" or "kvstore".
void AddMemberFlags(CLI::App& command, const char* role, MemberFlags& flags);

// INVALID_ARGUMENT naming the flag.
absl::StatusOr<transfer::Endpoint::Options> MakeEndpoint(const MemberFlags& flags,
                                                         std::string_view role);

// What a file holds that others must not read. INVALID_ARGUMENT naming the flag: they may, or it has
// fewer bytes than bytes_min, or more than 4,096.
absl::StatusOr<std::string> ReadPrivateFile(std::string_view flag, const std::string& file,
                                            std::int64_t bytes_min);

// The cluster's secret, by which frames of the store are known; empty where no file is named.
// As ReadPrivateFile, of 16 bytes at least.
absl::StatusOr<std::vector<std::byte>> ReadSecret(const std::string& file);

// Who takes part, as others know it.
struct MemberInfo {
  std::string role;
  std::string name;
  std::uint64_t epoch = 0;
  std::string transfer_address;
};

// Takes part in the cluster until a signal comes, or the coordinator will have it no more. `parts` is
// a worker or a store node: it has a loop, on which the member lives.
template <typename Member, typename Parts>
absl::Status TakePart(const MemberFlags& flags, Parts& parts, rpc::Server& server,
                      const MemberInfo& info, rpc::WorkerRegistration registration) {
  struct {
    absl::Mutex mutex;
    bool over ABSL_GUARDED_BY(mutex) = false;
    absl::Status why ABSL_GUARDED_BY(mutex);
  } end;
  std::unique_ptr<Member> member;  // On the loop.
  ASSIGN_OR_RETURN(const std::vector<std::string> coordinators,
                   rpc::SplitAddresses("--coordinator", flags.coordinator));
  parts.loop().Run([&] {
    member = std::make_unique<Member>(
        parts, typename Member::Options{.session = {.coordinators = coordinators},
                                        .registration = std::move(registration),
                                        .on_end = [&end](const absl::Status& why) {
                                          const absl::MutexLock lock(&end.mutex);
                                          end.over = true;
                                          end.why = why;
                                          RaiseEnd();
                                        }});
  });
  auto metrics = std::make_unique<MetricsPart>(info.role, info.name);
  metrics->sources().AddOn(parts.loop(),
                           [&member](MetricsWriter& writer) { member->WriteMetrics(writer); });
  absl::Status written = metrics->Serve(flags.metrics);
  server.SetServing(true);
  LOG_INFO("member ready", {{"role", info.role},
                            {"name", info.name},
                            {"grpc", server.address()},
                            {"transfer", info.transfer_address}});
  if (written.ok()) {
    nlohmann::ordered_json ready = {{"name", info.name},
                                    {"grpc", server.address()},
                                    {"transfer", info.transfer_address},
                                    {"epoch", info.epoch},
                                    {"pid", ::getpid()}};
    if (!metrics->address().empty()) ready["metrics"] = metrics->address();
    written = WriteReadyFile(flags.ready_file, ready);
  }
  const int signal = written.ok() ? WaitForSignal() : 0;
  server.SetServing(false);
  LOG_INFO("member ends", {{"name", info.name}, {"signal", signal}});
  absl::Status why = written;
  {
    absl::MutexLock lock(&end.mutex);
    if (!end.over) {
      parts.loop().Post([&member] { member->Leave(); });
      end.mutex.AwaitWithTimeout(absl::Condition(&end.over), absl::Seconds(1));
    }
    if (why.ok()) why = end.why;
  }
  metrics.reset();  // It reads the member.
  parts.loop().Run([&] { member.reset(); });
  return why;
}

}  // namespace penstock::cli
