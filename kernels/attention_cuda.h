// SPDX-License-Identifier: Apache-2.0
// Paged attention on a GPU: kernels/attention.h's orders, so the bits of its scalar specification,
// for a whole batch (Ops::Attention). F32 arithmetic on the CUDA cores throughout.
//
// Three ways give the same bits. Streamed: sequences of up to 16 (token, head of a KV head) rows, a
// block per partition, which reads K and V once for all rows; for decode, which waits for memory.
// Tiled: 64 rows (32 or 16 where k_dim is large) against one partition after another from shared
// memory and registers; for prompts, which wait for the multipliers. Tiled and split: the same with
// a block per partition, for prompt chunks too small to fill the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/batch_cuda.h"

namespace penstock::kernels {

// Bytes of scratch for one call with these shapes: states of partitions. At most 256 MiB beyond
// what the batch's streamed rows need.
std::size_t AttentionScratchBytesCuda(const CudaKv& kv, std::int32_t qo_heads);

// q: [rows, qo_heads * k_dim], as PrepareAndStoreCuda left it, not scaled. out: [rows, qo_heads *
// v_dim], holds unfinished sums meanwhile. scratch: AttentionScratchBytesCuda, aligned to 256.
// Buffers are aligned to 16, K and V of every page too. The sequences' rows lie one after another,
// from row 0 on; k_dim and v_dim are up to 1,024.
cudaError_t AttentionCuda(const float* q, std::int32_t qo_heads, float scale, const CudaKv& kv,
                          float* out, std::byte* scratch, cudaStream_t stream);

}  // namespace penstock::kernels
