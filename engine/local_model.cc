// SPDX-License-Identifier: Apache-2.0
#include "engine/local_model.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "device/cuda_device.h"
#include "engine/self_check.h"
#include "transfer/nccl_collectives.h"

namespace penstock::engine {
namespace {

// A cgroup's share in CPUs, rounded up ("200000 100000" is 2); 0 where there is no limit.
int CgroupCpus() {
  const absl::StatusOr<std::string> text = ReadFile("/sys/fs/cgroup/cpu.max", 256);
  if (!text.ok()) return 0;
  std::int64_t quota = 0, period = 0;
  const char* end = text->data() + text->size();
  const auto [after, error] = std::from_chars(text->data(), end, quota);
  if (error != std::errc() || after == end) return 0;
  if (std::from_chars(after + 1, end, period).ec != std::errc() || period <= 0) return 0;
  return static_cast<int>(std::min<std::int64_t>((quota + period - 1) / period, 1024));
}

}  // namespace

int AvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails on machines with more CPUs than the set can name; those have plenty.
  int cpus = ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : CPU_SETSIZE;
  if (const int granted = CgroupCpus(); granted > 0) cpus = std::min(cpus, granted);
  return std::max(cpus, 1);
}

absl::StatusOr<std::unique_ptr<LocalModel>> LocalModel::Open(const std::string& path) {
  std::unique_ptr<LocalModel> model(new LocalModel);
  ASSIGN_OR_RETURN(model->file_, model::ModelFile::Open(path));
  ASSIGN_OR_RETURN(model->tokenizer_, model::Tokenizer::Make(model->file_->vocabulary()));
  if (model->has_chat_template()) {
    model->chat_template_ = model::ChatTemplate::Compile(*model->file_->chat_template());
  } else {
    model->chat_template_ = absl::NotFoundError(absl::StrCat(path, " has no chat template"));
  }
  return model;
}

absl::StatusOr<const model::ChatTemplate*> LocalModel::chat_template() const {
  RETURN_IF_ERROR(chat_template_.status());
  return chat_template_->get();
}

absl::Status LocalModel::Load(const Options& options,
                              absl::FunctionRef<void(std::size_t, std::size_t)> progress) {
  CHECK(shards_.empty());
  options_ = options;
  if (options_.threads == 0) {
    options_.threads =
        options_.cpus.empty() ? AvailableCpus() : static_cast<int>(options_.cpus.size());
  }
  if (options_.pace.has_value()) {
    RETURN_IF_ERROR(options_.pace->Validate());
    options_.threads = 1;
  }
  RETURN_IF_ERROR(CheckParts(options_));
  if (options_.numerics == kernels::Numerics::kFast && options_.cuda == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("numerics fast are for GPUs, and the device is ",
                     options_.pace.has_value() ? "paced" : "the CPU",
                     ", whose only ones are exact: give it --device cuda, or --numerics exact"));
  }
  if (options_.cuda != nullptr && std::ssize(options_.gpus) != devices()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "each of ", devices(), " shards takes a GPU of its own, got ", options_.gpus.size()));
  }
  RETURN_IF_ERROR(options_.cuda == nullptr ? MakeCpuShards() : MakeGpuShards());
  ASSIGN_OR_RETURN(const std::vector<MemoryPlan> plans, PlanMemory(options_, available_bytes_));
  plan_ = std::ranges::max(plans, {}, [](const MemoryPlan& plan) { return plan.device_bytes(); });
  if (options_.pace.has_value()) return absl::OkStatus();
  return LoadWeights(progress);
}

absl::Status LocalModel::CheckParts(const Options& options) const {
  RETURN_IF_ERROR(CheckStages(architecture(), options.stages));
  RETURN_IF_ERROR(CheckSplit(architecture(), file_->tensors(), options.shards, options.sums));
  if (!options.pace.has_value()) return absl::OkStatus();
  if (options.sums > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a paced model computes nothing: it takes 1 partial sum, got ", options.sums));
  }
  if (options.stages > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a paced model computes nothing: it takes 1 stage, got ", options.stages));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MemoryPlan>> LocalModel::PlanMemory(const Options& options,
                                                               std::size_t available_bytes) const {
  RETURN_IF_ERROR(CheckParts(options));
  std::vector<StageWeights> parts;
  for (std::int32_t stage = 0; stage < options.stages; ++stage) {
    // The last shard is the largest.
    const Weights::Options last = WeightsOptions(options, (stage + 1) * options.shards - 1);
    parts.push_back({.part = last.part,
                     .bytes = options.pace.has_value() ? 0 : Weights::BytesOf(*file_, last)});
  }
  MemoryRequest memory = options.memory;
  memory.fast_products = options.numerics == kernels::Numerics::kFast;
  return PlanStages(architecture(), parts, memory, available_bytes);
}

ThreadPool::Options LocalModel::ThreadsOf(std::int32_t device) const {
  const std::int32_t begin = options_.threads * device / devices();
  const std::int32_t end = options_.threads * (device + 1) / devices();
  ThreadPool::Options threads = {.threads = std::max(end - begin, 1)};
  // Fewer CPUs than devices: nobody is pinned.
  if (!options_.cpus.empty() && options_.threads >= devices()) {
    threads.cpus.assign(options_.cpus.begin() + begin, options_.cpus.begin() + end);
  }
  return threads;
}

absl::Status LocalModel::MakeCpuShards() {
  for (std::int32_t i = 0; i < devices(); ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<CpuDevice> cpu, CpuDevice::Make(ThreadsOf(i)));
    Shard& shard = shards_.emplace_back();
    shard.threads = &cpu->threads();
    shard.ops = kernels::MakeCpuOps(*cpu);
    shard.device = std::move(cpu);
  }
  available_bytes_ = AvailableBytes() / shards_.size();
  return absl::OkStatus();
}

Weights::Options LocalModel::WeightsOptions(const Options& options, std::int32_t device) {
  return {.widen_to_f32 = options.float_activations,
          .digest = options.for_peers && device == 0,  // Of the whole model: once is enough.
          .part = PartOf(device, options.stages, options.shards, options.sums)};
}

absl::Status LocalModel::LoadWeights(absl::FunctionRef<void(std::size_t, std::size_t)> progress) {
  // One device after the other, each with the threads of all.
  std::unique_ptr<ThreadPool> of_all;
  if (shards_.size() > 1) {
    ASSIGN_OR_RETURN(of_all,
                     ThreadPool::Make({.threads = options_.threads, .cpus = options_.cpus}));
  }
  ThreadPool& threads = of_all == nullptr ? *shards_[0].threads : *of_all;
  std::size_t all = 0, done = 0;
  for (std::int32_t i = 0; i < devices(); ++i) {
    all += Weights::BytesOf(*file_, WeightsOptions(options_, i));
  }
  for (std::int32_t i = 0; i < devices(); ++i) {
    Shard& shard = shards_[static_cast<std::size_t>(i)];
    ASSIGN_OR_RETURN(
        shard.weights,
        Weights::Load(*file_, *shard.device, threads, WeightsOptions(options_, i),
                      [&](std::size_t own, std::size_t) { progress(done + own, all); }));
    if (shard.gpu != nullptr && options_.numerics == kernels::Numerics::kExact) {
      RETURN_IF_ERROR(CheckRowsAlike(*shard.device, *shard.ops, *shard.weights));
    }
    done += shard.weights->bytes();
  }
  return absl::OkStatus();
}

transfer::CollectivesMaker LocalModel::Exchanges() const {
  if (options_.cuda == nullptr || options_.shards == 1) return {};
  return [](std::span<Device* const> devices, Duration patience) {
    absl::StatusOr<std::vector<std::unique_ptr<transfer::Collectives>>> ends =
        transfer::MakeNcclCollectives(devices, patience);
    if (ends.ok()) return *std::move(ends);
    LOG_INFO("shards exchange by copies", {{"why", ToStd(ends.status().message())}});
    return transfer::MakeLocalCollectives(static_cast<std::int32_t>(devices.size()), patience);
  };
}

OnExchangeFailed LocalModel::WhenExchangesFail() const {
  if (group_ == nullptr) return {};
  return [group = group_.get()](const absl::Status& why) { group->ExchangeFailed(why); };
}

std::vector<ShardParts> LocalModel::Parts() const {
  std::vector<ShardParts> parts;
  for (const Shard& shard : shards_) {
    parts.push_back({shard.device.get(), shard.ops.get(), shard.weights.get()});
  }
  return parts;
}

absl::Status LocalModel::MakeGpuShards() {
  if (options_.pace.has_value()) {
    return absl::InvalidArgumentError("a paced model computes nothing: it takes no GPU");
  }
  options_.memory.device_memory = true;
  available_bytes_ = std::numeric_limits<std::size_t>::max();
  for (std::int32_t i = 0; i < devices(); ++i) {
    const int number = options_.gpus[static_cast<std::size_t>(i)];
    ASSIGN_OR_RETURN(
        std::unique_ptr<CudaDevice> gpu,
        CudaDevice::Make(*options_.cuda, ThreadsOf(i), number, options_.on_gpu_failed));
    ASSIGN_OR_RETURN(std::unique_ptr<kernels::Ops> ops,
                     kernels::MakeCudaOps(*gpu, options_.numerics));
    ASSIGN_OR_RETURN(const std::size_t free_bytes, gpu->FreeBytes());
    available_bytes_ = std::min(available_bytes_, free_bytes);
    Shard& shard = shards_.emplace_back();
    shard.threads = &gpu->threads();
    shard.gpu = gpu.get();
    shard.ops = std::move(ops);
    shard.device = std::move(gpu);
  }
  if (shards_.size() > 1) group_ = std::make_unique<GpuGroup>(gpus(), options_.on_gpu_failed);
  const CudaGpu& first = shards_[0].gpu->about();
  for (const Shard& shard : shards_) {
    if (Alike(first, shard.gpu->about())) continue;
    LOG_WARNING(
        "GPUs are of unlike models: each step takes as long as the slowest's part",
        {{"gpu", penstock::Describe(first)}, {"other", penstock::Describe(shard.gpu->about())}});
    break;
  }
  return absl::OkStatus();
}

NamespaceFields LocalModel::namespace_fields() const {
  CHECK(!shards_.empty());
  const model::Architecture& a = architecture();
  NamespaceFields fields;
  fields.model = absl::StrCat(a.family, "/", a.layers.size(), "x", a.d_model);
  fields.weights = options_.pace.has_value() ? "none"
                   : options_.for_peers      ? shards_[0].weights->digest()
                                             : absl::StrCat("local:", file_->path());
  fields.kv_dtype = std::string(ToString(options_.memory.kv_dtype));
  fields.rope_mode = "absolute";
  fields.numerics = options_.pace.has_value()
                        ? "paced-1"
                        : shards_[0].ops->numerics() + NumericsSuffix(options_.sums) +
                              (options_.float_activations ? "+f32" : "");
  fields.loss_class = "exact";
  return fields;
}

std::vector<std::pair<std::string, std::string>> LocalModel::Identity() const {
  const NamespaceFields fields = namespace_fields();
  std::string kv_format = absl::StrCat("blocks of ", options_.memory.block_tokens);
  for (const KvGroup& g : architecture().MakeKvSpec(options_.memory.kv_dtype).groups) {
    absl::StrAppend(&kv_format, "; ", g.cache_layers, " layers x ", g.kv_heads, " heads x (",
                    g.k_dim, "+", g.v_dim, ") ", ToAbsl(ToString(g.dtype)));
    if (g.window_tokens != 0) absl::StrAppend(&kv_format, ", window ", g.window_tokens);
  }
  return {{"protocol", "1"},
          {"model", fields.model},
          {"weights", fields.weights},
          {"kv format", kv_format},
          {"numerics", fields.numerics}};
}

absl::StatusOr<std::unique_ptr<Engine>> LocalModel::MakeEngine() {
  CHECK(!shards_.empty());
  Engine::Options engine;
  engine.sequences_max = options_.memory.sequences;
  engine.chunk_tokens = options_.memory.chunk_tokens;
  engine.step_tokens = std::max(options_.memory.chunk_tokens, options_.memory.sequences);
  engine.context_tokens_max = plan_.context_tokens;
  engine.pool.pool_bytes = plan_.pool_bytes;
  engine.pool.stages = options_.stages;
  engine.pool.shared = options_.for_peers;
  engine.pool.block_tokens = options_.memory.block_tokens;
  engine.pool.page_tokens = options_.memory.page_tokens;
  if (options_.pace.has_value()) return MakePacedEngine(engine);
  const std::vector<ShardParts> shards = Parts();
  Engine::Parts parts;
  parts.architecture = &architecture();
  parts.shards = shards;
  parts.collectives = Exchanges();
  parts.exchange_failed = WhenExchangesFail();
  parts.kv_dtype = options_.memory.kv_dtype;
  parts.spaces = MakeLossSpaces(namespace_fields());
  parts.end_of_generation = tokenizer_->data().end_of_generation;
  return Engine::Make(parts, engine);
}

absl::StatusOr<std::unique_ptr<Engine>> LocalModel::MakePacedEngine(
    const Engine::Options& options) {
  Engine::RunnerParts parts;
  ASSIGN_OR_RETURN(
      parts.pool,
      KvPool::Make(device(), architecture().MakeKvSpec(options_.memory.kv_dtype), options.pool));
  parts.runner = std::make_unique<PacedRunner>(
      *parts.pool, PacedRunner::Options{.pace = *options_.pace,
                                        .vocab = architecture().vocab,
                                        .rows_max = options.step_tokens,
                                        .logit_rows_max = options.sequences_max});
  parts.vocab = architecture().vocab;
  parts.context_tokens_max = architecture().context_tokens_max;
  parts.spaces = MakeLossSpaces(namespace_fields());
  parts.end_of_generation = tokenizer_->data().end_of_generation;
  return Engine::MakeOn(std::move(parts), options);
}

absl::StatusOr<std::unique_ptr<KvPool>> LocalModel::MakePool(KvDtype dtype) {
  CHECK(!shards_.empty());
  MemoryRequest request = options_.memory;
  const auto block_bytes = [&](KvDtype of) {
    request.kv_dtype = of;
    return SequenceKvBytes(architecture(), request, request.block_tokens);
  };
  const std::size_t own = block_bytes(options_.memory.kv_dtype);
  KvPool::Options pool;
  pool.pool_bytes = plan_.pool_bytes;
  if (dtype != options_.memory.kv_dtype && own > 0) {
    pool.pool_bytes = (plan_.pool_bytes + own - 1) / own * block_bytes(dtype);
  }
  pool.block_tokens = options_.memory.block_tokens;
  pool.page_tokens = options_.memory.page_tokens;
  pool.stages = options_.stages;
  return engine::MakePool(architecture(), Parts(), dtype, pool);
}

absl::StatusOr<std::unique_ptr<StepRunner>> LocalModel::MakeRunner(KvPool& pool) {
  CHECK(!shards_.empty() && shards_[0].weights != nullptr);
  return engine::MakeRunner(architecture(), Parts(), pool,
                            {.rows_max = options_.memory.chunk_tokens,
                             .logit_rows_max = options_.memory.logit_rows,
                             .collectives = Exchanges(),
                             .exchange_failed = WhenExchangesFail()});
}

}  // namespace penstock::engine
