// SPDX-License-Identifier: Apache-2.0
#include "tests/forward_harness.h"

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/status.h"
#include "device/cpu_device.h"
#include "device/cuda_device.h"

namespace penstock::tests {

absl::StatusOr<std::unique_ptr<ForwardHarness>> ForwardHarness::Make(const std::string& model_path,
                                                                     const Options& options) {
  auto h = std::make_unique<ForwardHarness>();
  ASSIGN_OR_RETURN(h->file_, model::ModelFile::Open(model_path));
  RETURN_IF_ERROR(
      engine::CheckSplit(h->architecture(), h->file_->tensors(), options.shards, options.sums));
  std::vector<Device*> devices;
  for (std::int32_t i = 0; i < options.shards; ++i) {
    RETURN_IF_ERROR(
        h->AddShard(options, {.index = i, .shards = options.shards, .sums = options.sums}));
    devices.push_back(h->shards_.back().device.get());
  }
  h->own_ = engine::ArchitectureOf(h->architecture(), h->shards_[0].weights->shard());
  ASSIGN_OR_RETURN(h->pool_, engine::KvPool::Make(devices, h->own_.MakeKvSpec(options.kv_dtype),
                                                  {.pool_bytes = options.pool_bytes,
                                                   .block_tokens = options.block_tokens,
                                                   .page_tokens = options.page_tokens}));
  RETURN_IF_ERROR(h->MakeRunner(options));
  h->block_tokens_ = options.block_tokens;
  return h;
}

absl::Status ForwardHarness::AddShard(const Options& options, const engine::TensorShard& shard) {
  Shard made;
  if (options.cuda == nullptr) {
    ASSIGN_OR_RETURN(std::unique_ptr<CpuDevice> cpu, CpuDevice::Make({.threads = options.threads}));
    made.ops = kernels::MakeCpuOps(*cpu);
    made.threads = &cpu->threads();
    made.device = std::move(cpu);
  } else {
    ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> gpu,
                     CudaDevice::Make(*options.cuda, {.threads = options.threads}));
    ASSIGN_OR_RETURN(made.ops, kernels::MakeCudaOps(*gpu));
    made.threads = &gpu->threads();
    made.device = std::move(gpu);
  }
  ASSIGN_OR_RETURN(made.weights, engine::Weights::Load(
                                     *file_, *made.device, *made.threads,
                                     {.widen_to_f32 = options.float_activations, .shard = shard},
                                     [](std::size_t, std::size_t) {}));
  shards_.push_back(std::move(made));
  return absl::OkStatus();
}

absl::Status ForwardHarness::MakeRunner(const Options& options) {
  if (options.shards == 1) {
    const Shard& one = shards_[0];
    ASSIGN_OR_RETURN(pass_,
                     engine::ForwardPass::Make(
                         own_, *one.weights, *one.device, *one.ops, *pool_,
                         {.rows_max = options.rows_max, .logit_rows_max = options.rows_max}));
    return absl::OkStatus();
  }
  std::vector<engine::ShardedRunner::Shard> shards;
  for (const Shard& s : shards_) shards.push_back({s.device.get(), s.ops.get(), s.weights.get()});
  ASSIGN_OR_RETURN(pass_, engine::ShardedRunner::Make(
                              file_->architecture(), shards, *pool_,
                              {.rows_max = options.rows_max, .logit_rows_max = options.rows_max}));
  return absl::OkStatus();
}

std::size_t ForwardHarness::weights_bytes() const {
  std::size_t bytes = 0;
  for (const Shard& shard : shards_) bytes += shard.weights->bytes();
  return bytes;
}

ForwardHarness::Sequence ForwardHarness::NewSequence() const {
  return {.tokens = {},
          .slabs =
              std::vector<std::vector<engine::SlabRef>>(static_cast<std::size_t>(pool_->groups()))};
}

ForwardHarness::Sequence ForwardHarness::Share(const Sequence& other, std::int32_t tokens) {
  CHECK_EQ(tokens % block_tokens_, 0);
  Sequence s = NewSequence();
  s.tokens.assign(other.tokens.begin(), other.tokens.begin() + tokens);
  for (std::size_t g = 0; g < s.slabs.size(); ++g) {
    for (std::int32_t b = 0; b < tokens / block_tokens_; ++b) {
      s.slabs[g].push_back(other.slabs[g][static_cast<std::size_t>(b)]);
      pool_->AddRef(static_cast<std::int32_t>(g), s.slabs[g].back());
    }
  }
  return s;
}

void ForwardHarness::Free(Sequence& sequence) {
  for (std::size_t g = 0; g < sequence.slabs.size(); ++g) {
    for (const engine::SlabRef slab : sequence.slabs[g])
      pool_->Release(static_cast<std::int32_t>(g), slab);
  }
  sequence = NewSequence();
}

std::vector<std::vector<float>> ForwardHarness::Run(const std::vector<Append>& batch) {
  std::vector<std::vector<engine::SequenceInput::Blocks>> blocks(batch.size());
  std::vector<engine::SequenceInput> inputs;
  std::int32_t logit_rows = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Sequence& s = *batch[i].sequence;
    const auto position = static_cast<std::int32_t>(s.tokens.size());
    s.tokens.insert(s.tokens.end(), batch[i].tokens.begin(), batch[i].tokens.end());
    for (std::size_t g = 0; g < s.slabs.size(); ++g) {
      while (s.slabs[g].size() * static_cast<std::size_t>(block_tokens_) < s.tokens.size()) {
        const std::optional<engine::SlabRef> slab = pool_->Allocate(static_cast<std::int32_t>(g));
        CHECK(slab.has_value());
        s.slabs[g].push_back(*slab);
      }
      blocks[i].push_back({s.slabs[g], 0});
    }
    const std::int32_t rows =
        std::min(batch[i].logit_rows, static_cast<std::int32_t>(batch[i].tokens.size()));
    inputs.push_back(
        {.tokens = batch[i].tokens, .position = position, .blocks = blocks[i], .logit_rows = rows});
    logit_rows += rows;
  }
  pass_->Run(inputs, {});
  std::vector<std::vector<float>> logits;
  for (std::int32_t r = 0; r < logit_rows; ++r) {
    const std::span<const float> row = pass_->logits(r);
    logits.emplace_back(row.begin(), row.end());
  }
  return logits;
}

std::vector<std::vector<float>> ForwardHarness::RunChunked(Sequence& sequence,
                                                           const std::vector<TokenId>& tokens,
                                                           std::int32_t chunk_tokens) {
  std::vector<std::vector<float>> logits;
  for (std::size_t begin = 0; begin < tokens.size();
       begin += static_cast<std::size_t>(chunk_tokens)) {
    const std::size_t end = std::min(tokens.size(), begin + static_cast<std::size_t>(chunk_tokens));
    std::vector<TokenId> chunk(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                               tokens.begin() + static_cast<std::ptrdiff_t>(end));
    for (std::vector<float>& row : Run({{&sequence, std::move(chunk), chunk_tokens}}))
      logits.push_back(std::move(row));
  }
  return logits;
}

std::string CachedModel(const std::string& name) {
  const std::filesystem::path path =
      std::filesystem::path(PENSTOCK_SOURCE_DIR) / ".cache" / "models" / name;
  return std::filesystem::exists(path) ? path.string() : std::string();
}

}  // namespace penstock::tests
