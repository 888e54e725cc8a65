// SPDX-License-Identifier: Apache-2.0
// A model, its weights and a pool, driven pass by pass: for tests that look at logits rather than
// at answers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "device/cuda_api.h"
#include "engine/forward.h"
#include "engine/kv_pool.h"
#include "engine/weights.h"
#include "model/model_file.h"
#include "tests/device_harness.h"

namespace penstock::tests {

using Logits = std::vector<std::vector<float>>;  // [rows][vocab]

// How many rows of `got` are not, bit for bit, those of `want` from `begin` on, which must be there.
int RowsThatDiffer(const Logits& got, const Logits& want, std::size_t begin = 0);

// One thread at a time.
class ForwardHarness {
 public:
  struct Options {
    int threads = 1;
    bool float_activations = false;
    KvDtype kv_dtype = KvDtype::kF16;
    std::int32_t block_tokens = 32;
    std::int32_t page_tokens = 32;
    std::int32_t rows_max = 512;
    std::size_t pool_bytes = std::size_t{512} << 20;
    const CudaPlugin* cuda = nullptr;  // Null: on the CPU.
    kernels::Numerics numerics = kernels::Numerics::kExact;
    std::int32_t stages = 1;
    std::int32_t shards = 1;  // Of each stage, each with `threads` of its own.
    std::int32_t sums = 1;    // As of engine::TensorShard.
    std::int32_t portion_rows_min = 128;
  };
  static absl::StatusOr<std::unique_ptr<ForwardHarness>> Make(const std::string& model_path,
                                                              const Options& options);

  // A sequence's tokens so far and its blocks. Several may run in one pass.
  struct Sequence {
    std::vector<TokenId> tokens;
    std::vector<std::vector<engine::SlabRef>> slabs;  // Per group.
  };
  Sequence NewSequence() const;
  // A sequence that shares the full blocks of the first `tokens` tokens of `other`, which must end
  // a block.
  Sequence Share(const Sequence& other, std::int32_t tokens);
  void Free(Sequence& sequence);

  struct Append {
    Sequence* sequence;
    std::vector<TokenId> tokens;
    std::int32_t logit_rows = 1;
  };
  // One pass. Returns the wanted rows of logits, in order.
  Logits Run(const std::vector<Append>& batch);
  // As several passes of at most chunk_tokens; the logits of every token.
  Logits RunChunked(Sequence& sequence, const std::vector<TokenId>& tokens,
                    std::int32_t chunk_tokens);

  const model::Architecture& architecture() const { return file_->architecture(); }
  engine::KvPool& pool() { return *pool_; }
  std::size_t weights_bytes() const;  // Of all devices.

 private:
  std::unique_ptr<model::ModelFile> file_;
  ModelHarness model_;
  std::unique_ptr<engine::KvPool> pool_;
  std::unique_ptr<engine::StepRunner> pass_;
  std::int32_t block_tokens_ = 0;
};

// The file in the repository's .cache/models, or an empty string.
std::string CachedModel(const std::string& name);

}  // namespace penstock::tests
