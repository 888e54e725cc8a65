// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_pages_cuda.h"
#include "kernels/kv_rows_cuda.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 16;  // Of one head: as many as a norm has sums.
constexpr int kHeads = kThreads / kLanes;

struct PrepareLaunch {
  CudaPrepare qkv;
  KvShifts shifts;
  CudaKv kv;
};

GPU_DEVICE std::uint16_t ToBF16Cuda(float x) {
  const std::uint32_t bits = gpu::BitsFromFloat(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Element i of a row in the pool's type.
GPU_DEVICE void StoreElement(KvDtype dtype, std::byte* row, int i, float x) {
  if (dtype == KvDtype::kF32) {
    gpu::Store(row + 4 * i, x);
  } else {
    gpu::Store(row + 2 * i, dtype == KvDtype::kF16 ? gpu::ToF16Saturated(x) : ToBF16Cuda(x));
  }
}

// Where the K (or V) row of a batch's row lies.
GPU_DEVICE std::byte* PageRow(const PrepareLaunch& a, const CudaRow& row, int kv_head, bool is_k) {
  const CudaKv& kv = a.kv;
  const int element_bytes = kv.dtype == KvDtype::kF32 ? 4 : 2;
  std::byte* const page =
      PageAt(kv, a.shifts, kv.sequences[row.sequence], kv_head, row.position >> a.shifts.page);
  const std::int64_t in_page = row.position & (kv.page_tokens - 1);
  return page + (is_k ? 0 : kv.k_bytes) + in_page * element_bytes * (is_k ? kv.k_dim : kv.v_dim);
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

// 16 threads per (row of the batch, head): heads of q, of k, of v.
GPU_KERNEL(kThreads, 1) PrepareKernel(const PrepareLaunch a) {
  GPU_DYNAMIC_SHARED(shared);  // [kHeads, k_dim]
  const auto lane = static_cast<int>(threadIdx.x) % kLanes;
  const auto in_block = static_cast<int>(threadIdx.x) / kLanes;
  const int heads = a.qkv.qo_heads + 2 * a.kv.kv_heads;
  const int head = static_cast<int>(blockIdx.y) * kHeads + in_block;
  const bool is_q = head < a.qkv.qo_heads;
  const bool is_k = !is_q && head < a.qkv.qo_heads + a.kv.kv_heads;
  const bool is_v = !is_q && !is_k && head < heads;
  const int dim = a.kv.k_dim;
  const auto index = static_cast<std::int32_t>(blockIdx.x);
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const CudaRow row = a.kv.rows[index];

  if (is_v) {
    const int kv_head = head - a.qkv.qo_heads - a.kv.kv_heads;
    const float* const from =
        a.qkv.v + (std::int64_t{row.row} * a.kv.kv_heads + kv_head) * a.kv.v_dim;
    std::byte* const to = PageRow(a, row, kv_head, false);
    for (int i = lane; i < a.kv.v_dim; i += kLanes) StoreElement(a.kv.dtype, to, i, from[i]);
  }
  float* x = nullptr;
  if (is_q) x = a.qkv.q + (std::int64_t{row.row} * a.qkv.qo_heads + head) * dim;
  if (is_k) x = a.qkv.k + (std::int64_t{row.row} * a.kv.kv_heads + head - a.qkv.qo_heads) * dim;
  float* const own = reinterpret_cast<float*>(shared) + in_block * dim;
  for (int i = lane; i < dim; i += kLanes) own[i] = x != nullptr ? x[i] : 0;
  // A lane norms the very elements that it loaded, but rotates others.
  if (a.qkv.q_norm != nullptr || a.qkv.k_norm != nullptr) {
    NormHead(own, is_q ? a.qkv.q_norm : is_k ? a.qkv.k_norm : nullptr, dim, a.qkv.norm_eps, lane);
  }
  gpu::SyncWarp();
  if (a.qkv.cos != nullptr && x != nullptr) RotateHead(a.qkv, index, own, lane);
  gpu::SyncWarp();
  if (x == nullptr) return;
  for (int i = lane; i < dim; i += kLanes) x[i] = own[i];
  if (!is_k) return;
  std::byte* const to = PageRow(a, row, head - a.qkv.qo_heads, true);
  for (int i = lane; i < dim; i += kLanes) StoreElement(a.kv.dtype, to, i, own[i]);
}

}  // namespace

cudaError_t PrepareAndStoreCuda(const CudaPrepare& qkv, const CudaKv& kv, cudaStream_t stream) {
  if (kv.dtype == KvDtype::kInt8) return cudaErrorInvalidValue;
  if (kv.row_count == 0) return cudaSuccess;
  const PrepareLaunch a = {qkv, KvShifts::Of(kv), kv};
  const int heads = qkv.qo_heads + 2 * kv.kv_heads;
  const dim3 grid(static_cast<unsigned>(kv.row_count),
                  static_cast<unsigned>((heads + kHeads - 1) / kHeads));
  const std::size_t bytes = sizeof(float) * kHeads * static_cast<std::size_t>(kv.k_dim);
  GPU_LAUNCH_EARLY(PrepareKernel, grid, dim3(kThreads), bytes, stream, a);
  return cudaGetLastError();
}

}  // namespace penstock::kernels
