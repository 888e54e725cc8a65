// SPDX-License-Identifier: Apache-2.0
// The kernels' launchers as the program sees them. Made twice: over what nvcc compiled, and, for
// tests, over the emulated kernels.
#include <cuda_runtime_api.h>

#include "kernels/attention_cuda.h"
#include "kernels/cuda_kernels.h"
#include "kernels/half_rows_cuda.h"
#include "kernels/kv_encoding_cuda.h"
#include "kernels/kv_rows_cuda.h"
#include "kernels/kv_split_cuda.h"
#include "kernels/linear_cuda.h"
#include "kernels/rows_cuda.h"
#include "kernels/sampling_cuda.h"
#include "kernels/units_cuda.h"
#include "kernels/unpack_cuda.h"

namespace penstock::kernels {
const CudaKernels kCudaKernels = {
    .embed = [](const PackedMatrix& table, const std::int32_t* tokens, std::int32_t rows,
                float scale, float* x, CudaStreamHandle stream) -> int {
      return EmbedCuda(table, tokens, rows, scale, x, stream);
    },
    .gather_rows = [](const float* x, std::int32_t cols, const std::int32_t* index,
                      std::int32_t rows, float* out, CudaStreamHandle stream) -> int {
      return GatherRowsCuda(x, cols, index, rows, out, stream);
    },
    .rms_norm = [](const float* x, const float* w, float eps, std::int32_t rows,
                   const Activations& out, CudaStreamHandle stream) -> int {
      return RmsNormCuda(x, w, eps, rows, out, stream);
    },
    .rms_norm_add = [](const float* y, const float* w, float eps, std::int32_t rows,
                       std::int32_t cols, float* x, CudaStreamHandle stream) -> int {
      return RmsNormAddCuda(y, w, eps, rows, cols, x, stream);
    },
    .quantize_rows = [](const float* x, std::int32_t rows, const Activations& out,
                        CudaStreamHandle stream) -> int {
      return QuantizeRowsCuda(x, rows, out, stream);
    },
    .take_columns = [](const float* x, std::int32_t cols, std::int32_t first, std::int32_t rows,
                       const Activations& out, CudaStreamHandle stream) -> int {
      return TakeColumnsCuda(x, cols, first, rows, out, stream);
    },
    .sum_parts = [](const float* parts, std::int32_t count, std::int64_t n, bool add, float* y,
                    CudaStreamHandle stream) -> int {
      return SumPartsCuda(parts, count, n, add, y, stream);
    },
    .linear = [](std::span<const LinearOutput> outputs, const Activations& x, std::int32_t rows,
                 CudaStreamHandle stream) -> int { return LinearCuda(outputs, x, rows, stream); },
    .gated_linear = [](const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                       const PackedMatrix& up, Activation activation, const Activations& out,
                       float* scratch, CudaStreamHandle stream) -> int {
      return GatedLinearCuda(x, rows, gate, up, activation, out, scratch, stream);
    },
    .prepare_and_store = [](const CudaPrepare& qkv, const CudaKv& kv, CudaStreamHandle stream)
        -> int { return PrepareAndStoreCuda(qkv, kv, stream); },
    .attention_scratch_bytes = AttentionScratchBytesCuda,
    .attention = [](const float* q, std::int32_t qo_heads, float scale, const CudaKv& kv,
                    float* out, std::byte* scratch, CudaStreamHandle stream) -> int {
      return AttentionCuda(q, qo_heads, scale, kv, out, scratch, stream);
    },
    .narrow = [](const float* x, std::int64_t n, KvDtype dtype, std::byte* out,
                 CudaStreamHandle stream) -> int { return NarrowCuda(x, n, dtype, out, stream); },
    .widen = [](const std::byte* x, std::int64_t n, KvDtype dtype, float* out,
                CudaStreamHandle stream) -> int { return WidenCuda(x, n, dtype, out, stream); },
    .draw_scratch_bytes = DrawScratchBytesCuda,
    .draw = DrawCuda,
    .encode_kv = EncodeKvCuda,
    .decode_kv = DecodeKvCuda,
    .split_kv = SplitKvCuda,
    .join_kv = JoinKvCuda,
    .copy_units = CopyUnitsCuda,
    .gate_rows = [](const float* gate, const float* up, Activation activation, std::int32_t rows,
                    const Activations& out, CudaStreamHandle stream) -> int {
      return GateRowsCuda(gate, up, activation, rows, out, stream);
    },
    .unpack_rows = [](const PackedMatrix& matrix, std::byte* out, std::int32_t out_stride,
                      CudaStreamHandle stream) -> int {
      return UnpackRowsCuda(matrix, out, out_stride, stream);
    },
    .round_rows = [](const Activations& x, std::int32_t rows, WeightFormat format, std::byte* out,
                     std::int32_t out_stride, CudaStreamHandle stream) -> int {
      return RoundRowsCuda(x, rows, format, out, out_stride, stream);
    },
};

}  // namespace penstock::kernels
