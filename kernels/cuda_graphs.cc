// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_graphs.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace penstock::kernels {

// Bindings name every member: a struct that gets another one does not compile here.
void StepKey::Take(const PackedMatrix& matrix) {
  const auto& [format, rows, cols, data] = matrix;
  Add({}, format, rows, cols, data);
}

void StepKey::Take(const Activations& activations) {
  const auto& [cols, f32, q, scale, sum] = activations;
  Add({}, cols, f32, q, scale, sum);
}

void StepKey::Take(const CudaKv& kv) {
  const auto& [dtype, block_tokens, page_tokens, kv_heads, k_dim, v_dim, window_tokens, cache_layer,
               page_bytes, k_bytes, scales_at, pool_base, pool_stride_bytes, slabs, sequences, rows,
               sequence_count, row_count, rows_max, partitions_max] = kv;
  Add({}, dtype, block_tokens, page_tokens, kv_heads, k_dim, v_dim, window_tokens, cache_layer,
      page_bytes, k_bytes, scales_at, pool_base, pool_stride_bytes, slabs, sequences, rows,
      sequence_count, row_count, rows_max, partitions_max);
}

void StepKey::Take(const CudaPrepare& qkv) {
  const auto& [q, k, v, qo_heads, q_norm, k_norm, norm_eps, pairs, rotary_dim, cos, sin] = qkv;
  Add({}, q, k, v, qo_heads, q_norm, k_norm, norm_eps, pairs, rotary_dim, cos, sin);
}

void StepKey::Take(const DrawKinds& kinds) {
  const auto& [count, weights, top_k, top_p, sums] = kinds;
  Add({}, count, weights, top_k, top_p, sums);
}

void StepKey::Take(std::span<const LinearOutput> outputs) {
  Take(outputs.size());
  for (const auto& [matrix, bias, y, add] : outputs) Add({}, *matrix, bias, y, add);
}

const CudaGraph* CudaGraphs::Find(const std::string& key) {
  const auto found = std::ranges::find(known_, key, &Known::key);
  if (found == known_.end()) return nullptr;
  known_.splice(known_.begin(), known_, found);
  return known_.front().graph.get();
}

bool CudaGraphs::Wants(const std::string& key) {
  const std::size_t hash = std::hash<std::string>()(key);
  if (std::erase(seen_, hash) > 0) return true;
  seen_.push_front(hash);
  if (seen_.size() > kSeenMax) seen_.pop_back();
  return false;
}

const CudaGraph* CudaGraphs::Add(std::string key, std::unique_ptr<CudaGraph> graph) {
  known_.push_front({std::move(key), std::move(graph)});
  if (known_.size() > kGraphsMax) known_.pop_back();
  return known_.front().graph.get();
}

}  // namespace penstock::kernels
