// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_cuda_parts.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kSlots = 2;  // Tiles in shared memory: one in use, the others on their way.

// A tile of K or V. Rows of int8 are short: with more keys fewer threads widen the same one.
template <KvDtype dtype>
struct StreamTile {
  static constexpr bool kShort = dtype == KvDtype::kInt8;
  static constexpr int kKeys = kShort ? 128 : 64;
  static constexpr int kSliceBytes = kShort ? 128 : 256;  // Of each row.
  // So that 8 lanes with a row each meet no bank twice.
  static constexpr int kStride = kSliceBytes + 16;
};

// A block's shared memory; what has a fixed place needs no register.
template <KvDtype dtype, int kRows>
struct StreamPlaces {
  static constexpr int kSlotBytes = StreamTile<dtype>::kKeys * StreamTile<dtype>::kStride;
  static constexpr std::size_t kWeights = std::size_t{kSlots} * kSlotBytes;
  static constexpr std::size_t kScales = kWeights + sizeof(float) * kRows * kCudaPartition;
  static constexpr std::size_t kQuery =
      kScales + (KvElements<dtype>::kScaled ? sizeof(float) * 2 * kCudaPartition : 0);
};
template <KvDtype dtype, int kRows>
struct StreamShared : QueryAndPages<kRows, StreamPlaces<dtype, kRows>::kQuery> {
  using Places = StreamPlaces<dtype, kRows>;
  // Tile t: [kKeys, kStride] bytes.
  GPU_DEVICE static std::byte* Slot(int t) {
    return SharedAt<std::byte>(0) + t % kSlots * Places::kSlotBytes;
  }
  // [256, kRows]: scores, then weights. Query(): [k_dim / 4, kRows, 4].
  GPU_DEVICE static float* Weights() { return SharedAt<float>(Places::kWeights); }
  // [2, 256]: of K rows and V rows, where elements are scaled.
  GPU_DEVICE static float* Scales() { return SharedAt<float>(Places::kScales); }
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

// One block per (partition, KV head and kRows of its query rows, sequence).
//
// K and V come as tiles of kKeys keys and kSliceBytes of each row: K by key and then slice, so that a
// score is done when its key's slices are; V by slice and then key, so that a slice's sums are done
// when its keys are.
template <KvDtype dtype, int kRows>
class StreamBlock {
  using Elements = KvElements<dtype>;
  using Shared = StreamShared<dtype, kRows>;
  static constexpr int kKeys = StreamTile<dtype>::kKeys;
  static constexpr int kSliceBytes = StreamTile<dtype>::kSliceBytes;
  static constexpr int kStride = StreamTile<dtype>::kStride;
  // Threads that share a key's rows, and rows of each.
  static constexpr int kScoreShares = kThreads / kKeys < kRows ? kThreads / kKeys : kRows;
  static constexpr int kScoreRows = kRows / kScoreShares;
  static constexpr int kPairs = kSliceBytes / Elements::kBytes / 2;  // Of dims, in a slice of V.
  static constexpr int kShares = kThreads / kPairs < kRows ? kThreads / kPairs : kRows;
  static constexpr int kValueRows = kRows / kShares;  // Of one thread.

  struct Tile {
    bool is_k;
    int key;     // The first, in the partition.
    int offset;  // In the row's bytes.
    int bytes;
  };

 public:
  GPU_DEVICE StreamBlock(const AttentionLaunch& a, int first_row)
      : a_(a), first_row_(first_row), rows_(MinOf(Sequence().rows * a.group - first_row, kRows)) {
    const std::int32_t position = Sequence().position;
    const std::int32_t end = position + LastToken() + 1;
    const std::int32_t oldest = a.FirstKey(position + FirstToken() + 1);
    begin_ = oldest / kCudaPartition * kCudaPartition +
             static_cast<std::int32_t>(blockIdx.x) * kCudaPartition;
    keys_ = {MaxOf(oldest, begin_), MinOf(end, begin_ + kCudaPartition)};
    first_ = (keys_.begin - begin_) / kKeys;
    count_ = (keys_.end - begin_ + kKeys - 1) / kKeys - first_;
  }

  GPU_DEVICE void Run() {
    if (keys_.begin >= keys_.end) return;
    ListPages(a_, Sequence(), KvHead(), keys_, Pages());
    gpu::SyncThreads();
    for (int t = 0; t < kSlots - 1; ++t) Start(t);
    if constexpr (Elements::kScaled) LoadScales();
    LoadQuery();
    Scores();
    gpu::SyncThreads();
    Weights();
    Values();
  }

 private:
  GPU_DEVICE int KSlices() const {
    return (a_.kv.k_dim * Elements::kBytes + kSliceBytes - 1) / kSliceBytes;
  }
  GPU_DEVICE int VSlices() const {
    return (a_.kv.v_dim * Elements::kBytes + kSliceBytes - 1) / kSliceBytes;
  }
  GPU_DEVICE int RowBytes(bool is_k) const {
    return Elements::kBytes * (is_k ? a_.kv.k_dim : a_.kv.v_dim);
  }
  GPU_DEVICE Tile TileAt(int t) const {
    const int k_slices = KSlices();
    const bool is_k = t < count_ * k_slices;
    const int i = is_k ? t : t - count_ * k_slices;
    const int key = is_k ? i / k_slices : i % count_;
    const int offset = (is_k ? i % k_slices : i / count_) * kSliceBytes;
    return {is_k, (first_ + key) * kKeys, offset, MinOf(RowBytes(is_k) - offset, kSliceBytes)};
  }

  // Starts the copies of tile t, if there is one; keys that nobody sees become zeros.
  GPU_DEVICE void Start(int t) const {
    if (t < count_ * (KSlices() + VSlices())) Copy(TileAt(t), Shared::Slot(t));
    gpu::CopyAsyncCommit();
  }
  GPU_DEVICE void Copy(const Tile& tile, std::byte* to) const {
    constexpr int kVectors = kSliceBytes / 16;  // Of a key.
    const int vector = Thread() % kVectors * 16;
    if (vector >= tile.bytes) return;
    const int row_bytes = RowBytes(tile.is_k);
    const std::int64_t offset = (tile.is_k ? 0 : a_.kv.k_bytes) + tile.offset + vector;
    const int first_page = keys_.begin >> a_.shifts.page;
    const std::byte* const* const pages = Pages() - first_page;
    GPU_UNROLL(4)
    for (int key = Thread() / kVectors; key < kKeys; key += kThreads / kVectors) {
      const std::int32_t position = begin_ + tile.key + key;
      const bool live = position >= keys_.begin && position < keys_.end;
      const std::int32_t at = live ? position : keys_.begin;
      const std::int32_t in_page = at & (a_.kv.page_tokens - 1);
      CopyOfRow<dtype>(to + key * kStride + vector,
                       pages[at >> a_.shifts.page] + offset + std::int64_t{in_page} * row_bytes,
                       tile.is_k ? a_.kv.k_dim : a_.kv.v_dim, live);
    }
  }
  // Waits for tile t, then starts the one that takes the place of t - 1.
  GPU_DEVICE const std::byte* Next(int t) const {
    gpu::CopyAsyncWait<kSlots - 2>();
    gpu::SyncThreads();
    Start(t + kSlots - 1);
    return Shared::Slot(t);
  }

  // Of the partition's keys; zeros for those that nobody sees.
  GPU_DEVICE void LoadScales() const {
    const std::byte* const* const pages = Pages() - (keys_.begin >> a_.shifts.page);
    for (int key = Thread(); key < kCudaPartition; key += kThreads) {
      const std::int32_t position = begin_ + key;
      float of_k = 0;
      float of_v = 0;
      if (position >= keys_.begin && position < keys_.end) {
        const std::byte* const page = pages[position >> a_.shifts.page];
        const std::int32_t in_page = position & (a_.kv.page_tokens - 1);
        of_k = gpu::FromF16(gpu::Load<std::uint16_t>(page + ScaleAt(a_.kv, in_page, true)));
        of_v = gpu::FromF16(gpu::Load<std::uint16_t>(page + ScaleAt(a_.kv, in_page, false)));
      }
      gpu::Store(Shared::Scales() + key, of_k);
      gpu::Store(Shared::Scales() + kCudaPartition + key, of_v);
    }
  }
  // Of a key in the partition.
  GPU_DEVICE static float Scale(bool is_k, int key) {
    if constexpr (!Elements::kScaled) return 1;
    return gpu::Load<float>(Shared::Scales() + (is_k ? 0 : kCudaPartition) + key);
  }

  GPU_DEVICE void LoadQuery() const {
    for (int i = Thread(); i < kRows * a_.kv.k_dim / 4; i += kThreads) {
      const int r = i % kRows;
      float4 x = {0, 0, 0, 0};
      if (r < rows_) {
        const std::int64_t token = Sequence().row_begin + Token(r);
        const std::int64_t row = token * a_.qo_heads + Head(r);
        x = gpu::Load<float4>(a_.q + row * a_.kv.k_dim + i / kRows * 4);
        x = {x.x * a_.factor, x.y * a_.factor, x.z * a_.factor, x.w * a_.factor};
      }
      gpu::Store(Shared::Query() + 4 * i, x);
    }
  }

  // A thread per key and share of the rows. The barrier of Next is also the one behind the writes of
  // the query and of the scales.
  GPU_DEVICE void Scores() const {
    const int key = Thread() % kKeys;
    const int first = Thread() / kKeys * kScoreRows;
    int t = 0;
    for (int key_tile = 0; key_tile < count_; ++key_tile) {
      float sums[kScoreRows][4] = {};
      Tile tile{};
      for (int slice = 0; slice < KSlices(); ++slice, ++t) {
        tile = TileAt(t);
        const std::byte* const k = Next(t) + key * kStride;
        if (first < kRows) AddProducts(tile, k, Scale(true, tile.key + key), first, sums);
      }
      if (first >= kRows) continue;
      float* const to = Shared::Weights() + (tile.key + key) * kRows + first;
      GPU_UNROLL(8) for (int r = 0; r < kScoreRows; ++r) {
        to[r] = (sums[r][0] + sums[r][2]) + (sums[r][1] + sums[r][3]);
      }
    }
  }
  GPU_DEVICE void AddProducts(const Tile& tile, const std::byte* k, float scale, int first_row,
                              float (&sums)[kScoreRows][4]) const {
    const float* q = Shared::Query() + tile.offset / Elements::kBytes * kRows + 4 * first_row;
    const int elements = tile.bytes / Elements::kBytes;
    GPU_UNROLL(2) for (int d = 0; d < elements; d += 8, q += 8 * kRows) {
      float x[8];
      Elements::Load(k + d * Elements::kBytes).Widen(scale, x);
      GPU_UNROLL(8) for (int r = 0; r < kScoreRows; ++r) {
        const auto low = gpu::Load<float4>(q + 4 * r);
        const auto high = gpu::Load<float4>(q + 4 * (kRows + r));
        const float y[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        GPU_UNROLL(8) for (int i = 0; i < 8; ++i) {
          sums[r][i % 4] = gpu::Fma(y[i], x[i], sums[r][i % 4]);
        }
      }
    }
  }

  // Scores become weights, by 16 threads per row; m and l go to the state.
  GPU_DEVICE void Weights() const {
    const auto lane = static_cast<int>(threadIdx.x % 16);
    for (int base = 0; base < kRows; base += kThreads / 16) {
      const int r = base + static_cast<int>(threadIdx.x / 16);
      const KeySpan seen = r < rows_ ? Seen(r) : KeySpan{0, 0};
      float m = NoKey();
      for (int key = lane; key < kCudaPartition && r < kRows; key += 16) {
        if (key >= seen.begin && key < seen.end) m = MaxOf(m, Shared::Weights()[key * kRows + r]);
      }
      for (int distance = 8; distance > 0; distance /= 2) m = MaxOf(m, gpu::ShflXor(m, distance));
      float l = 0;
      for (int key = lane; key < kCudaPartition && r < kRows; key += 16) {
        float* const weight = Shared::Weights() + key * kRows + r;
        float p = 0;
        if (key >= seen.begin && key < seen.end) p = Exp2Cuda(*weight - m);
        l += p;
        *weight = p;
      }
      for (int distance = 8; distance > 0; distance /= 2) l += gpu::ShflXor(l, distance);
      if (lane == 0 && seen.begin < seen.end) a_.state_ml[State(r)] = float2{m, l};
    }
  }

  // A thread per pair of dims and share of the rows. The barrier of Next is also the one behind the
  // weights.
  GPU_DEVICE void Values() const {
    const int pair = Thread() % kPairs;
    const int first = Thread() / kPairs * kValueRows;
    KeySpan seen[kValueRows];
    GPU_UNROLL(8) for (int r = 0; r < kValueRows; ++r) {
      seen[r] = first + r < rows_ ? Seen(first + r) : KeySpan{0, 0};
    }
    int t = count_ * KSlices();
    for (int slice = 0; slice < VSlices(); ++slice) {
      float o[kValueRows][2] = {};
      const int offset = slice * kSliceBytes + 2 * pair * Elements::kBytes;
      const bool mine = first < kRows && offset < RowBytes(false);
      for (int key_tile = 0; key_tile < count_; ++key_tile, ++t) {
        const std::byte* const v = Next(t);
        const int key = TileAt(t).key;
        if (!mine) continue;
        // Rows of several tokens do not see the same keys, and a value that one must not see may be
        // anything.
        if (FirstToken() == LastToken()) {
          AddValues(v, key, pair, first, o);
        } else {
          AddSeenValues(v, key, pair, first, seen, o);
        }
      }
      if (mine) WriteValues(offset / Elements::kBytes, first, seen, o);
    }
  }
  GPU_DEVICE void AddValues(const std::byte* v, int first_key, int pair, int first_row,
                            float (&o)[kValueRows][2]) const {
    const int begin = MaxOf(keys_.begin - begin_ - first_key, 0);
    const int end = MinOf(keys_.end - begin_ - first_key, kKeys);
    const float* const weights = Shared::Weights() + first_key * kRows + first_row;
    GPU_UNROLL(8) for (int key = begin; key < end; ++key) {
      float x[2];
      Elements::Pair(v + key * kStride, pair, Scale(false, first_key + key), x[0], x[1]);
      float p[kValueRows];
      LoadFloats(weights + key * kRows, p);
      GPU_UNROLL(8) for (int r = 0; r < kValueRows; ++r) {
        o[r][0] = gpu::Fma(p[r], x[0], o[r][0]);
        o[r][1] = gpu::Fma(p[r], x[1], o[r][1]);
      }
    }
  }
  GPU_DEVICE void AddSeenValues(const std::byte* v, int first_key, int pair, int first_row,
                                const KeySpan (&seen)[kValueRows],
                                float (&o)[kValueRows][2]) const {
    for (int key = 0; key < kKeys; ++key) {
      float x[2];
      Elements::Pair(v + key * kStride, pair, Scale(false, first_key + key), x[0], x[1]);
      const float* const weights = Shared::Weights() + (first_key + key) * kRows + first_row;
      GPU_UNROLL(8) for (int r = 0; r < kValueRows; ++r) {
        if (first_key + key < seen[r].begin || first_key + key >= seen[r].end) continue;
        o[r][0] = gpu::Fma(weights[r], x[0], o[r][0]);
        o[r][1] = gpu::Fma(weights[r], x[1], o[r][1]);
      }
    }
  }
  GPU_DEVICE void WriteValues(int dim, int first_row, const KeySpan (&seen)[kValueRows],
                              const float (&o)[kValueRows][2]) const {
    GPU_UNROLL(8) for (int r = 0; r < kValueRows; ++r) {
      if (seen[r].begin >= seen[r].end) continue;
      gpu::Store(a_.state_o + State(first_row + r) * a_.kv.v_dim + dim, float2{o[r][0], o[r][1]});
    }
  }

  GPU_DEVICE static int Thread() { return static_cast<int>(threadIdx.x); }
  GPU_DEVICE const CudaSequence& Sequence() const { return a_.kv.sequences[blockIdx.z]; }
  GPU_DEVICE int KvHead() const { return static_cast<int>(blockIdx.y) % a_.kv.kv_heads; }
  GPU_DEVICE const std::byte** Pages() const {
    return SharedAt<const std::byte*>(Shared::Pages(a_.kv));
  }
  GPU_DEVICE int FirstToken() const { return first_row_ / a_.group; }
  GPU_DEVICE int LastToken() const { return (first_row_ + rows_ - 1) / a_.group; }
  GPU_DEVICE int Token(int r) const { return (first_row_ + r) / a_.group; }
  GPU_DEVICE int Head(int r) const { return KvHead() * a_.group + (first_row_ + r) % a_.group; }
  // The keys that a row sees, in the partition.
  GPU_DEVICE KeySpan Seen(int r) const {
    const std::int32_t end = Sequence().position + Token(r) + 1;
    return {MaxOf(a_.FirstKey(end), keys_.begin) - begin_, MinOf(end, keys_.end) - begin_};
  }
  GPU_DEVICE std::int64_t State(int r) const {
    const std::int32_t first = a_.FirstKey(Sequence().position + Token(r) + 1) / kCudaPartition;
    return a_.State(static_cast<std::int32_t>(blockIdx.z), Token(r), Head(r),
                    begin_ / kCudaPartition - first);
  }

  const AttentionLaunch& a_;
  const int first_row_;
  const int rows_;
  std::int32_t begin_ = 0;  // Of the partition.
  KeySpan keys_ = {0, 0};   // Of it, what some row sees, and the tiles of keys that has.
  int first_ = 0;
  int count_ = 0;
};

template <KvDtype dtype, int kRows>
GPU_KERNEL(kThreads, 1)
StreamKernel(const AttentionLaunch a) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const CudaSequence& s = a.kv.sequences[blockIdx.z];
  const int first_row = static_cast<int>(blockIdx.y) / a.kv.kv_heads * kRows;
  if (!a.Streamed(s) || first_row >= s.rows * a.group) return;
  StreamBlock<dtype, kRows>(a, first_row).Run();
}

template <KvDtype dtype, int kRows>
cudaError_t Launch(const AttentionLaunch& a, cudaStream_t stream) {
  const auto kernel = StreamKernel<dtype, kRows>;
  const std::size_t bytes = StreamShared<dtype, kRows>::Bytes(a.kv);
  const cudaError_t allowed = gpu::AllowShared(kernel, bytes);
  if (allowed != cudaSuccess) return allowed;
  const int rows = MinOf(a.kv.rows_max * a.group, kStreamRowsMax);
  const int tiles = (rows + kRows - 1) / kRows;
  // Rows of several tokens see up to one partition more together than one of them.
  const int partitions = a.kv.partitions_max + (a.kv.rows_max > 1 ? 1 : 0);
  const dim3 grid(static_cast<unsigned>(partitions), static_cast<unsigned>(a.kv.kv_heads * tiles),
                  static_cast<unsigned>(a.kv.sequence_count));
  GPU_LAUNCH_EARLY(kernel, grid, dim3(kThreads), bytes, stream, a);
  return cudaGetLastError();
}

template <KvDtype dtype>
cudaError_t LaunchRows(const AttentionLaunch& a, cudaStream_t stream) {
  if (a.group == 1) return Launch<dtype, 1>(a, stream);
  return a.group <= 4 ? Launch<dtype, 4>(a, stream) : Launch<dtype, 8>(a, stream);
}

}  // namespace

cudaError_t LaunchStream(const AttentionLaunch& a, cudaStream_t stream) {
  return WithKvDtype(a.kv.dtype,
                     [&](auto dtype) { return LaunchRows<decltype(dtype)::value>(a, stream); });
}

}  // namespace penstock::kernels
