// SPDX-License-Identifier: Apache-2.0
// A model's weights on a device, or the part of them that it has, repacked for its kernels. Loading goes
// tensor by tensor and gives each piece of the mapped file back once it is packed, so that peak
// memory stays near the size of what is kept. For a device whose memory the host cannot see they
// are packed piece by piece into two staging buffers of some 16 MiB, one of which is filled while
// the other is copied.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "device/device.h"
#include "device/thread_pool.h"
#include "engine/pipeline_stage.h"
#include "kernels/packed_matrix.h"
#include "model/model_file.h"

namespace penstock::engine {

struct LayerWeights {
  const float* attn_norm = nullptr;  // [d_model]
  kernels::PackedMatrix q, k, v;     // [heads * head_dim, d_model], of the shard's heads
  // [d_model, qo_heads * head_dim]: the columns of each of the shard's partial sums.
  std::vector<kernels::PackedMatrix> o;
  const float* q_bias = nullptr;  // null where the architecture has none, as all below
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;
  const float* post_attn_norm = nullptr;    // [d_model]
  const float* ffn_norm = nullptr;          // [d_model]
  kernels::PackedMatrix gate, up;           // [ffn_dim, d_model]
  std::vector<kernels::PackedMatrix> down;  // [d_model, ffn_dim], as `o`
  const float* post_ffn_norm = nullptr;
};

// Immutable once loaded; any thread may read. Owns its memory.
class Weights {
 public:
  struct Options {
    bool widen_to_f32 = false;  // --activations f32: every matrix as F32, products in float.
    bool digest = false;        // Workers compare theirs; costs a SHA-256 of the file.
    ModelPart part = {};        // CheckStages and CheckSplit have accepted it.
  };
  // RESOURCE_EXHAUSTED with both numbers when the device has too little memory. `progress` is
  // called with bytes done and bytes in all. `threads` does the packing.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(
      const model::ModelFile& file, Device& device, ThreadPool& threads, const Options& options,
      absl::FunctionRef<void(std::size_t, std::size_t)> progress);

  // What Load would take of the device.
  static std::size_t BytesOf(const model::ModelFile& file, const Options& options);

  kernels::PackedMatrix embedding;     // [the shard's rows of vocab, d_model], of the first stage
  const float* output_norm = nullptr;  // Of the last stage.
  kernels::PackedMatrix head;          // As embedding, but of the last stage; tied: its very bytes.
  std::vector<LayerWeights> layers;    // The stage's.
  const ModelPart& part() const { return part_; }
  const TensorShard& shard() const { return part_.shard; }
  std::size_t bytes() const { return memory_->size_bytes(); }
  // Where asked for: SHA-256, in hex, over the SHA-256 of every megabyte (in whole panels) of every
  // tensor as it is on disk, with its format and shape, in the order of this struct; of the whole
  // model, whatever the part. Empty else.
  const std::string& digest() const { return digest_; }

 private:
  friend class WeightsLoader;
  ModelPart part_;
  std::unique_ptr<DeviceMemory> memory_;
  std::string digest_;
};

}  // namespace penstock::engine
