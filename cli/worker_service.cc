// SPDX-License-Identifier: Apache-2.0
// penstock prefill, penstock decode: one worker each, until a signal ends it.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "base/log.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/gpu_pairs.h"
#include "cli/member_service.h"
#include "cli/store_codecs.h"
#include "cli/terminal.h"
#include "decode/decode_member.h"
#include "decode/decode_service.h"
#include "decode/decode_worker.h"
#include "device/cpu_info.h"
#include "prefill/prefill_member.h"
#include "prefill/prefill_service.h"
#include "prefill/prefill_worker.h"
#include "rpc/server.h"
#include "worker/store_part.h"

namespace penstock::cli {
namespace {

struct WorkerFlags {
  ModelFlags model;
  MemberFlags member;
  std::string model_name;
  std::int32_t sequences = 16;
  std::uint64_t link_bytes = NcclBytesOfOneLink();
  bool no_store = false;
  bool import_first = false;
  StoreCodecFlags codecs;
  std::string store_write = "through";
};

// For people.
std::string DeviceOf(engine::LocalModel& model) {
  const engine::LocalModel::Options& options = model.options();
  if (options.pace.has_value()) return "paced";
  std::string split;
  if (options.stages > 1) absl::StrAppend(&split, options.stages, " stages, ");
  if (options.shards > 1) absl::StrAppend(&split, options.shards, " shards, ");
  if (options.cuda != nullptr) return absl::StrCat(split, model.device().Describe());
  const int threads = options.threads;
  return absl::StrCat(split, "cpu: ", threads, threads == 1 ? " thread, " : " threads, ",
                      penstock::Describe(ThisCpu()));
}

v1::DescribeResponse Describe(engine::LocalModel& model, const transfer::Peer& self, v1::Role role,
                              const std::string& transfer_address) {
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
  description.set_pool_bytes(model.plan().pool_bytes);
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

MemberInfo InfoOf(const v1::DescribeResponse& description) {
  return {.role = description.role() == v1::ROLE_PREFILL ? "prefill" : "decode",
          .name = description.name(),
          .epoch = description.epoch(),
          .transfer_address = description.transfer_address()};
}

absl::StatusOr<std::optional<worker::StorePart::Options>> MakeStore(const WorkerFlags& flags,
                                                                    const engine::LocalModel& model,
                                                                    SpanRing* spans) {
  if (flags.no_store) return std::nullopt;
  ASSIGN_OR_RETURN(StoreCodecs codecs, MakeStoreCodecs(flags.codecs, model));
  ASSIGN_OR_RETURN(std::vector<std::byte> secret, ReadSecret(flags.member.secret_file));
  worker::StorePart::Options options;
  options.keeper.forms = std::move(codecs.kept);
  options.keeper.choose = codecs.choose;
  options.fetched = std::move(codecs.fetched);
  options.keeper.secret = std::move(secret);
  options.keeper.spans = spans;
  options.keeper.at_seal = flags.store_write == "through";
  return options;
}

absl::StatusOr<std::unique_ptr<engine::LocalModel>> Load(const WorkerFlags& flags,
                                                         const std::vector<transfer::Kind>& kinds) {
  ASSIGN_OR_RETURN(engine::LocalModel::Options options, MakeOptions(flags.model));
  options.for_peers = true;
  options.memory.sequences = flags.sequences;
  options.memory.logit_rows = flags.sequences;
  const bool nccl = std::ranges::find(kinds, transfer::Kind::kNccl) != kinds.end();
  if (nccl && options.cuda != nullptr) options.memory.links_bytes = flags.link_bytes;
  ASSIGN_OR_RETURN(std::unique_ptr<engine::LocalModel> model, OpenModel(flags.model));
  RETURN_IF_ERROR(LoadModel(*model, options));
  return model;
}

absl::StatusOr<int> RunPrefill(const WorkerFlags& flags) {
  BlockSignals();
  SetLogLevel(LogLevel::kInfo);
  prefill::PrefillWorker::Options options;
  ASSIGN_OR_RETURN(options.endpoint, MakeEndpoint(flags.member, "prefill"));
  const TracePart trace(flags.member.trace, "prefill", options.endpoint.self.name);
  options.spans = trace.spans();
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model,
                   Load(flags, options.endpoint.kinds));
  ASSIGN_OR_RETURN(options.store, MakeStore(flags, *model, trace.spans()));
  options.import_first = flags.import_first;
  ASSIGN_OR_RETURN(const std::unique_ptr<prefill::PrefillWorker> worker,
                   prefill::PrefillWorker::Start(*model, options));
  const v1::DescribeResponse description =
      Describe(*model, options.endpoint.self, v1::ROLE_PREFILL, worker->transfer_address());
  const std::unique_ptr<grpc::Service> service = prefill::MakePrefillService(
      {.loop = &worker->loop(), .state = &worker->state(), .description = description});
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.host = flags.member.host, .port = flags.member.port},
                                      {service.get(), trace.service()}));
  RETURN_IF_ERROR(TakePart<prefill::PrefillMember>(
      flags.member, *worker, *server, InfoOf(description),
      RegistrationOf(flags, *model, description, server->address())));
  return kExitOk;
}

absl::StatusOr<int> RunDecode(const WorkerFlags& flags) {
  BlockSignals();
  SetLogLevel(LogLevel::kInfo);
  decode::DecodeWorker::Options options;
  ASSIGN_OR_RETURN(options.endpoint, MakeEndpoint(flags.member, "decode"));
  const TracePart trace(flags.member.trace, "decode", options.endpoint.self.name);
  options.spans = trace.spans();
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model,
                   Load(flags, options.endpoint.kinds));
  ASSIGN_OR_RETURN(options.store, MakeStore(flags, *model, trace.spans()));
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
                   rpc::Server::Start({.host = flags.member.host, .port = flags.member.port},
                                      {service.get(), trace.service()}));
  RETURN_IF_ERROR(TakePart<decode::DecodeMember>(
      flags.member, *worker, *server, InfoOf(description),
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
  AddSplitFlags(*sub, flags->model);
  AddMemberFlags(*sub, name, flags->member);
  sub->add_option("--model-name", flags->model_name, "What requests call the model")->required();
  sub->add_option("--sequences", flags->sequences, "Requests that run together at most")
      ->capture_default_str();
  sub->add_option(
         "--link-bytes", flags->link_bytes,
         "Of each GPU's memory, kept for links of kind nccl; of one link, where absent. What "
         "`penstock up` gives is for all pairs that its file has")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("56MiB");
  constexpr const char* kStoreGroup = "KV store";
  sub->add_flag("--no-store", flags->no_store,
                "Take no part in the cluster's KV store: keep nothing there, fetch nothing")
      ->group(kStoreGroup);
  if (command == &RunPrefill) {
    sub->add_flag("--import-first", flags->import_first,
                  "Fetch all that is reused before computing the rest, however slow the way: "
                  "nothing is computed beside a fetch")
        ->group(kStoreGroup);
  }
  AddStoreCodecFlags(*sub, flags->codecs);
  sub->add_option("--store-write", flags->store_write,
                  "When blocks are offered: as they are full (through), or as they leave this "
                  "worker's memory (back)")
      ->check(CLI::IsMember({"through", "back"}))
      ->capture_default_str()
      ->group(kStoreGroup);
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
