// SPDX-License-Identifier: Apache-2.0
// The flags that several commands share, and what they mean.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/local_model.h"

namespace penstock::cli {

// Which model, and on what it runs.
struct ModelFlags {
  std::string model;
  std::string server;  // Of a cluster that answers instead; then `model` is its name there.
  int threads = 0;
  std::string cpus;
  std::string kv_dtype = "f16";
  std::string activations = "int8";
  std::string numerics = "exact";
  std::int32_t chunk_tokens = 512;
  std::int32_t block_tokens = 32;
  std::int32_t page_tokens = 0;  // 0: 32, or a block.
  std::int32_t context_tokens = 0;
  std::uint64_t kv_bytes = 0;
  std::string device = "cpu";
  std::int32_t pp = 1;      // Stages.
  std::int32_t tp = 1;      // Shards of each.
  std::int32_t tp_sum = 0;  // Partial sums; 0: as many.
  std::string cuda_plugin;  // Empty: where LoadCudaPlugin looks by itself.
  double pace_prefill_tokens_per_s = 8000;
  double pace_step_ms = 8;
  double pace_sequence_ms = 0.2;
};
void AddModelFlag(CLI::App& command, ModelFlags& flags);    // --model alone
void AddServerFlag(CLI::App& command, ModelFlags& flags);   // --server
void AddEngineFlags(CLI::App& command, ModelFlags& flags);  // what it runs on
void AddGpuFlags(CLI::App& command, ModelFlags& flags);     // --device cpu, GPUs or auto
void AddSplitFlags(CLI::App& command, ModelFlags& flags);   // --pp, --tp, --tp-sum
// Behind all those: what a model here runs on means nothing to a cluster, and is refused beside --server.
void ServerExcludesTheRest(CLI::App& command);
// A worker's --device: cpu, GPUs or paced, and the pace of a paced one.
void AddDeviceFlags(CLI::App& command, ModelFlags& flags);

// What AddDeviceFlags reads beside the device, as arguments of another process: where the plug-in is, and
// the pace of a paced one.
std::vector<std::string> DeviceArguments(const ModelFlags& flags);

// INVALID_ARGUMENT naming the flag. What the command itself decides (sequences, ...) is left alone.
// Loads the CUDA plug-in where the flags ask for a GPU; as LoadCudaPlugin.
absl::StatusOr<engine::LocalModel::Options> MakeOptions(const ModelFlags& flags);

// "0,2,4-7" as a list. INVALID_ARGUMENT for anything else, and for more than 1,024 CPUs.
absl::StatusOr<std::vector<int>> ParseCpuList(std::string_view text);

struct SamplingFlags {
  engine::SamplingParams params;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> logit_bias;  // "ID=BIAS"
  std::vector<std::string> stops;
  std::int32_t max_tokens = 512;
  bool ignore_eos = false;

  // What most programs of this kind start with: lively, but without the long tail.
  SamplingFlags();
};
void AddSamplingFlags(CLI::App& command, SamplingFlags& flags);

// The parameters, checked against the vocabulary; a seed is drawn where none was given.
// INVALID_ARGUMENT lists every fault.
absl::StatusOr<engine::SamplingParams> MakeSampling(const SamplingFlags& flags, std::int32_t vocab);

// Opens the model that the flags mean (cli/model_store.h).
absl::StatusOr<std::unique_ptr<engine::LocalModel>> OpenModel(const ModelFlags& flags);

// LocalModel::Load with a line of progress on the terminal.
absl::Status LoadModel(engine::LocalModel& model, const engine::LocalModel::Options& options);

}  // namespace penstock::cli
