// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_cuda_parts.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kGroups = 8;       // Threads that share the rows: each has rows g, g + 8...
constexpr int kKeys = 64;        // Keys of a tile of K, 4 of each thread: c, c + 16, ...
constexpr int kKeyDims = 64;     // Dims of a tile of K.
constexpr int kValueKeys = 32;   // Keys of a tile of V.
constexpr int kValueDims = 128;  // Dims of a tile of V, 8 of each thread: 4c..4c+3 and 64 on.
constexpr int kTileFloats = 4096;
static_assert(kKeys * kKeyDims == kTileFloats && kValueKeys * kValueDims == kTileFloats);
constexpr int kUnits = kTileFloats / 8 / kThreads;  // Eights of a tile that one thread brings.

// Rows of shared memory are stored with four floats i at i ^ (row & 7), so that lanes with a row
// each meet no bank twice. Rows are multiples of 32 floats long.
GPU_DEVICE int Swizzled(int row, int four) { return four ^ (row & 7); }

// A block's shared memory, in bytes from its start. 64 rows of 128 dims come to just half of what an
// SM of 9.0 has, less the KiB that each block costs.
struct TileShared {
  int q_stride;  // Floats of a row of q.
  std::size_t scores;
  std::size_t tile;
  std::size_t merge;
  std::size_t ends;
  std::size_t pages;
  std::size_t bytes;

  static constexpr TileShared Of(const AttentionLaunch& a, int rows) {
    TileShared s{};
    s.q_stride = (a.kv.k_dim + 31) / 32 * 32;
    s.scores = sizeof(float) * rows * s.q_stride;
    s.tile = s.scores + sizeof(float) * rows * kCudaPartition;
    s.merge = s.tile + sizeof(float) * kTileFloats;
    s.ends = s.merge + sizeof(float2) * rows;
    s.pages = s.ends + sizeof(std::int32_t) * rows;
    s.bytes = s.pages + sizeof(std::byte*) * PagesOfPartition(a.kv);
    return s;
  }
};

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

// One block per (kRows query rows of one sequence, KV head[, partition]).
template <KvDtype dtype, int kRows>
class TileBlock {
  using Elements = KvElements<dtype>;
  static constexpr int kMine = kRows / kGroups;  // Rows of one thread.

  // A part of a row of K or V tiles.
  struct Stage {
    bool is_k;
    int key;  // The first, in the partition.
    int dim;
  };

 public:
  GPU_DEVICE TileBlock(const AttentionLaunch& a, std::byte* shared, std::int32_t sequence,
                       std::int32_t first_row, std::int32_t kv_head)
      : a_(a),
        s_(a.kv.sequences[sequence]),
        sequence_(sequence),
        first_row_(first_row),
        kv_head_(kv_head),
        rows_(MinOf(s_.rows * a.group - first_row, kRows)) {
    const TileShared layout = TileShared::Of(a, kRows);
    q_stride_ = layout.q_stride;
    q_ = reinterpret_cast<float*>(shared);
    scores_ = reinterpret_cast<float*>(shared + layout.scores);
    tile_ = reinterpret_cast<float*>(shared + layout.tile);
    merge_ = reinterpret_cast<float2*>(shared + layout.merge);
    ends_ = reinterpret_cast<std::int32_t*>(shared + layout.ends);
    pages_ = reinterpret_cast<const std::byte**>(shared + layout.pages);
    thread_ = static_cast<int>(threadIdx.x);
    // A warp has 4 groups and 8 columns, so that what it reads at once is rarely the same bank.
    const int warp = thread_ / 32;
    const int lane = thread_ % 32;
    row_ = warp % 2 * 4 + lane / 8;
    column_ = warp / 2 * 8 + lane % 8;
    oldest_ = a.FirstKey(s_.position + first_row / a.group + 1);
    end_ = s_.position + (first_row + rows_ - 1) / a.group + 1;
  }

  // All partitions; writes the rows of `out`.
  GPU_DEVICE void Run() {
    LoadRows();
    const int last = (end_ - 1) / kCudaPartition;
    for (int partition = oldest_ / kCudaPartition; partition <= last; ++partition) {
      RunPartition(partition, false);
    }
    Finish();
  }
  // One partition; writes states.
  GPU_DEVICE void RunSplit(int partition_in_tile) {
    const int partition = oldest_ / kCudaPartition + partition_in_tile;
    if (partition * kCudaPartition >= end_) return;
    LoadRows();
    RunPartition(partition, true);
  }

 private:
  // q, scaled, and where each row's keys end.
  GPU_DEVICE void LoadRows() {
    const int fours = q_stride_ / 4;
    for (int i = thread_; i < kRows * fours; i += kThreads) {
      const int r = i / fours;
      const int four = i - r * fours;
      float4 x = {0, 0, 0, 0};
      if (r < rows_ && 4 * four < a_.kv.k_dim) {
        const std::int64_t row = RowOf(r);
        x = gpu::Load<float4>(a_.q + row * a_.kv.k_dim + 4 * four);
        x = {x.x * a_.factor, x.y * a_.factor, x.z * a_.factor, x.w * a_.factor};
      }
      gpu::Store(q_ + r * q_stride_ + 4 * Swizzled(r, four), x);
    }
    for (int r = thread_; r < kRows; r += kThreads) {
      ends_[r] = r < rows_ ? s_.position + (first_row_ + r) / a_.group + 1 : 0;
    }
  }

  // (row of the batch) * qo_heads + head.
  GPU_DEVICE std::int64_t RowOf(int r) const {
    const int row = first_row_ + r;
    const int token = row / a_.group;
    return std::int64_t{s_.row_begin + token} * a_.qo_heads + kv_head_ * a_.group + row -
           token * a_.group;
  }
  GPU_DEVICE std::int64_t StateOf(int r, int partition) const {
    const int row = first_row_ + r;
    const int token = row / a_.group;
    return a_.State(sequence_, token, kv_head_ * a_.group + row - token * a_.group,
                    partition - a_.FirstKey(ends_[r]) / kCudaPartition);
  }

  GPU_DEVICE void RunPartition(int partition, bool split) {
    partition_ = partition;
    begin_ = partition * kCudaPartition;
    keys_ = {MaxOf(oldest_, begin_), MinOf(end_, begin_ + kCudaPartition)};
    gpu::SyncThreads();  // The pages of the partition before are no longer read.
    ListPages(a_, s_, kv_head_, keys_, pages_);
    gpu::SyncThreads();
    Scores();
    Weights(split);
    Values(split);
  }

  // The eights of `stage` that are this thread's; zeros for what no row sees.
  GPU_DEVICE void Fetch(const Stage& stage, Elements (&raw)[kUnits]) const {
    const int width = stage.is_k ? kKeyDims / 8 : kValueDims / 8;
    const int dims = stage.is_k ? a_.kv.k_dim : a_.kv.v_dim;
    const int first_page = keys_.begin >> a_.shifts.page;
    const int dim = stage.dim + 8 * (thread_ % width);
    const std::int64_t offset =
        (stage.is_k ? 0 : a_.kv.k_bytes) + std::int64_t{dim} * Elements::kBytes;
    GPU_UNROLL(8) for (int i = 0; i < kUnits; ++i) {
      const std::int32_t position = begin_ + stage.key + thread_ / width + i * (kThreads / width);
      raw[i] = Elements::Zero();
      if (position < keys_.begin || position >= keys_.end || dim >= dims) continue;
      const std::int64_t in_page = position & (a_.kv.page_tokens - 1);
      raw[i] = Elements::Load(pages_[(position >> a_.shifts.page) - first_page] + offset +
                              in_page * dims * Elements::kBytes);
    }
  }
  // Puts them into the tile, widened, once all threads are done with what it held.
  GPU_DEVICE void Put(bool is_k, const Elements (&raw)[kUnits]) const {
    const int width = is_k ? kKeyDims / 8 : kValueDims / 8;
    gpu::SyncThreads();
    GPU_UNROLL(8) for (int i = 0; i < kUnits; ++i) {
      const int key = thread_ / width + i * (kThreads / width);
      const int four = 2 * (thread_ % width);
      float x[8];
      raw[i].Widen(x);
      float* const row = tile_ + key * width * 8;
      gpu::Store(row + 4 * Swizzled(key, four), float4{x[0], x[1], x[2], x[3]});
      gpu::Store(row + 4 * Swizzled(key, four + 1), float4{x[4], x[5], x[6], x[7]});
    }
    gpu::SyncThreads();
  }

  GPU_DEVICE void Scores() {
    const int key_stop = keys_.end - begin_;
    Stage stage = {true, (keys_.begin - begin_) & -kKeys, 0};
    Elements raw[kUnits];
    Fetch(stage, raw);
    float sums[kMine][4][4] = {};  // [row, key, sum]
    while (stage.key < key_stop) {
      Put(true, raw);
      Stage next = {true, stage.key, stage.dim + kKeyDims};
      const bool last_dims = next.dim >= a_.kv.k_dim;
      if (last_dims) next = {true, stage.key + kKeys, 0};
      if (next.key < key_stop) Fetch(next, raw);
      AddProducts(stage.dim, sums);
      if (last_dims) WriteScores(stage.key, sums);
      stage = next;
    }
    gpu::SyncThreads();
  }

  GPU_DEVICE void AddProducts(int dim, float (&sums)[kMine][4][4]) const {
    const int fours = MinOf(a_.kv.k_dim - dim, kKeyDims) / 4;
    const float* const k = tile_ + column_ * kKeyDims;
    const float* const q = q_ + row_ * q_stride_ + dim;
    GPU_UNROLL(2) for (int four = 0; four < fours; ++four) {
      float4 x[4];
      GPU_UNROLL(4) for (int j = 0; j < 4; ++j) {
        x[j] = gpu::Load<float4>(k + 16 * j * kKeyDims + 4 * Swizzled(column_, four));
      }
      GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
        const auto y = gpu::Load<float4>(q + kGroups * r * q_stride_ + 4 * Swizzled(row_, four));
        GPU_UNROLL(4) for (int j = 0; j < 4; ++j) {
          sums[r][j][0] = gpu::Fma(y.x, x[j].x, sums[r][j][0]);
          sums[r][j][1] = gpu::Fma(y.y, x[j].y, sums[r][j][1]);
          sums[r][j][2] = gpu::Fma(y.z, x[j].z, sums[r][j][2]);
          sums[r][j][3] = gpu::Fma(y.w, x[j].w, sums[r][j][3]);
        }
      }
    }
  }

  // Where a row's score of a key (in the partition) lies.
  GPU_DEVICE float* ScoreAt(int row, int key) const {
    return scores_ + row * kCudaPartition + 4 * Swizzled(row, key / 4) + key % 4;
  }

  GPU_DEVICE void WriteScores(int first_key, float (&sums)[kMine][4][4]) const {
    GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
      GPU_UNROLL(4) for (int j = 0; j < 4; ++j) {
        float(&four)[4] = sums[r][j];
        *ScoreAt(row_ + kGroups * r, first_key + column_ + 16 * j) =
            (four[0] + four[2]) + (four[1] + four[3]);
        four[0] = four[1] = four[2] = four[3] = 0;
      }
    }
  }

  // Scores become weights, by 16 threads per row. The state's m and l stay with them: lane i has
  // those of the i-th of their rows.
  GPU_DEVICE void Weights(bool split) {
    const int lane = thread_ % 16;
    for (int i = 0; i < kMine; ++i) {
      const int r = thread_ / 16 + kGroups * i;
      const std::int32_t row_first = a_.FirstKey(ends_[r]);
      const int begin = MaxOf(row_first, keys_.begin) - begin_;
      const int stop = MinOf(ends_[r], keys_.end) - begin_;
      float x[16];
      float m = NoKey();
      GPU_UNROLL(16) for (int j = 0; j < 16; ++j) {
        const int key = 16 * j + lane;
        x[j] = key >= begin && key < stop ? *ScoreAt(r, key) : NoKey();
        m = MaxOf(m, x[j]);
      }
      for (int distance = 8; distance > 0; distance /= 2) m = MaxOf(m, gpu::ShflXor(m, distance));
      float l = 0;
      GPU_UNROLL(16) for (int j = 0; j < 16; ++j) {
        const int key = 16 * j + lane;
        const float p = key >= begin && key < stop ? Exp2Cuda(x[j] - m) : 0.0f;
        l += p;
        *ScoreAt(r, key) = p;
      }
      for (int distance = 8; distance > 0; distance /= 2) l += gpu::ShflXor(l, distance);
      if (split) {
        if (lane == 0 && begin < stop) a_.state_ml[StateOf(r, partition_)] = float2{m, l};
      } else if (lane == i) {
        merge_[r] = MergeState(row_first / kCudaPartition == partition_, begin < stop, m, l);
      }
    }
  }
  GPU_DEVICE float2 MergeState(bool first, bool sees, float m, float l) {
    if (!sees) return float2{1, 0};
    if (first) {
      m_ = m;
      l_ = l;
      return float2{-1, 1};
    }
    const float both = MaxOf(m_, m);
    const float old = Exp2Cuda(m_ - both);
    const float next = Exp2Cuda(m - both);
    m_ = both;
    l_ = gpu::Fma(l_, old, l * next);
    return float2{old, next};
  }

  GPU_DEVICE void Values(bool split) {
    for (int dim = 0; dim < a_.kv.v_dim; dim += kValueDims) {
      if (a_.kv.v_dim - dim > kValueDims / 2) {
        ValueSlice<8>(dim, split);
      } else {
        ValueSlice<4>(dim, split);
      }
    }
  }

  // kDims of 8 dims of each thread.
  template <int kDims>
  GPU_DEVICE void ValueSlice(int dim, bool split) {
    const int key_stop = keys_.end - begin_;
    // Keys that every row sees.
    const std::int32_t all_begin = a_.FirstKey(end_) - begin_;
    const std::int32_t all_stop = ends_[0] - begin_;
    Stage stage = {false, (keys_.begin - begin_) & -kValueKeys, dim};
    Elements raw[kUnits];
    Fetch(stage, raw);
    float o[kMine][kDims] = {};
    while (stage.key < key_stop) {
      Put(false, raw);
      const Stage next = {false, stage.key + kValueKeys, dim};
      if (next.key < key_stop) Fetch(next, raw);
      if (stage.key >= all_begin && stage.key + kValueKeys <= all_stop && rows_ == kRows) {
        AddValues(stage.key, o);
      } else {
        AddVisibleValues(stage.key, o);
      }
      stage = next;
    }
    WriteValues(dim, o, split);
  }

  template <int kDims>
  GPU_DEVICE void ValuesOf(int key, float (&x)[kDims]) const {
    GPU_UNROLL(2) for (int i = 0; i < kDims; i += 4) {
      const auto four =
          gpu::Load<float4>(tile_ + key * kValueDims + 4 * Swizzled(key, column_ + 4 * i));
      x[i] = four.x;
      x[i + 1] = four.y;
      x[i + 2] = four.z;
      x[i + 3] = four.w;
    }
  }

  template <int kDims>
  GPU_DEVICE void AddValues(int first_key, float (&o)[kMine][kDims]) const {
    GPU_UNROLL(1) for (int key = 0; key < kValueKeys; key += 4) {
      float p[kMine][4];
      GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
        const auto four = gpu::Load<float4>(ScoreAt(row_ + kGroups * r, first_key + key));
        p[r][0] = four.x;
        p[r][1] = four.y;
        p[r][2] = four.z;
        p[r][3] = four.w;
      }
      GPU_UNROLL(4) for (int j = 0; j < 4; ++j) {
        float x[kDims];
        ValuesOf(key + j, x);
        GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
          GPU_UNROLL(8) for (int i = 0; i < kDims; ++i) {
            o[r][i] = gpu::Fma(p[r][j], x[i], o[r][i]);
          }
        }
      }
    }
  }

  // As AddValues, but a row takes only what it sees: of a value that it must not see, not even a
  // zeroth part.
  template <int kDims>
  GPU_DEVICE void AddVisibleValues(int first_key, float (&o)[kMine][kDims]) const {
    GPU_UNROLL(1) for (int key = 0; key < kValueKeys; ++key) {
      const std::int32_t position = begin_ + first_key + key;
      float x[kDims];
      ValuesOf(key, x);
      GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
        const std::int32_t end = ends_[row_ + kGroups * r];
        if (position >= end || position < a_.FirstKey(end)) continue;
        const float p = *ScoreAt(row_ + kGroups * r, first_key + key);
        GPU_UNROLL(8) for (int i = 0; i < kDims; ++i) o[r][i] = gpu::Fma(p, x[i], o[r][i]);
      }
    }
  }

  // Merges the sums of dims dim + 4 * column.. and dim + 64 + 4 * column.. into `out`, or writes
  // them to the state.
  template <int kDims>
  GPU_DEVICE void WriteValues(int dim, const float (&o)[kMine][kDims], bool split) const {
    GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
      const int row = row_ + kGroups * r;
      if (row >= rows_) continue;
      if (split && (ends_[row] <= begin_ || a_.FirstKey(ends_[row]) >= keys_.end)) continue;
      float* const to = split ? a_.state_o + StateOf(row, partition_) * a_.kv.v_dim
                              : a_.out + RowOf(row) * a_.kv.v_dim;
      const float2 factors = split ? float2{-1, 1} : merge_[row];
      GPU_UNROLL(2) for (int i = 0; i < kDims; i += 4) {
        const int at = dim + 4 * column_ + 16 * i;
        if (at >= a_.kv.v_dim) continue;
        float4 sum = {o[r][i], o[r][i + 1], o[r][i + 2], o[r][i + 3]};
        if (factors.x >= 0) {
          const auto old = gpu::Load<float4>(to + at);
          sum = {gpu::Fma(old.x, factors.x, sum.x * factors.y),
                 gpu::Fma(old.y, factors.x, sum.y * factors.y),
                 gpu::Fma(old.z, factors.x, sum.z * factors.y),
                 gpu::Fma(old.w, factors.x, sum.w * factors.y)};
        }
        gpu::Store(to + at, sum);
      }
    }
  }

  // out = o / l. Each thread divides what it wrote.
  GPU_DEVICE void Finish() const {
    gpu::SyncThreads();  // The merge factors are no longer read.
    const int lane = thread_ % 16;
    if (lane < kMine) merge_[thread_ / 16 + kGroups * lane] = float2{l_, 0};
    gpu::SyncThreads();
    GPU_UNROLL(1) for (int r = 0; r < kMine; ++r) {
      const int row = row_ + kGroups * r;
      if (row >= rows_) continue;
      float* const out = a_.out + RowOf(row) * a_.kv.v_dim;
      const float l = merge_[row].x;
      for (int at = 4 * column_; at < a_.kv.v_dim; at += 64) {
        const auto o = gpu::Load<float4>(out + at);
        gpu::Store(out + at, float4{gpu::Divide(o.x, l), gpu::Divide(o.y, l), gpu::Divide(o.z, l),
                                    gpu::Divide(o.w, l)});
      }
    }
  }

  const AttentionLaunch& a_;
  const CudaSequence s_;
  const std::int32_t sequence_;
  const std::int32_t first_row_;
  const std::int32_t kv_head_;
  const int rows_;
  std::int32_t oldest_;  // The first key that some row sees, and where the last one's end.
  std::int32_t end_;
  int thread_;
  int row_;
  int column_;
  int q_stride_;
  float* q_;       // [kRows, q_stride], scaled
  float* scores_;  // [kRows, 256], then the weights
  float* tile_;    // K [kKeys, kKeyDims] or V [kValueKeys, kValueDims]
  // [kRows]: how the state so far and that of the partition merge, o = o * x + o' * y; x is -1 in
  // the first that a row sees, where o = o'. At last x is l.
  float2* merge_;
  std::int32_t* ends_;  // [kRows]
  const std::byte** pages_;
  // Of the partition at hand.
  int partition_ = 0;
  std::int32_t begin_ = 0;
  KeySpan keys_ = {0, 0};
  // Of the row that is this thread's; see Weights.
  float m_ = 0;
  float l_ = 0;
};

template <KvDtype dtype, int kRows>
GPU_KERNEL(kThreads, 2)
TileKernel(const AttentionLaunch a, const bool split) {
  GPU_DYNAMIC_SHARED(shared);
  std::int32_t sequence = 0;
  std::int32_t first_row = 0;
  // The last tiles see the most keys, so they begin.
  const int number = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  if (!FindTile<kRows>(a, number, &sequence, &first_row)) return;
  const CudaSequence& s = a.kv.sequences[sequence];
  if (a.Streamed(s) || a.Split(s) != split) return;
  TileBlock<dtype, kRows> block(a, shared, sequence, first_row,
                                static_cast<std::int32_t>(blockIdx.y));
  if (split) {
    block.RunSplit(static_cast<int>(blockIdx.z));
  } else {
    block.Run();
  }
}

template <KvDtype dtype, int kRows>
cudaError_t Launch(const AttentionLaunch& a, bool split, cudaStream_t stream) {
  const auto kernel = TileKernel<dtype, kRows>;
  const std::size_t bytes = TileShared::Of(a, kRows).bytes;
  const cudaError_t allowed = AllowShared(kernel, bytes);
  if (allowed != cudaSuccess) return allowed;
  const int tiles = a.kv.row_count * a.group / kRows + a.kv.sequence_count;
  // Rows of several tokens see up to one partition more together than one of them.
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(a.kv.kv_heads),
                  split ? static_cast<unsigned>(a.kv.partitions_max + 1) : 1u);
  GPU_LAUNCH(kernel, grid, dim3(kThreads), bytes, stream, a, split);
  return cudaGetLastError();
}

template <KvDtype dtype>
cudaError_t LaunchRows(const AttentionLaunch& a, bool split, cudaStream_t stream) {
  switch (TileRows(a.kv.k_dim)) {
    case 64:
      return Launch<dtype, 64>(a, split, stream);
    case 32:
      return Launch<dtype, 32>(a, split, stream);
    default:
      return Launch<dtype, 16>(a, split, stream);
  }
}

}  // namespace

cudaError_t LaunchTiles(const AttentionLaunch& a, bool split, cudaStream_t stream) {
  switch (a.kv.dtype) {
    case KvDtype::kF16:
      return LaunchRows<KvDtype::kF16>(a, split, stream);
    case KvDtype::kBF16:
      return LaunchRows<KvDtype::kBF16>(a, split, stream);
    case KvDtype::kF32:
      return LaunchRows<KvDtype::kF32>(a, split, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace penstock::kernels
