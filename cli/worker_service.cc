// SPDX-License-Identifier: Apache-2.0
// penstock prefill, penstock decode: one worker each, until a signal ends it.
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "CLI/App.hpp"
#include "absl/base/thread_annotations.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "base/status.h"
#include "base/time.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/metrics_service.h"
#include "cli/serving.h"
#include "cli/terminal.h"
#include "cli/trace_service.h"
#include "decode/decode_member.h"
#include "decode/decode_service.h"
#include "decode/decode_worker.h"
#include "device/cpu_info.h"
#include "nlohmann/json.hpp"
#include "prefill/prefill_member.h"
#include "prefill/prefill_service.h"
#include "prefill/prefill_worker.h"
#include "rpc/channel.h"
#include "rpc/server.h"

namespace penstock::cli {
namespace {

struct WorkerFlags {
  ModelFlags model;
  std::string coordinator;
  std::string model_name;
  std::string name;
  std::string host = "127.0.0.1";
  int port = 0;
  std::string transfer = "shm,tcp";
  std::string socket_folder;
  std::int32_t sequences = 16;
  std::string ready_file;
  TraceFlags trace;
  MetricsFlags metrics;
};

absl::StatusOr<std::vector<transfer::Kind>> ParseKinds(std::string_view text) {
  std::vector<transfer::Kind> kinds;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    if (word == "shm") {
      kinds.push_back(transfer::Kind::kShm);
    } else if (word == "tcp") {
      kinds.push_back(transfer::Kind::kTcp);
    } else if (word == "ucx") {
      kinds.push_back(transfer::Kind::kUcx);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("--transfer must be a list of shm, ucx and tcp, got '", ToAbsl(word), "'"));
    }
    begin = end + 1;
  }
  return kinds;
}

absl::StatusOr<transfer::Endpoint::Options> MakeEndpoint(const WorkerFlags& flags,
                                                         std::string_view role) {
  transfer::Endpoint::Options options;
  options.self.name = flags.name.empty() ? absl::StrCat(ToAbsl(role), "-", ::getpid()) : flags.name;
  options.self.epoch = NewEpoch();
  ASSIGN_OR_RETURN(options.kinds, ParseKinds(flags.transfer));
  options.socket_folder = flags.socket_folder.empty()
                              ? std::filesystem::temp_directory_path().string()
                              : flags.socket_folder;
  options.tcp_host = flags.host;
  return options;
}

// For people.
std::string DeviceOf(const engine::LocalModel& model) {
  if (model.options().pace.has_value()) return "paced";
  const int threads = model.options().threads;
  return absl::StrCat("cpu: ", threads, threads == 1 ? " thread, " : " threads, ",
                      penstock::Describe(ThisCpu()));
}

v1::DescribeResponse Describe(const engine::LocalModel& model, const transfer::Peer& self,
                              v1::Role role, const std::string& transfer_address) {
  v1::DescribeResponse description;
  description.set_name(self.name);
  description.set_epoch(self.epoch);
  description.set_role(role);
  for (const auto& [name, value] : model.Identity()) {
    v1::Identity::Field* const field = description.mutable_identity()->add_fields();
    field->set_name(name);
    field->set_value(value);
  }
  description.set_transfer_address(transfer_address);
  description.set_pool_bytes(model.plan().kv_bytes);
  description.set_block_tokens(model.options().memory.block_tokens);
  description.set_device(DeviceOf(model));
  description.set_context_tokens(model.plan().context_tokens);
  return description;
}

rpc::WorkerRegistration RegistrationOf(const WorkerFlags& flags, const engine::LocalModel& model,
                                       const v1::DescribeResponse& description,
                                       const std::string& endpoint) {
  return {.name = description.name(),
          .model = flags.model_name,
          .identity = model.Identity(),
          .endpoint = endpoint,
          .transfer_address = description.transfer_address(),
          .transfer_epoch = description.epoch(),
          .sequences_max = static_cast<std::uint32_t>(flags.sequences),
          .context_tokens = description.context_tokens(),
          .device = description.device(),
          .pid = static_cast<std::uint64_t>(::getpid())};
}

// Takes part in the cluster until a signal comes, or the coordinator will have it no more.
template <typename Member, typename Worker>
absl::Status TakePart(const WorkerFlags& flags, Worker& worker, rpc::Server& server,
                      const v1::DescribeResponse& description,
                      rpc::WorkerRegistration registration) {
  struct {
    absl::Mutex mutex;
    bool over ABSL_GUARDED_BY(mutex) = false;
    absl::Status why ABSL_GUARDED_BY(mutex);
  } end;
  std::unique_ptr<Member> member;  // On the loop.
  ASSIGN_OR_RETURN(const std::vector<std::string> coordinators,
                   rpc::SplitAddresses("--coordinator", flags.coordinator));
  worker.loop().Run([&] {
    member = std::make_unique<Member>(
        worker, typename Member::Options{.session = {.coordinators = coordinators},
                                         .registration = std::move(registration),
                                         .on_end = [&end](const absl::Status& why) {
                                           const absl::MutexLock lock(&end.mutex);
                                           end.over = true;
                                           end.why = why;
                                           RaiseEnd();
                                         }});
  });
  auto metrics = std::make_unique<MetricsPart>(
      description.role() == v1::ROLE_PREFILL ? "prefill" : "decode", description.name());
  metrics->sources().AddOn(worker.loop(),
                           [&member](MetricsWriter& writer) { member->WriteMetrics(writer); });
  absl::Status written = metrics->Serve(flags.metrics);
  server.SetServing(true);
  LOG_INFO("worker ready", {{"name", description.name()},
                            {"grpc", server.address()},
                            {"transfer", description.transfer_address()}});
  if (written.ok()) {
    nlohmann::ordered_json ready = {{"name", description.name()},
                                    {"grpc", server.address()},
                                    {"transfer", description.transfer_address()},
                                    {"epoch", description.epoch()},
                                    {"pid", ::getpid()}};
    if (!metrics->address().empty()) ready["metrics"] = metrics->address();
    written = WriteReadyFile(flags.ready_file, ready);
  }
  const int signal = written.ok() ? WaitForSignal() : 0;
  server.SetServing(false);
  LOG_INFO("worker ends", {{"name", description.name()}, {"signal", signal}});
  absl::Status why = written;
  {
    absl::MutexLock lock(&end.mutex);
    if (!end.over) {
      worker.loop().Post([&member] { member->Leave(); });
      end.mutex.AwaitWithTimeout(absl::Condition(&end.over), absl::Seconds(1));
    }
    if (why.ok()) why = end.why;
  }
  metrics.reset();  // It reads the member.
  worker.loop().Run([&] { member.reset(); });
  return why;
}

absl::StatusOr<std::unique_ptr<engine::LocalModel>> Load(const WorkerFlags& flags) {
  ASSIGN_OR_RETURN(engine::LocalModel::Options options, MakeOptions(flags.model));
  options.for_peers = true;
  options.memory.sequences = flags.sequences;
  options.memory.logit_rows = flags.sequences;
  ASSIGN_OR_RETURN(std::unique_ptr<engine::LocalModel> model, OpenModel(flags.model));
  RETURN_IF_ERROR(LoadModel(*model, options));
  return model;
}

absl::StatusOr<int> RunPrefill(const WorkerFlags& flags) {
  BlockSignals();
  SetLogLevel(LogLevel::kInfo);
  prefill::PrefillWorker::Options options;
  ASSIGN_OR_RETURN(options.endpoint, MakeEndpoint(flags, "prefill"));
  const TracePart trace(flags.trace, "prefill", options.endpoint.self.name);
  options.spans = trace.spans();
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, Load(flags));
  ASSIGN_OR_RETURN(const std::unique_ptr<prefill::PrefillWorker> worker,
                   prefill::PrefillWorker::Start(*model, options));
  const v1::DescribeResponse description =
      Describe(*model, options.endpoint.self, v1::ROLE_PREFILL, worker->transfer_address());
  const std::unique_ptr<grpc::Service> service = prefill::MakePrefillService(
      {.loop = &worker->loop(), .state = &worker->state(), .description = description});
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.host = flags.host, .port = flags.port},
                                      {service.get(), trace.service()}));
  RETURN_IF_ERROR(TakePart<prefill::PrefillMember>(
      flags, *worker, *server, description,
      RegistrationOf(flags, *model, description, server->address())));
  return kExitOk;
}

absl::StatusOr<int> RunDecode(const WorkerFlags& flags) {
  BlockSignals();
  SetLogLevel(LogLevel::kInfo);
  decode::DecodeWorker::Options options;
  ASSIGN_OR_RETURN(options.endpoint, MakeEndpoint(flags, "decode"));
  const TracePart trace(flags.trace, "decode", options.endpoint.self.name);
  options.spans = trace.spans();
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, Load(flags));
  ASSIGN_OR_RETURN(const std::unique_ptr<decode::DecodeWorker> worker,
                   decode::DecodeWorker::Start(*model, options));
  const v1::DescribeResponse description =
      Describe(*model, options.endpoint.self, v1::ROLE_DECODE, worker->transfer_address());
  const std::unique_ptr<grpc::Service> service =
      decode::MakeDecodeService({.loop = &worker->loop(),
                                 .state = &worker->state(),
                                 .engine = &worker->engine(),
                                 .description = description});
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.host = flags.host, .port = flags.port},
                                      {service.get(), trace.service()}));
  RETURN_IF_ERROR(TakePart<decode::DecodeMember>(
      flags, *worker, *server, description,
      RegistrationOf(flags, *model, description, server->address())));
  return kExitOk;
}

void Register(CLI::App& app, Run& run, const char* name, const char* what,
              absl::StatusOr<int> (*command)(const WorkerFlags&)) {
  const auto flags = std::make_shared<WorkerFlags>();
  CLI::App* const sub = app.add_subcommand(name, what);
  AddModelFlag(*sub, flags->model);
  AddEngineFlags(*sub, flags->model);
  AddDeviceFlags(*sub, flags->model);
  sub->add_option(
         "--coordinator", flags->coordinator,
         "Address of the coordinator, HOST:PORT; of several, with commas between them, the one "
         "that leads is found")
      ->required();
  sub->add_option("--model-name", flags->model_name, "What requests call the model")->required();
  sub->add_option("--name", flags->name, "What others call this worker; unique")
      ->default_str(absl::StrCat(name, "-PID"));
  sub->add_option("--host", flags->host,
                  "Address to listen on; nothing listens beyond loopback unless this says so")
      ->capture_default_str();
  sub->add_option("--port", flags->port, "For gRPC; 0 finds a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  sub->add_option("--transfer", flags->transfer, "How KV may move, best first: shm, ucx, tcp")
      ->capture_default_str();
  sub->add_option("--socket-folder", flags->socket_folder,
                  "For shm: where the worker's Unix socket is made, for this user alone")
      ->default_str("the folder for temporary files");
  sub->add_option("--sequences", flags->sequences, "Requests that run together at most")
      ->capture_default_str();
  sub->add_option("--ready-file", flags->ready_file,
                  "Written once the worker serves: its addresses and process id, as JSON");
  AddTraceFlags(*sub, flags->trace);
  AddMetricsFlags(*sub, flags->metrics);
  sub->callback([flags, command, &run] { run = [flags, command] { return command(*flags); }; });
}

}  // namespace

void RegisterPrefill(CLI::App& app, Run& run) {
  Register(app, run, "prefill",
           "A worker that computes the KV of prompts and hands it to decode workers", RunPrefill);
}

void RegisterDecode(CLI::App& app, Run& run) {
  Register(app, run, "decode", "A worker that takes KV in and answers", RunDecode);
}

}  // namespace penstock::cli
