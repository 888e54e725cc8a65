// SPDX-License-Identifier: Apache-2.0
// The kernels of the CUDA plug-in, as plain functions: what each does is said in the *_cuda.h header
// that declares it, and, of rows and products, in kernels/ops.h. All pointers are device addresses,
// but for spans and structs, which are read before the call returns. Each gives a cudaError_t.
//
// The program is built without CUDA headers, so this one has none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "device/cuda_api.h"
#include "kernels/activations.h"
#include "kernels/batch_cuda.h"
#include "kernels/elementwise.h"
#include "kernels/kv_encoding_cuda.h"
#include "kernels/kv_split_cuda.h"
#include "kernels/ops.h"
#include "kernels/packed_matrix.h"
#include "kernels/sampling_cuda.h"
#include "kernels/units_cuda.h"

namespace penstock::kernels {

struct CudaKernels {
  int (*embed)(const PackedMatrix& table, const std::int32_t* tokens, std::int32_t rows,
               float scale, float* x, CudaStreamHandle stream);
  int (*gather_rows)(const float* x, std::int32_t cols, const std::int32_t* index,
                     std::int32_t rows, float* out, CudaStreamHandle stream);
  int (*rms_norm)(const float* x, const float* w, float eps, std::int32_t rows,
                  const Activations& out, CudaStreamHandle stream);
  int (*rms_norm_add)(const float* y, const float* w, float eps, std::int32_t rows,
                      std::int32_t cols, float* x, CudaStreamHandle stream);
  int (*quantize_rows)(const float* x, std::int32_t rows, const Activations& out,
                       CudaStreamHandle stream);
  int (*take_columns)(const float* x, std::int32_t cols, std::int32_t first, std::int32_t rows,
                      const Activations& out, CudaStreamHandle stream);
  int (*sum_parts)(const float* parts, std::int32_t count, std::int64_t n, bool add, float* y,
                   CudaStreamHandle stream);
  // At most kCudaLinearOutputsMax.
  int (*linear)(std::span<const LinearOutput> outputs, const Activations& x, std::int32_t rows,
                CudaStreamHandle stream);
  // scratch: [rows, 2 * gate.rows].
  int (*gated_linear)(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                      const PackedMatrix& up, Activation activation, const Activations& out,
                      float* scratch, CudaStreamHandle stream);
  int (*prepare_and_store)(const CudaPrepare& qkv, const CudaKv& kv, CudaStreamHandle stream);
  std::size_t (*attention_scratch_bytes)(const CudaKv& kv, std::int32_t qo_heads);
  int (*attention)(const float* q, std::int32_t qo_heads, float scale, const CudaKv& kv, float* out,
                   std::byte* scratch, CudaStreamHandle stream);
  int (*narrow)(const float* x, std::int64_t n, KvDtype dtype, std::byte* out,
                CudaStreamHandle stream);
  int (*widen)(const std::byte* x, std::int64_t n, KvDtype dtype, float* out,
               CudaStreamHandle stream);
  std::size_t (*draw_scratch_bytes)(std::int32_t vocab, const DrawKinds& kinds);
  int (*draw)(const float* logits, std::int32_t vocab, const RowDraw* draws, const DrawKinds& kinds,
              Drawn* out, std::byte* scratch, CudaStreamHandle stream);
  int (*encode_kv)(const CudaKvBlock& block, const std::byte* slab, std::byte* out,
                   CudaStreamHandle stream);
  int (*decode_kv)(const CudaKvBlock& block, const std::byte* in, std::byte* slab,
                   CudaStreamHandle stream);
  int (*split_kv)(const CudaKvSplit& block, const std::byte* slab, std::byte* out,
                  CudaStreamHandle stream);
  int (*join_kv)(const CudaKvSplit& block, const std::byte* in, std::size_t in_bytes,
                 std::byte* slab, CudaStreamHandle stream);
  int (*copy_units)(const CopyUnit* units, std::int32_t count, const CopyRun* runs,
                    std::uint32_t* crcs, CudaStreamHandle stream);
  int (*gate_rows)(const float* gate, const float* up, Activation activation, std::int32_t rows,
                   const Activations& out, CudaStreamHandle stream);
  int (*unpack_rows)(const PackedMatrix& matrix, std::byte* out, std::int32_t out_stride,
                     CudaStreamHandle stream);
  int (*round_rows)(const Activations& x, std::int32_t rows, WeightFormat format, std::byte* out,
                    std::int32_t out_stride, CudaStreamHandle stream);
};

extern const CudaKernels kCudaKernels;  // Inside a plug-in.

}  // namespace penstock::kernels
