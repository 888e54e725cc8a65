// SPDX-License-Identifier: Apache-2.0
// cuDNN's scaled dot product attention as the program sees it, through the CUDA plug-in
// (device/cuda_api.h): plain functions, so that the program needs no header of cuDNN. The plug-in
// opens libcudnn.so.9 when it is first asked for, so that hosts without it still start.
//
// Of what sdpa_make made, and of one handle, only one thread at a time calls, with the GPU of
// cudnn_create set.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

#include "device/cuda_api.h"

struct cudnnContext;  // cuDNN's own name for what cudnnHandle_t points to.

namespace penstock {

using CudnnHandle = cudnnContext*;
class CudnnSdpa;  // device/cudnn_sdpa.h; inside a plug-in.

// What a plan is made for: one layer of a batch of `sequences`, each with up to q_tokens query
// tokens, which are the last of up to kv_blocks * block_tokens keys. Token t of a sequence with q
// query tokens and k keys sees keys 0 to k - q + t. A sequence may have none.
//
// Keys are in blocks of a pool: row r of KV head h of block i begins at element
//   i * block_stride + h * head_stride + r * k_dim
// of `k`, and of `v` likewise with v_dim.
struct CudnnSdpaShape {
  bool bf16 = false;  // Of q, k, v and o; else F16.
  std::int32_t sequences = 0;
  std::int32_t q_tokens = 0;
  std::int32_t kv_blocks = 0;
  std::int32_t block_tokens = 0;
  std::int32_t qo_heads = 0;
  std::int32_t kv_heads = 0;  // Divides qo_heads.
  std::int32_t k_dim = 0;
  std::int32_t v_dim = 0;
  std::int64_t pool_blocks = 0;
  std::int64_t block_stride = 0;
  std::int64_t head_stride = 0;
  auto operator<=>(const CudnnSdpaShape&) const = default;
};

// Device addresses, aligned to 16.
struct CudnnSdpaData {
  const void* q = nullptr;  // [rows, qo_heads, k_dim], the rows of a sequence one after another
  const void* k = nullptr;
  const void* v = nullptr;
  void* o = nullptr;                         // [rows, qo_heads, v_dim]
  const std::int32_t* blocks = nullptr;      // [sequences, kv_blocks], of the pool
  const std::int32_t* q_lengths = nullptr;   // [sequences], tokens
  const std::int32_t* kv_lengths = nullptr;  // [sequences], tokens
  // Where a sequence begins in q and o, in elements; the last entry is behind the last sequence.
  const std::int32_t* q_offsets = nullptr;  // [sequences + 1]
  const std::int32_t* o_offsets = nullptr;  // [sequences + 1]
  void* workspace = nullptr;                // As sdpa_make said.
  float scale = 1;
};

struct CudnnApi {
  int (*create)(CudnnHandle* handle);  // On the thread's GPU. A cudnnStatus_t, 0 for success.
  void (*destroy)(CudnnHandle handle);
  // Null where cuDNN has no plan for that: then `why` says so, for people. It may take seconds.
  // `handle` outlives it.
  CudnnSdpa* (*sdpa_make)(CudnnHandle handle, const CudnnSdpaShape& shape,
                          std::size_t* workspace_bytes, char* why, std::size_t why_bytes);
  void (*sdpa_free)(CudnnSdpa* sdpa);
  // A cudnnStatus_t.
  int (*sdpa_run)(CudnnSdpa* sdpa, const CudnnSdpaData& data, CudaStreamHandle stream);
  const char* (*get_error_string)(int status);
};

struct CudnnLibrary {
  const CudnnApi* api = nullptr;  // Null: `why_not` says why.
  std::int64_t version = 0;       // Of the library that runs: 91900 is 9.19.0.
  const char* why_not = "";       // For people.
};

}  // namespace penstock
