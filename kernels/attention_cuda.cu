// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_cuda.h"
#include "kernels/attention_cuda_parts.h"

namespace penstock::kernels {
namespace {

constexpr float kLog2EOfAttention = 1.44269504088896341f;  // attention_targets.h's.
constexpr int kMergeThreads = 128;
constexpr std::size_t kSplitStateBytes = std::size_t{256} << 20;

// One warp per 32 dims of a (token, head) that left states: folds them in ascending order.
GPU_KERNEL(kMergeThreads, 1) MergeKernel(const AttentionLaunch a) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const std::int32_t sequence = static_cast<std::int32_t>(blockIdx.y);
  const CudaSequence s = a.kv.sequences[sequence];
  const int slices = (a.kv.v_dim + 31) / 32;
  const auto warp =
      static_cast<int>(blockIdx.x * (kMergeThreads / gpu::kWarp) + threadIdx.x / gpu::kWarp);
  const int row = warp / slices;
  const int token = row / a.qo_heads;
  if (token >= s.rows || !(a.Streamed(s) || a.Split(s))) return;
  const int head = row - token * a.qo_heads;
  const auto lane = static_cast<int>(threadIdx.x % gpu::kWarp);
  const int dim = (warp - row * slices) * 32 + lane;
  const bool mine = dim < a.kv.v_dim;
  const std::int32_t end = s.position + token + 1;
  const int count = (end - 1) / kCudaPartition - a.FirstKey(end) / kCudaPartition + 1;
  const std::int64_t state = a.State(sequence, token, head, 0);

  float m_before = NoKey();
  float l = 0;
  float o = 0;
  for (int base = 0; base < count; base += 32) {
    // All at once, since the fold below waits for each.
    float values[32];
    const float* const from = a.state_o + (state + base) * a.kv.v_dim + dim;
    GPU_UNROLL(32) for (int i = 0; i < 32; ++i) {
      values[i] = mine && base + i < count ? from[std::int64_t{i} * a.kv.v_dim] : 0.0f;
    }
    // Lane i prepares partition base + i: the m of all up to it, and what both sides are scaled by.
    const bool live = base + lane < count;
    const float2 ml = live ? a.state_ml[state + base + lane] : float2{NoKey(), 0};
    float m = MaxOf(m_before, ml.x);
    for (int distance = 1; distance < 32; distance *= 2) {
      const float other = gpu::Shfl(m, MaxOf(lane - distance, 0));
      m = MaxOf(m, other);
    }
    const float left = gpu::Shfl(m, MaxOf(lane - 1, 0));
    const float before = lane == 0 ? m_before : left;
    const float old = Exp2Cuda(before - m);
    const float next = Exp2Cuda(ml.x - m);
    const float l_next = ml.y * next;
    m_before = gpu::Shfl(m, 31);
    GPU_UNROLL(32) for (int i = 0; i < 32; ++i) {
      const float scale_old = gpu::Shfl(old, i);
      const float scale_next = gpu::Shfl(next, i);
      const float l_of = gpu::Shfl(l_next, i);
      const float l_alone = gpu::Shfl(ml.y, i);
      if (base + i >= count) continue;
      const bool first = base + i == 0;
      l = first ? l_alone : gpu::Fma(l, scale_old, l_of);
      o = first ? values[i] : gpu::Fma(o, scale_old, values[i] * scale_next);
    }
  }
  if (mine) {
    a.out[(std::int64_t{s.row_begin + token} * a.qo_heads + head) * a.kv.v_dim + dim] =
        gpu::Divide(o, l);
  }
}

cudaError_t LaunchMerge(const AttentionLaunch& a, cudaStream_t stream) {
  constexpr int kWarps = kMergeThreads / static_cast<int>(gpu::kWarp);
  const std::int64_t warps = std::int64_t{a.state_tokens} * a.qo_heads * ((a.kv.v_dim + 31) / 32);
  const dim3 grid(static_cast<unsigned>((warps + kWarps - 1) / kWarps),
                  static_cast<unsigned>(a.kv.sequence_count));
  GPU_LAUNCH_EARLY(MergeKernel, grid, dim3(kMergeThreads), 0, stream, a);
  return cudaGetLastError();
}

std::int64_t States(const AttentionLaunch& a) {
  return std::int64_t{a.kv.sequence_count} * a.state_tokens * a.qo_heads * a.kv.partitions_max;
}
std::size_t StateBytes(const AttentionLaunch& a) {
  return static_cast<std::size_t>(States(a)) * (2 + static_cast<std::size_t>(a.kv.v_dim)) *
         sizeof(float);
}

// What is split is a function of the shapes alone, so that the scratch can be told in advance.
AttentionLaunch Plan(const CudaKv& kv, std::int32_t qo_heads) {
  AttentionLaunch a;
  a.kv = kv;
  a.qo_heads = qo_heads;
  a.group = qo_heads / kv.kv_heads;
  a.shifts = KvShifts::Of(kv);
  a.state_tokens = MinOf(kv.rows_max, kStreamRowsMax / a.group);
  if (kv.rows_max * a.group <= kStreamRowsMax || kv.partitions_max == 1) return a;
  const std::int64_t tiles =
      (std::int64_t{kv.row_count} * a.group / TileRows(kv.k_dim) + 1) * kv.kv_heads;
  if (tiles >= kTilesMin) return a;
  AttentionLaunch split = a;
  split.split_tokens = split.state_tokens = kv.rows_max;
  return StateBytes(split) <= kSplitStateBytes ? split : a;
}

}  // namespace

std::size_t AttentionScratchBytesCuda(const CudaKv& kv, std::int32_t qo_heads) {
  return StateBytes(Plan(kv, qo_heads));
}

cudaError_t AttentionCuda(const float* q, std::int32_t qo_heads, float scale, const CudaKv& kv,
                          float* out, std::byte* scratch, cudaStream_t stream) {
  if (kv.row_count == 0) return cudaSuccess;
  AttentionLaunch a = Plan(kv, qo_heads);
  a.q = q;
  a.out = out;
  a.factor = scale * kLog2EOfAttention;
  a.state_o = reinterpret_cast<float*>(scratch);
  a.state_ml = reinterpret_cast<float2*>(a.state_o + States(a) * kv.v_dim);
  const bool all_streamed = kv.rows_max * a.group <= kStreamRowsMax;
  if (!all_streamed && a.split_tokens < kv.rows_max) {
    const cudaError_t error = LaunchTiles(a, stream);
    if (error != cudaSuccess) return error;
  }
  if (a.split_tokens > 0) {
    a.split = true;
    const cudaError_t error = LaunchTiles(a, stream);
    if (error != cudaSuccess) return error;
  }
  // A batch whose sequences are all long has none that left states.
  if (a.state_tokens == 0) return cudaSuccess;
  const cudaError_t error = LaunchStream(a, stream);
  return error != cudaSuccess ? error : LaunchMerge(a, stream);
}

}  // namespace penstock::kernels
