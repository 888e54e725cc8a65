// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/bf16_cuda.h"
#include "kernels/kv_pages_cuda.h"
#include "kernels/kv_rows_cuda.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 16;  // Of one head: as many as a norm has sums.
constexpr int kHeads = kThreads / kLanes;
constexpr float kInt8Most = 127 * 65504.0f;  // Of the largest scale.

struct PrepareLaunch {
  CudaPrepare qkv;
  KvShifts shifts;
  CudaKv kv;
};

// How a row becomes int8; see NarrowRow of kernels/elementwise.h.
struct Int8Row {
  std::uint16_t scale;  // F16
  float inverse;        // 0 where all levels are.

  GPU_DEVICE std::int8_t Level(float x) const {
    const float cut = x < -kInt8Most ? -kInt8Most : x > kInt8Most ? kInt8Most : x;
    return static_cast<std::int8_t>(inverse > 0 ? gpu::RoundToInt(cut * inverse) : 0);
  }
};

// Of n elements, by the kLanes of a head. Every lane of the warp comes here.
GPU_DEVICE Int8Row ToInt8(const float* x, int n, int lane) {
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  std::uint32_t most = 0;  // The bits of what has no sign are in its order, a NaN's being the last.
  for (int i = lane; i < n; i += kLanes) {
    const std::uint32_t bits = gpu::BitsFromFloat(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const std::uint32_t other = gpu::ShflXor(most, distance);
    most = other > most ? other : most;
  }
  if (most >= kInfinity) return {0x7e00, 0};
  const float max = gpu::FloatFromBits(most) < kInt8Most ? gpu::FloatFromBits(most) : kInt8Most;
  const float exact = gpu::Divide(max, 127);
  std::uint16_t scale = gpu::ToF16Saturated(exact);
  if (gpu::FromF16(scale) < exact) ++scale;
  return {scale, scale == 0 ? 0.0f : gpu::Divide(1, gpu::FromF16(scale))};
}

// Writes the K (or V) row of a batch's row to its page; `as_int8` is of use there alone.
GPU_DEVICE void StoreRow(const PrepareLaunch& a, const CudaRow& row, int kv_head, bool is_k,
                         const float* x, const Int8Row& as_int8, int lane) {
  const CudaKv& kv = a.kv;
  std::byte* const page =
      PageAt(kv, a.shifts, kv.sequences[row.sequence], kv_head, row.position >> a.shifts.page);
  const std::int32_t in_page = row.position & (kv.page_tokens - 1);
  const int dim = is_k ? kv.k_dim : kv.v_dim;
  const std::int64_t first = std::int64_t{in_page} * dim;
  std::byte* const part = page + (is_k ? 0 : kv.k_bytes);
  if (kv.dtype == KvDtype::kInt8) {
    for (int i = lane; i < dim; i += kLanes) gpu::Store(part + first + i, as_int8.Level(x[i]));
    if (lane == 0) gpu::Store(page + ScaleAt(kv, in_page, is_k), as_int8.scale);
  } else if (kv.dtype == KvDtype::kF32) {
    for (int i = lane; i < dim; i += kLanes) gpu::Store(part + 4 * (first + i), x[i]);
  } else {
    for (int i = lane; i < dim; i += kLanes) {
      gpu::Store(part + 2 * (first + i),
                 kv.dtype == KvDtype::kF16 ? gpu::ToF16Saturated(x[i]) : ToBF16Cuda(x[i]));
    }
  }
}

// x[i] * (1 / sqrt(mean of x^2 + eps)) * w[i], kLanes of a warp per head; a head whose w is null stays.
// Every lane of the warp comes here.
GPU_DEVICE void NormHead(float* x, const float* w, int n, float eps, int lane) {
  float sum = 0;
  for (int i = lane; i < n; i += kLanes) sum = gpu::Fma(x[i], x[i], sum);
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    sum += gpu::ShflXor(sum, distance);
  }
  const float factor = gpu::Divide(1, gpu::Sqrt(gpu::Divide(sum, static_cast<float>(n)) + eps));
  for (int i = lane; i < n && w != nullptr; i += kLanes) x[i] = x[i] * factor * w[i];
}

GPU_DEVICE void RotateHead(const CudaPrepare& qkv, std::int32_t row, float* x, int lane) {
  const int half = qkv.rotary_dim / 2;
  for (int i = lane; i < half; i += kLanes) {
    const int first = qkv.pairs == RopePairs::kAdjacent ? 2 * i : i;
    const int second = qkv.pairs == RopePairs::kAdjacent ? 2 * i + 1 : i + half;
    const float cos = qkv.cos[std::int64_t{row} * half + i];
    const float sin = qkv.sin[std::int64_t{row} * half + i];
    const float a = x[first];
    const float b = x[second];
    x[first] = gpu::Fma(a, cos, -(b * sin));
    x[second] = gpu::Fma(b, cos, a * sin);
  }
}

GPU_DEVICE int DimMax(const CudaKv& kv) { return kv.k_dim < kv.v_dim ? kv.v_dim : kv.k_dim; }

// 16 threads per (row of the batch, head): heads of q, of k, of v.
GPU_KERNEL(kThreads, 1) PrepareKernel(const PrepareLaunch a) {
  GPU_DYNAMIC_SHARED(shared);  // [kHeads, the larger of k_dim and v_dim]
  const auto lane = static_cast<int>(threadIdx.x) % kLanes;
  const auto in_block = static_cast<int>(threadIdx.x) / kLanes;
  const int heads = a.qkv.qo_heads + 2 * a.kv.kv_heads;
  const int head = static_cast<int>(blockIdx.y) * kHeads + in_block;
  const bool is_q = head < a.qkv.qo_heads;
  const bool is_k = !is_q && head < a.qkv.qo_heads + a.kv.kv_heads;
  const bool is_v = !is_q && !is_k && head < heads;
  const int dim = is_v ? a.kv.v_dim : a.kv.k_dim;
  const int dim_max = DimMax(a.kv);
  const auto index = static_cast<std::int32_t>(blockIdx.x);
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const CudaRow row = a.kv.rows[index];

  const int kv_head = head - a.qkv.qo_heads - (is_v ? a.kv.kv_heads : 0);  // Of k and v.
  float* x = nullptr;                                                      // What changes.
  if (is_q) x = a.qkv.q + (std::int64_t{row.row} * a.qkv.qo_heads + head) * dim;
  if (is_k) x = a.qkv.k + (std::int64_t{row.row} * a.kv.kv_heads + kv_head) * dim;
  const float* from = x;
  if (is_v) from = a.qkv.v + (std::int64_t{row.row} * a.kv.kv_heads + kv_head) * dim;
  float* const own = reinterpret_cast<float*>(shared) + in_block * dim_max;
  for (int i = lane; i < dim; i += kLanes) own[i] = from != nullptr ? from[i] : 0;
  // A lane norms the very elements that it loaded, but rotates others.
  if (a.qkv.q_norm != nullptr || a.qkv.k_norm != nullptr) {
    NormHead(own, is_q ? a.qkv.q_norm : is_k ? a.qkv.k_norm : nullptr, dim, a.qkv.norm_eps, lane);
  }
  gpu::SyncWarp();
  if (a.qkv.cos != nullptr && x != nullptr) RotateHead(a.qkv, index, own, lane);
  gpu::SyncWarp();
  Int8Row as_int8 = {};
  if (a.kv.dtype == KvDtype::kInt8) as_int8 = ToInt8(own, dim, lane);
  if (x != nullptr) {
    for (int i = lane; i < dim; i += kLanes) x[i] = own[i];
  }
  if (is_k || is_v) StoreRow(a, row, kv_head, is_k, own, as_int8, lane);
}

}  // namespace

cudaError_t PrepareAndStoreCuda(const CudaPrepare& qkv, const CudaKv& kv, cudaStream_t stream) {
  if (kv.row_count == 0) return cudaSuccess;
  const PrepareLaunch a = {qkv, KvShifts::Of(kv), kv};
  const int heads = qkv.qo_heads + 2 * kv.kv_heads;
  const dim3 grid(static_cast<unsigned>(kv.row_count),
                  static_cast<unsigned>((heads + kHeads - 1) / kHeads));
  const std::size_t bytes =
      sizeof(float) * kHeads * static_cast<std::size_t>(std::max(kv.k_dim, kv.v_dim));
  GPU_LAUNCH_EARLY(PrepareKernel, grid, dim3(kThreads), bytes, stream, a);
  return cudaGetLastError();
}

}  // namespace penstock::kernels
