// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_cuda_parts.h"

namespace penstock::kernels {
namespace {

constexpr int kKeys = 64;                  // Of one tile.
constexpr int kSliceBytes = 256;           // Of each row in one tile.
constexpr int kStride = kSliceBytes + 16;  // So that 8 lanes with a row each meet no bank twice.
constexpr int kThreads = 64;
constexpr int kSlots = 2;  // Tiles in shared memory: one in use, the others on their way.

// A block's shared memory.
struct StreamShared {
  std::size_t q;
  std::size_t weights;
  std::size_t pages;
  std::size_t bytes;

  static constexpr StreamShared Of(const AttentionLaunch& a, int rows) {
    StreamShared s{};
    s.q = std::size_t{kSlots} * kKeys * kStride;
    s.weights = s.q + sizeof(float) * rows * a.kv.k_dim;
    s.pages = s.weights + sizeof(float) * rows * kCudaPartition;
    s.bytes = s.pages + sizeof(std::byte*) * PagesOfPartition(a.kv);
    return s;
  }
};

// n floats of shared memory, aligned to 16 where n is a multiple of 4.
template <int n>
GPU_DEVICE void LoadFloats(const float* from, float (&to)[n]) {
  if constexpr (n % 4 == 0) {
    GPU_UNROLL(8) for (int i = 0; i < n; i += 4) {
      const auto four = gpu::Load<float4>(from + i);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else {
    GPU_UNROLL(8) for (int i = 0; i < n; ++i) to[i] = from[i];
  }
}

// The K and V of one partition as tiles of kKeys keys and kSliceBytes of each row: K by key and then
// slice, so that a score is done when its key's slices are; V by slice and then key, so that a
// slice's sums are done when its keys are.
struct StreamTiles {
  const AttentionLaunch& a;
  const std::byte* const* pages;  // From that of keys.begin on.
  KeySpan keys;
  int first;  // The first tile of keys in the partition, and their count.
  int count;
  int k_slices;
  int v_slices;

  struct Tile {
    bool is_k;
    int key;     // The first, in the partition.
    int offset;  // In the row's bytes.
    int bytes;
  };
  GPU_DEVICE int tiles() const { return count * (k_slices + v_slices); }
  GPU_DEVICE Tile At(int t, int element_bytes) const {
    const bool is_k = t < count * k_slices;
    const int i = is_k ? t : t - count * k_slices;
    const int key = is_k ? i / k_slices : i % count;
    const int slice = is_k ? i % k_slices : i / count;
    const int row_bytes = element_bytes * (is_k ? a.kv.k_dim : a.kv.v_dim);
    const int offset = slice * kSliceBytes;
    return {is_k, (first + key) * kKeys, offset, MinOf(row_bytes - offset, kSliceBytes)};
  }
  // Starts the copies of `tile`; keys that nobody sees become zeros.
  GPU_DEVICE void Copy(const Tile& tile, int element_bytes, std::byte* to) const {
    const int vectors = tile.bytes / 16;
    const int row_bytes = element_bytes * (tile.is_k ? a.kv.k_dim : a.kv.v_dim);
    const std::int32_t partition_begin = keys.begin & -kCudaPartition;
    const int first_page = keys.begin >> a.shifts.page;
    const int v = static_cast<int>(threadIdx.x) % 16;
    if (v >= vectors) return;
    const std::int64_t offset = (tile.is_k ? 0 : a.kv.k_bytes) + tile.offset + 16 * v;
    GPU_UNROLL(4)
    for (int key = static_cast<int>(threadIdx.x) / 16; key < kKeys; key += kThreads / 16) {
      const std::int32_t position = partition_begin + tile.key + key;
      const bool live = position >= keys.begin && position < keys.end;
      const std::int32_t at = live ? position : keys.begin;
      const std::byte* const page = pages[(at >> a.shifts.page) - first_page];
      const std::int64_t in_page = at & (a.kv.page_tokens - 1);
      gpu::CopyAsync16(to + key * kStride + 16 * v, page + offset + in_page * row_bytes, live);
    }
  }
};

// One block per (partition, KV head and kRows of its query rows, sequence). Scores: a thread per
// key. Weights: 16 threads per row. Values: a thread per pair of dims and share of the rows.
template <KvDtype dtype, int kRows>
GPU_KERNEL(kThreads, 1)
StreamKernel(const AttentionLaunch a) {
  using Elements = KvElements<dtype>;
  constexpr int kPairs = kSliceBytes / Elements::kBytes / 2;  // Of dims, in a slice of V.
  constexpr int kShares = kThreads / kPairs < kRows ? kThreads / kPairs : kRows;
  constexpr int kValueRows = kRows / kShares;  // Of one thread.

  const auto thread = static_cast<int>(threadIdx.x);
  const auto sequence = static_cast<std::int32_t>(blockIdx.z);
  const CudaSequence s = a.kv.sequences[sequence];
  const int kv_head = static_cast<int>(blockIdx.y) % a.kv.kv_heads;
  const int first_row = static_cast<int>(blockIdx.y) / a.kv.kv_heads * kRows;
  const int rows = MinOf(s.rows * a.group - first_row, kRows);
  if (rows <= 0 || !a.Streamed(s)) return;
  const int first_token = first_row / a.group;
  const int last_token = (first_row + rows - 1) / a.group;
  const std::int32_t end = s.position + last_token + 1;
  const std::int32_t oldest = a.FirstKey(s.position + first_token + 1);
  const std::int32_t partition = oldest / kCudaPartition + static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t partition_begin = partition * kCudaPartition;
  if (partition_begin >= end) return;
  const KeySpan keys = {MaxOf(oldest, partition_begin),
                        MinOf(end, partition_begin + kCudaPartition)};

  GPU_DYNAMIC_SHARED(shared);
  const StreamShared layout = StreamShared::Of(a, kRows);
  auto* const q = reinterpret_cast<float*>(shared + layout.q);  // [kRows, k_dim], scaled
  auto* const weights = reinterpret_cast<float*>(shared + layout.weights);  // [256, kRows]
  auto* const pages = reinterpret_cast<const std::byte**>(shared + layout.pages);
  ListPages(a, s, kv_head, keys, pages);
  gpu::SyncThreads();

  const int first = (keys.begin - partition_begin) / kKeys;
  const StreamTiles tiles = {a,
                             pages,
                             keys,
                             first,
                             (keys.end - partition_begin + kKeys - 1) / kKeys - first,
                             (a.kv.k_dim * Elements::kBytes + kSliceBytes - 1) / kSliceBytes,
                             (a.kv.v_dim * Elements::kBytes + kSliceBytes - 1) / kSliceBytes};
  const int tile_count = tiles.tiles();
  int started = 0;
  const auto start_next = [&] {
    if (started < tile_count) {
      tiles.Copy(tiles.At(started, Elements::kBytes), Elements::kBytes,
                 shared + started % kSlots * (kKeys * kStride));
    }
    ++started;
    gpu::CopyAsyncCommit();
  };
  // Waits for tile t, then starts the one that takes the place of t - 1.
  const auto next_tile = [&](int t) {
    gpu::CopyAsyncWait<kSlots - 2>();
    gpu::SyncThreads();
    start_next();
    return shared + t % kSlots * (kKeys * kStride);
  };
  for (int i = 0; i < kSlots - 1; ++i) start_next();

  for (int i = thread; i < kRows * a.kv.k_dim; i += kThreads) {
    const int r = i / a.kv.k_dim;
    const int row = first_row + r;
    float x = 0;
    if (r < rows) {
      const std::int64_t token = s.row_begin + row / a.group;
      const int head = kv_head * a.group + row % a.group;
      x = a.q[(token * a.qo_heads + head) * a.kv.k_dim + (i - r * a.kv.k_dim)] * a.factor;
    }
    q[i] = x;
  }

  // Scores. next_tile's barrier is also the one behind the writes of q.
  int t = 0;
  for (int key_tile = 0; key_tile < tiles.count; ++key_tile) {
    float sums[kRows][4] = {};
    int key = 0;
    for (int slice = 0; slice < tiles.k_slices; ++slice, ++t) {
      const StreamTiles::Tile tile = tiles.At(t, Elements::kBytes);
      const std::byte* const k = next_tile(t) + thread * kStride;
      key = tile.key + thread;
      const int elements = tile.bytes / Elements::kBytes;
      const float* const q_slice = q + tile.offset / Elements::kBytes;
      GPU_UNROLL(2) for (int d = 0; d < elements; d += 8) {
        float x[8];
        Elements::Load(k + d * Elements::kBytes).Widen(x);
        GPU_UNROLL(8) for (int r = 0; r < kRows; ++r) {
          float y[8];
          LoadFloats(q_slice + r * a.kv.k_dim + d, y);
          GPU_UNROLL(8) for (int i = 0; i < 8; ++i) {
            sums[r][i % 4] = gpu::Fma(y[i], x[i], sums[r][i % 4]);
          }
        }
      }
    }
    GPU_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      weights[key * kRows + r] = (sums[r][0] + sums[r][2]) + (sums[r][1] + sums[r][3]);
    }
  }
  gpu::SyncThreads();

  // Weights, m and l.
  const int lane = thread % 16;
  for (int base = 0; base < kRows; base += kThreads / 16) {
    const int r = base + thread / 16;
    const int row = first_row + r;
    const int token = row / a.group;
    const std::int32_t row_end = s.position + token + 1;
    const std::int32_t row_first = a.FirstKey(row_end);
    const std::int32_t begin = r < rows ? MaxOf(row_first, keys.begin) - partition_begin : 0;
    const std::int32_t stop = r < rows ? MinOf(row_end, keys.end) - partition_begin : 0;
    float m = NoKey();
    for (int key = lane; key < kCudaPartition && r < kRows; key += 16) {
      if (key >= begin && key < stop) m = MaxOf(m, weights[key * kRows + r]);
    }
    for (int distance = 8; distance > 0; distance /= 2) m = MaxOf(m, gpu::ShflXor(m, distance));
    float l = 0;
    for (int key = lane; key < kCudaPartition && r < kRows; key += 16) {
      float p = 0;
      if (key >= begin && key < stop) p = Exp2Cuda(weights[key * kRows + r] - m);
      l += p;
      weights[key * kRows + r] = p;
    }
    for (int distance = 8; distance > 0; distance /= 2) l += gpu::ShflXor(l, distance);
    if (lane == 0 && begin < stop) {
      const std::int64_t state = a.State(sequence, token, kv_head * a.group + row % a.group,
                                         partition - row_first / kCudaPartition);
      a.state_ml[state] = float2{m, l};
    }
  }

  // Values. next_tile's barrier is also the one behind the weights.
  const int pair = thread % kPairs;
  const int share = thread / kPairs;
  const int row_in_block = share * kValueRows;
  // Rows of several tokens do not see the same keys, and a value that one must not see may be
  // anything.
  const bool same_keys = first_token == last_token;
  for (int slice = 0; slice < tiles.v_slices; ++slice) {
    float o[kValueRows][2] = {};
    int dim = 0;
    bool mine = false;
    for (int key_tile = 0; key_tile < tiles.count; ++key_tile, ++t) {
      const StreamTiles::Tile tile = tiles.At(t, Elements::kBytes);
      const std::byte* const v = next_tile(t);
      dim = tile.offset / Elements::kBytes + 2 * pair;
      mine = share < kShares && 2 * pair * Elements::kBytes < tile.bytes;
      if (!mine) continue;
      const int begin = MaxOf(keys.begin - partition_begin - tile.key, 0);
      const int stop = MinOf(keys.end - partition_begin - tile.key, kKeys);
      if (same_keys) {
        GPU_UNROLL(8) for (int key = begin; key < stop; ++key) {
          float x[2];
          Elements::Pair(v + key * kStride, pair, x[0], x[1]);
          float p[kValueRows];
          LoadFloats(weights + (tile.key + key) * kRows + row_in_block, p);
          GPU_UNROLL(8) for (int r = 0; r < kValueRows; ++r) {
            o[r][0] = gpu::Fma(p[r], x[0], o[r][0]);
            o[r][1] = gpu::Fma(p[r], x[1], o[r][1]);
          }
        }
        continue;
      }
      for (int key = begin; key < stop; ++key) {
        float x[2];
        Elements::Pair(v + key * kStride, pair, x[0], x[1]);
        const std::int32_t position = partition_begin + tile.key + key;
        GPU_UNROLL(8) for (int r = 0; r < kValueRows; ++r) {
          const std::int32_t row_end = s.position + (first_row + row_in_block + r) / a.group + 1;
          if (position >= row_end || position < a.FirstKey(row_end)) continue;
          const float p = weights[(tile.key + key) * kRows + row_in_block + r];
          o[r][0] = gpu::Fma(p, x[0], o[r][0]);
          o[r][1] = gpu::Fma(p, x[1], o[r][1]);
        }
      }
    }
    GPU_UNROLL(8) for (int r = 0; r < kValueRows; ++r) {
      const int row = first_row + row_in_block + r;
      const int token = row / a.group;
      const std::int32_t row_end = s.position + token + 1;
      const std::int32_t row_first = a.FirstKey(row_end);
      const bool sees = row_end > partition_begin && row_first < partition_begin + kCudaPartition;
      if (!mine || row_in_block + r >= rows || !sees) continue;
      const std::int64_t state = a.State(sequence, token, kv_head * a.group + row % a.group,
                                         partition - row_first / kCudaPartition);
      gpu::Store(a.state_o + state * a.kv.v_dim + dim, float2{o[r][0], o[r][1]});
    }
  }
}

template <KvDtype dtype, int kRows>
cudaError_t Launch(const AttentionLaunch& a, cudaStream_t stream) {
  const auto kernel = StreamKernel<dtype, kRows>;
  const std::size_t bytes = StreamShared::Of(a, kRows).bytes;
  const cudaError_t allowed = AllowShared(kernel, bytes);
  if (allowed != cudaSuccess) return allowed;
  const int rows = MinOf(a.kv.rows_max * a.group, kStreamRowsMax);
  const int tiles = (rows + kRows - 1) / kRows;
  // Rows of several tokens see up to one partition more together than one of them.
  const int partitions = a.kv.partitions_max + (a.kv.rows_max > 1 ? 1 : 0);
  const dim3 grid(static_cast<unsigned>(partitions), static_cast<unsigned>(a.kv.kv_heads * tiles),
                  static_cast<unsigned>(a.kv.sequence_count));
  GPU_LAUNCH(kernel, grid, dim3(kThreads), bytes, stream, a);
  return cudaGetLastError();
}

template <KvDtype dtype>
cudaError_t LaunchRows(const AttentionLaunch& a, cudaStream_t stream) {
  if (a.group == 1) return Launch<dtype, 1>(a, stream);
  return a.group <= 4 ? Launch<dtype, 4>(a, stream) : Launch<dtype, 8>(a, stream);
}

}  // namespace

cudaError_t LaunchStream(const AttentionLaunch& a, cudaStream_t stream) {
  switch (a.kv.dtype) {
    case KvDtype::kF16:
      return LaunchRows<KvDtype::kF16>(a, stream);
    case KvDtype::kBF16:
      return LaunchRows<KvDtype::kBF16>(a, stream);
    case KvDtype::kF32:
      return LaunchRows<KvDtype::kF32>(a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace penstock::kernels
