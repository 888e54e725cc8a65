// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_cuda_parts.h"
#include "kernels/attention_tile_cuda_block.h"

namespace penstock::kernels {
namespace {

// Finds the tile of a block: tiles of sequence i are numbered from floor(row_begin * group / kRows)
// + i on, which leaves room for each and needs no table. False where the number is nobody's.
template <int kRows>
GPU_DEVICE bool FindTile(const AttentionLaunch& a, int number, std::int32_t* sequence,
                         std::int32_t* first_row) {
  const auto number_of = [&](int i) { return a.kv.sequences[i].row_begin * a.group / kRows + i; };
  int low = 0;
  int high = a.kv.sequence_count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (number_of(middle) <= number ? low : high) = middle;
  }
  *sequence = low;
  *first_row = (number - number_of(low)) * kRows;
  return *first_row < a.kv.sequences[low].rows * a.group;
}

// Which tile a block has, and which KV head: the last tiles see the most keys, so they begin. Where
// all blocks run at once, two to an SM, the second half of them begins with the shortest, so that
// long ones share an SM with short ones.
struct TileTurn {
  int tile;
  int kv_head;
};
GPU_DEVICE TileTurn TurnOfBlock() {
  const auto heads = static_cast<int>(gridDim.x);
  const int total = heads * static_cast<int>(gridDim.y);
  int turn = static_cast<int>(blockIdx.y) * heads + static_cast<int>(blockIdx.x);
  if (total <= kTilesMin && turn >= total / 2) turn = total - 1 - (turn - total / 2);
  const int round = turn / heads;
  return {static_cast<int>(gridDim.y) - 1 - round, turn - round * heads};
}

template <KvDtype dtype, int kRows>
GPU_KERNEL(kTileThreads, 2)
TileKernel(const AttentionLaunch a) {
  std::int32_t sequence = 0;
  std::int32_t first_row = 0;
  const TileTurn turn = TurnOfBlock();
  if (!FindTile<kRows>(a, turn.tile, &sequence, &first_row)) return;
  const CudaSequence& s = a.kv.sequences[sequence];
  if (a.Streamed(s) || a.Split(s) != a.split) return;
  TileBlock<dtype, kRows> block(a, sequence, first_row, turn.kv_head);
  block.Run(static_cast<int>(blockIdx.z));
}

template <KvDtype dtype, int kRows>
cudaError_t Launch(const AttentionLaunch& a, cudaStream_t stream) {
  const auto kernel = TileKernel<dtype, kRows>;
  const std::size_t bytes = TileShared<kRows>::Bytes(a.kv);
  const cudaError_t allowed = gpu::AllowShared(kernel, bytes);
  if (allowed != cudaSuccess) return allowed;
  const int tiles = a.kv.row_count * a.group / kRows + a.kv.sequence_count;
  // Rows of several tokens see up to one partition more together than one of them.
  const dim3 grid(static_cast<unsigned>(a.kv.kv_heads), static_cast<unsigned>(tiles),
                  a.split ? static_cast<unsigned>(a.kv.partitions_max + 1) : 1u);
  GPU_LAUNCH(kernel, grid, dim3(kTileThreads), bytes, stream, a);
  return cudaGetLastError();
}

template <KvDtype dtype>
cudaError_t LaunchRows(const AttentionLaunch& a, cudaStream_t stream) {
  switch (TileRows(a.kv.k_dim)) {
    case 64:
      return Launch<dtype, 64>(a, stream);
    case 32:
      return Launch<dtype, 32>(a, stream);
    default:
      return Launch<dtype, 16>(a, stream);
  }
}

}  // namespace

cudaError_t LaunchTiles(const AttentionLaunch& a, cudaStream_t stream) {
  return WithKvDtype(a.kv.dtype,
                     [&](auto dtype) { return LaunchRows<decltype(dtype)::value>(a, stream); });
}

}  // namespace penstock::kernels
