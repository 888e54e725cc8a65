// SPDX-License-Identifier: Apache-2.0
// A model made ready to run in this process: opens what is on disk, and on Load puts the parts of
// an engine together, on the CPU or on GPUs. Commands and workers use this one place.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<LocalModel> model, LocalModel::Open(path));
//   ... model->tokenizer() ...
//   RETURN_IF_ERROR(model->Load(options, progress));
//   ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, model->MakeEngine());
//
// One thread at a time, the one that called Load: it is worker 0 of the thread pool. Engines and
// forward passes made from a LocalModel must not outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "device/cpu_device.h"
#include "device/cuda_api.h"
#include "device/device.h"
#include "device/gpu_failure.h"
#include "device/gpu_group.h"
#include "device/thread_pool.h"
#include "engine/engine.h"
#include "engine/memory_plan.h"
#include "engine/model_parts.h"
#include "engine/paced_runner.h"
#include "engine/weights.h"
#include "kernels/ops.h"
#include "model/chat_template.h"
#include "model/model_file.h"
#include "model/tokenizer.h"
#include "transfer/collectives.h"

namespace penstock::engine {

class LocalModel {
 public:
  struct Options {
    int threads = 0;        // 0: AvailableCpus().
    std::vector<int> cpus;  // Empty: not pinned. Else one per thread.
    bool float_activations = false;
    // A worker's: weights get a digest that names them anywhere, and processes of this host may map
    // the KV pool.
    bool for_peers = false;
    // Nothing is computed and no weights are loaded: paced_runner.h. It has no forward pass.
    std::optional<Pace> pace;
    // Null: computes on the CPU. Else on GPUs of this plug-in's, by the same numbers; `threads` are
    // then those of packing and sampling.
    const CudaPlugin* cuda = nullptr;
    // One per device, as ModelPart counts them, of those that the process may see.
    std::vector<int> gpus = {0};
    OnGpuFailed on_gpu_failed = nullptr;  // From Load on.
    // kFast needs `cuda`, and memory of which PlanMemory knows: kernels/fast_products.h, fast_attention.h.
    kernels::Numerics numerics = kernels::Numerics::kExact;
    // Computed by so many stages one after the other, each of so many shards side by side, all with
    // an equal share of the threads, in so many partial sums: engine/pipeline_stage.h. Answers
    // depend on `sums` alone.
    std::int32_t stages = 1;
    std::int32_t shards = 1;
    std::int32_t sums = 1;
    MemoryRequest memory;
  };

  // Reads what a file says about itself; no weights. As ModelFile::Open, Tokenizer::Make and
  // ChatTemplate::Compile (a template that does not compile only makes chat_template() fail).
  static absl::StatusOr<std::unique_ptr<LocalModel>> Open(const std::string& path);

  const model::ModelFile& file() const { return *file_; }
  const model::Architecture& architecture() const { return file_->architecture(); }
  const model::Tokenizer& tokenizer() const { return *tokenizer_; }
  bool has_chat_template() const { return file_->chat_template().has_value(); }
  // NOT_FOUND where the model has none; else what compiling it said.
  absl::StatusOr<const model::ChatTemplate*> chat_template() const;

  // Checks the memory, then loads the weights. `progress` gets bytes done and in all. Call once.
  // INVALID_ARGUMENT for options out of range, RESOURCE_EXHAUSTED with both numbers for too little
  // memory. With `cuda`: UNAVAILABLE without a GPU that works, FAILED_PRECONDITION for one that, asked
  // for exact numerics, fails engine/self_check.h; for fast ones UNIMPLEMENTED without cuBLASLt, INTERNAL where it does not
  // start.
  // Several shards or stages: as CheckSplit and CheckStages.
  absl::Status Load(const Options& options,
                    absl::FunctionRef<void(std::size_t, std::size_t)> progress);

  // What Load with these options will take on the devices of each stage, where available_bytes are
  // free for each. As Load; looks at no device.
  absl::StatusOr<std::vector<MemoryPlan>> PlanMemory(const Options& options,
                                                     std::size_t available_bytes) const;

  // After Load. As Engine::Make, MakePool and MakeRunner.
  absl::StatusOr<std::unique_ptr<Engine>> MakeEngine();
  absl::StatusOr<std::unique_ptr<KvPool>> MakePool() { return MakePool(options_.memory.kv_dtype); }
  // For as many tokens in another type. The memory plan knows nothing of it.
  absl::StatusOr<std::unique_ptr<KvPool>> MakePool(KvDtype dtype);
  absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(KvPool& pool);

  // What names the blocks of engines made here. `weights` is the digest, or, without for_peers, the
  // path, in which no other process can be met.
  NamespaceFields namespace_fields() const;
  // What two workers must have in common to compute KV for each other: name and value of each
  // field.
  std::vector<std::pair<std::string, std::string>> Identity() const;

  const MemoryPlan& plan() const { return plan_; }  // Of the device that has most.
  const Options& options() const { return options_; }
  Device& device() { return *shards_[0].device; }  // The first one.
  // Those that it computes on, as ModelPart counts its devices; none where it is on CPUs.
  std::vector<CudaDevice*> gpus() const {
    std::vector<CudaDevice*> all;
    for (const Shard& shard : shards_) {
      if (shard.gpu != nullptr) all.push_back(shard.gpu);
    }
    return all;
  }

 private:
  LocalModel() = default;
  absl::Status CheckParts(const Options& options) const;
  absl::Status MakeCpuShards();
  absl::Status MakeGpuShards();
  std::int32_t devices() const { return options_.stages * options_.shards; }
  ThreadPool::Options ThreadsOf(std::int32_t device) const;
  // As Weights::Load, of all devices.
  absl::Status LoadWeights(absl::FunctionRef<void(std::size_t, std::size_t)> progress);
  static Weights::Options WeightsOptions(const Options& options, std::int32_t device);
  std::vector<ShardParts> Parts() const;
  // NCCL's between GPUs where it is there.
  transfer::CollectivesMaker Exchanges() const;
  OnExchangeFailed WhenExchangesFail() const;
  absl::StatusOr<std::unique_ptr<Engine>> MakePacedEngine(const Engine::Options& options);

  std::unique_ptr<model::ModelFile> file_;
  std::unique_ptr<model::Tokenizer> tokenizer_;
  absl::StatusOr<std::unique_ptr<model::ChatTemplate>> chat_template_;
  Options options_;
  MemoryPlan plan_;
  std::size_t available_bytes_ = 0;  // For each device.
  struct Shard {
    std::unique_ptr<Device> device;
    CudaDevice* gpu = nullptr;      // The same, where it is one.
    ThreadPool* threads = nullptr;  // The device's.
    std::unique_ptr<kernels::Ops> ops;
    std::unique_ptr<Weights> weights;  // Null while not loaded, and where paced.
  };
  std::vector<Shard> shards_;
  std::unique_ptr<GpuGroup> group_;  // Of several GPUs; else null. After them: it goes first.
};

// The CPUs that this process may use at the same time: its affinity mask, and less where a cgroup
// grants less time. At least 1.
int AvailableCpus();

}  // namespace penstock::engine
