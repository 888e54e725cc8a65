// SPDX-License-Identifier: Apache-2.0
// The tiled way of kernels/attention_cuda.h: what a block does. Q K^T (attention_tile_cuda_scores.h)
// and then P V as products of tiles from shared memory, with the sums in registers. For kernel files
// only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention_cuda_parts.h"
#include "kernels/attention_tile_cuda_scores.h"

namespace penstock::kernels {

// One block per (kRows query rows of one sequence, KV head[, partition]).
template <KvDtype dtype, int kRows>
class TileBlock {
  using Elements = KvElements<dtype>;
  using Shared = TileShared<kRows>;
  using Products = TileScores<kRows>;
  static constexpr int kMine = kRows / kTileGroups;  // Rows of one thread.

  // Of a tile of V. Where elements are scaled its tiles leave half of their room to the scales.
  static constexpr int kValueKeys =
      kTileValueBytes / kTileValueDims / (Elements::kScaled ? 2 : Elements::kBytes);
  static constexpr int kValueSlotBytes = kValueKeys * kTileValueDims * Elements::kBytes;

  // A tile of K.
  struct Stage {
    int key;  // The first, in the partition.
    int dim;
  };

 public:
  GPU_DEVICE TileBlock(const AttentionLaunch& a, std::int32_t sequence, std::int32_t first_row,
                       std::int32_t kv_head)
      : a_(a),
        sequence_(sequence),
        first_row_(first_row),
        kv_head_(kv_head),
        rows_(MinOf(a.kv.sequences[sequence].rows * a.group - first_row, kRows)) {}

  // From the `first`-th partition that some row sees on: all, and writes the rows of `out`; where
  // the sequence is split only that, and writes states.
  GPU_DEVICE void Run(int first) {
    const std::int32_t oldest = a_.FirstKey(Sequence().position + first_row_ / a_.group + 1);
    const std::int32_t end = Sequence().position + (first_row_ + rows_ - 1) / a_.group + 1;
    begin_ = (oldest / kCudaPartition + first) * kCudaPartition;
    if (begin_ >= end) return;
    LoadRows();
    do {
      RunPartition();
      begin_ += kCudaPartition;
    } while (!a_.split && begin_ < End());
    if (!a_.split) Finish();
  }

 private:
  // q, scaled, and where each row's keys end.
  GPU_DEVICE void LoadRows() {
    const int fours = a_.kv.k_dim / 4;
    GPU_UNROLL(1) for (int i = Thread(); i < kRows * fours; i += kTileThreads) {
      const int r = i % kRows;
      const int four = i / kRows;
      float4 x = {0, 0, 0, 0};
      if (r < rows_) {
        x = gpu::Load<float4>(a_.q + RowOf(r) * a_.kv.k_dim + 4 * four);
        x = {x.x * a_.factor, x.y * a_.factor, x.z * a_.factor, x.w * a_.factor};
      }
      const float elements[4] = {x.x, x.y, x.z, x.w};
      GPU_UNROLL(4)
      for (int e = 0; e < 4; ++e) gpu::Store(Products::QueryAt(4 * four + e, r), elements[e]);
    }
    for (int r = Thread(); r < kRows; r += kTileThreads) {
      // Rows that are not there see what the last one does, and nobody reads what they get.
      const int row = first_row_ + MinOf(r, rows_ - 1);
      Shared::Ends()[r] = Sequence().position + row / a_.group + 1;
    }
  }

  GPU_DEVICE const std::byte** Pages() const {
    return SharedAt<const std::byte*>(Shared::Pages(a_.kv));
  }

  // (row of the batch) * qo_heads + head.
  GPU_DEVICE std::int64_t RowOf(int r) const {
    const int row = first_row_ + r;
    const int token = row / a_.group;
    return std::int64_t{Sequence().row_begin + token} * a_.qo_heads + kv_head_ * a_.group + row -
           token * a_.group;
  }
  GPU_DEVICE std::int64_t StateOf(int r, int partition) const {
    const int row = first_row_ + r;
    const int token = row / a_.group;
    return a_.State(sequence_, token, kv_head_ * a_.group + row - token * a_.group,
                    partition - a_.FirstKey(Shared::Ends()[r]) / kCudaPartition);
  }

  GPU_DEVICE void RunPartition() {
    gpu::SyncThreads();  // The pages of the partition before are no longer read.
    ListPages(a_, Sequence(), kv_head_, Keys(), Pages());
    gpu::SyncThreads();
    Scores();
    StartValues(0, 0, 0);
    if constexpr (Elements::kScaled) LoadValueScales();
    Weights();
    Values();
  }

  // Eights of a tile of K, i < kTileUnits of each thread.
  GPU_DEVICE static int UnitKey(int i) {
    return static_cast<int>(threadIdx.x / 32 * 16 + threadIdx.x % 8) + i % 2 * 8;
  }
  GPU_DEVICE static int UnitDim(int i) {
    return static_cast<int>(threadIdx.x % 32 / 8 * 8) + i / 2 * 32;
  }

  // Of K or V, dims `dim`.. of the key at `position`.
  GPU_DEVICE const std::byte* Element(std::int32_t position, bool is_k, int dim) const {
    const int page = (position >> a_.shifts.page) - (Keys().begin >> a_.shifts.page);
    const int in_page = position & (a_.kv.page_tokens - 1);
    const int index = in_page * (is_k ? a_.kv.k_dim : a_.kv.v_dim) + dim;
    return Pages()[page] + (is_k ? 0 : a_.kv.k_bytes) + index * Elements::kBytes;
  }

  // Of the key at `position`.
  GPU_DEVICE float Scale(std::int32_t position, bool is_k) const {
    const int page = (position >> a_.shifts.page) - (Keys().begin >> a_.shifts.page);
    const int in_page = position & (a_.kv.page_tokens - 1);
    return gpu::FromF16(gpu::Load<std::uint16_t>(Pages()[page] + ScaleAt(a_.kv, in_page, is_k)));
  }

  // The thread's eights of a tile; zeros for what no row sees.
  struct Raw {
    Elements eights[kTileUnits];
    float scales[2];  // By UnitKey: 1 where elements are not scaled.
  };
  GPU_DEVICE void Fetch(const Stage& stage, Raw& raw) const {
    const KeySpan keys = Keys();
    GPU_UNROLL(2) for (int i = 0; i < 2; ++i) {
      raw.scales[i] = 1;
      if constexpr (Elements::kScaled) {
        const std::int32_t position = begin_ + stage.key + UnitKey(i);
        if (position >= keys.begin && position < keys.end) raw.scales[i] = Scale(position, true);
      }
    }
    GPU_UNROLL(8) for (int i = 0; i < kTileUnits; ++i) {
      const std::int32_t position = begin_ + stage.key + UnitKey(i);
      const int dim = stage.dim + UnitDim(i);
      raw.eights[i] = Elements::Zero();
      if (position < keys.begin || position >= keys.end || dim >= a_.kv.k_dim) continue;
      raw.eights[i] = Elements::Load(Element(position, true, dim));
    }
  }
  // Puts them into the tile, widened, once all threads are done with what it held.
  GPU_DEVICE static void Put(const Raw& raw) {
    gpu::SyncThreads();
    GPU_UNROLL(8) for (int i = 0; i < kTileUnits; ++i) {
      float x[8];
      raw.eights[i].Widen(raw.scales[i % 2], x);
      GPU_UNROLL(8)
      for (int e = 0; e < 8; ++e) gpu::Store(Products::KeyAt(UnitDim(i) + e, UnitKey(i)), x[e]);
    }
    gpu::SyncThreads();
  }

  GPU_DEVICE void Scores() {
    const int key_stop = Keys().end - begin_;
    Stage stage = {(Keys().begin - begin_) & -kTileKeys, 0};
    Raw raw;
    Fetch(stage, raw);
    float sums[Products::kScoreRows][8] = {};
    while (stage.key < key_stop) {
      Put(raw);
      Stage next = {stage.key, stage.dim + kTileKeyDims};
      const bool last_dims = next.dim >= a_.kv.k_dim;
      if (last_dims) next = {stage.key + kTileKeys, 0};
      if (next.key < key_stop) Fetch(next, raw);
      Products::AddProducts(stage.dim, MinOf(a_.kv.k_dim - stage.dim, kTileKeyDims), sums);
      if (last_dims) Products::WriteScores(stage.key, sums);
      stage = next;
    }
    gpu::SyncThreads();
  }

  // Scores become weights, by 16 threads per row. The state's m and l stay with them: lane i has
  // those of the i-th of their rows.
  GPU_DEVICE void Weights() {
    const int lane = Lane();
    for (int i = 0; i < kMine; ++i) {
      const int r = Half() + kTileGroups * i;
      const std::int32_t row_first = a_.FirstKey(Shared::Ends()[r]);
      const int begin = MaxOf(row_first, Keys().begin) - begin_;
      const int stop = MinOf(Shared::Ends()[r], Keys().end) - begin_;
      // Of key 16 * j + lane; with `four` swizzled, j's last bit is one of the offset's.
      float* const scores = Shared::Scores() + r * kCudaPartition;
      const int offset = 4 * SwizzledFour(r, lane / 4) + lane % 4;
      const auto score = [&](int j) { return scores + (offset ^ (j % 2 * 16)) + j / 2 * 32; };
      float x[16];
      float m = NoKey();
      GPU_UNROLL(16) for (int j = 0; j < 16; ++j) {
        const int key = 16 * j + lane;
        x[j] = key >= begin && key < stop ? *score(j) : NoKey();
        m = MaxOf(m, x[j]);
      }
      for (int distance = 8; distance > 0; distance /= 2) m = MaxOf(m, gpu::ShflXor(m, distance));
      float l = 0;
      GPU_UNROLL(16) for (int j = 0; j < 16; ++j) {
        const int key = 16 * j + lane;
        const float p = key >= begin && key < stop ? Exp2Cuda(x[j] - m) : 0.0f;
        l += p;
        *score(j) = p;
      }
      for (int distance = 8; distance > 0; distance /= 2) l += gpu::ShflXor(l, distance);
      if (a_.split) {
        if (lane == 0 && begin < stop && r < rows_) {
          a_.state_ml[StateOf(r, begin_ / kCudaPartition)] = float2{m, l};
        }
      } else if (lane == i) {
        Shared::Merge()[r] =
            MergeState(row_first / kCudaPartition == begin_ / kCudaPartition, begin < stop, m, l);
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

  // V comes in tiles as it is: kValueKeys keys of 128 dims, by dims and then keys, the next one on
  // its way while one is in use.
  GPU_DEVICE int FirstValueKey() const { return (Keys().begin - begin_) & -kValueKeys; }
  GPU_DEVICE int ValueTiles() const {  // Of the same dims.
    return (Keys().end - begin_ - FirstValueKey() + kValueKeys - 1) / kValueKeys;
  }
  GPU_DEVICE static std::byte* ValueSlot(int t) {
    return reinterpret_cast<std::byte*>(Shared::Tile()) + t % 2 * kValueSlotBytes;
  }
  // [256], behind the tiles of V; zeros for keys that no row sees.
  GPU_DEVICE static float* ValueScales() { return Shared::Tile() + 2 * kValueSlotBytes / 4; }
  GPU_DEVICE void LoadValueScales() const {
    const KeySpan keys = Keys();
    for (int key = Thread(); key < kCudaPartition; key += kTileThreads) {
      const std::int32_t position = begin_ + key;
      const bool live = position >= keys.begin && position < keys.end;
      gpu::Store(ValueScales() + key, live ? Scale(position, false) : 0.0f);
    }
  }
  // Starts the copies of tile `key_tile` of dims `dim`.. to slot t % 2; keys that no row sees become
  // zeros. Dims that are not there stay what they were: nobody reads their sums.
  GPU_DEVICE void StartValues(int t, int key_tile, int dim) const {
    constexpr int kVectors = kTileValueDims * Elements::kBytes / 16;  // Of a key.
    const int vector = Thread() % kVectors;
    const int at = dim + vector * 16 / Elements::kBytes;
    const KeySpan keys = Keys();
    if (at < a_.kv.v_dim) {
      GPU_UNROLL(4)
      for (int key = Thread() / kVectors; key < kValueKeys; key += kTileThreads / kVectors) {
        const std::int32_t position = begin_ + FirstValueKey() + key_tile * kValueKeys + key;
        const bool live = position >= keys.begin && position < keys.end;
        CopyOfRow<dtype>(ValueSlot(t) + 16 * (key * kVectors + vector),
                         Element(live ? position : keys.begin, false, at), a_.kv.v_dim, live);
      }
    }
    gpu::CopyAsyncCommit();
  }

  // The first tile is on its way.
  GPU_DEVICE void Values() {
    int t = 0;
    for (int dim = 0; dim < a_.kv.v_dim; dim += kTileValueDims) {
      if (a_.kv.v_dim - dim > kTileValueDims / 2) {
        ValueSlice<8>(dim, &t);
      } else {
        ValueSlice<4>(dim, &t);
      }
    }
  }

  // Dims dim + kDims * column.. of each thread.
  template <int kDims>
  GPU_DEVICE void ValueSlice(int dim, int* t) {
    // Keys that every row sees.
    const std::int32_t all_begin = a_.FirstKey(End()) - begin_;
    const std::int32_t all_stop = Shared::Ends()[0] - begin_;
    const int tiles = ValueTiles();
    float o[kMine][kDims] = {};
    for (int i = 0; i < tiles; ++i, ++*t) {
      gpu::CopyAsyncWait<0>();
      gpu::SyncThreads();
      if (i + 1 < tiles) {
        StartValues(*t + 1, i + 1, dim);
      } else if (dim + kTileValueDims < a_.kv.v_dim) {
        StartValues(*t + 1, 0, dim + kTileValueDims);
      }
      const int key = FirstValueKey() + i * kValueKeys;
      if (key >= all_begin && key + kValueKeys <= all_stop) {
        AddValues(ValueSlot(*t), key, o);
      } else {
        AddVisibleValues(ValueSlot(*t), key, o);
      }
    }
    WriteValues(dim, o);
  }

  template <int kDims>
  GPU_DEVICE static void ValuesOf(const std::byte* tile, int first_key, int key,
                                  float (&x)[kDims]) {
    const std::byte* const v = tile + (key * kTileValueDims + kDims * Column()) * Elements::kBytes;
    float scale = 1;
    if constexpr (Elements::kScaled) scale = gpu::Load<float>(ValueScales() + first_key + key);
    if constexpr (kDims == 8) {
      Elements::Load(v).Widen(scale, x);
    } else {
      Elements::Pair(v, 0, scale, x[0], x[1]);
      Elements::Pair(v, 1, scale, x[2], x[3]);
    }
  }

  template <int kDims>
  GPU_DEVICE static void AddValues(const std::byte* tile, int first_key, float (&o)[kMine][kDims]) {
    GPU_UNROLL(1) for (int key = 0; key < kValueKeys; key += 4) {
      float p[kMine][4];
      GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
        const auto four =
            gpu::Load<float4>(Products::ScoreAt(Row() + kTileGroups * r, first_key + key));
        p[r][0] = four.x;
        p[r][1] = four.y;
        p[r][2] = four.z;
        p[r][3] = four.w;
      }
      GPU_UNROLL(4) for (int j = 0; j < 4; ++j) {
        float x[kDims];
        ValuesOf(tile, first_key, key + j, x);
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
  GPU_DEVICE void AddVisibleValues(const std::byte* tile, int first_key,
                                   float (&o)[kMine][kDims]) const {
    GPU_UNROLL(1) for (int key = 0; key < kValueKeys; ++key) {
      const std::int32_t position = begin_ + first_key + key;
      float x[kDims];
      ValuesOf(tile, first_key, key, x);
      GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
        const std::int32_t end = Shared::Ends()[Row() + kTileGroups * r];
        if (position >= end || position < a_.FirstKey(end)) continue;
        const float p = *Products::ScoreAt(Row() + kTileGroups * r, first_key + key);
        GPU_UNROLL(8) for (int i = 0; i < kDims; ++i) o[r][i] = gpu::Fma(p, x[i], o[r][i]);
      }
    }
  }

  // Merges the sums of dims dim + kDims * column.. into `out`, or writes them to the state.
  template <int kDims>
  GPU_DEVICE void WriteValues(int dim, const float (&o)[kMine][kDims]) const {
    GPU_UNROLL(8) for (int r = 0; r < kMine; ++r) {
      const int row = Row() + kTileGroups * r;
      if (row >= rows_) continue;
      if (a_.split &&
          (Shared::Ends()[row] <= begin_ || a_.FirstKey(Shared::Ends()[row]) >= Keys().end))
        continue;
      float* const to = a_.split ? a_.state_o + StateOf(row, begin_ / kCudaPartition) * a_.kv.v_dim
                                 : a_.out + RowOf(row) * a_.kv.v_dim;
      const float2 factors = a_.split ? float2{-1, 1} : Shared::Merge()[row];
      GPU_UNROLL(2) for (int i = 0; i < kDims; i += 4) {
        const int at = dim + kDims * Column() + i;
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

  // out = o / l.
  GPU_DEVICE void Finish() const {
    gpu::SyncThreads();  // The merge factors are no longer read.
    const int lane = Lane();
    if (lane < kMine) Shared::Merge()[Half() + kTileGroups * lane] = float2{l_, 0};
    gpu::SyncThreads();
    GPU_UNROLL(1) for (int r = 0; r < kMine; ++r) {
      const int row = Row() + kTileGroups * r;
      if (row >= rows_) continue;
      float* const out = a_.out + RowOf(row) * a_.kv.v_dim;
      const float l = Shared::Merge()[row].x;
      for (int at = 4 * Column(); at < a_.kv.v_dim; at += 64) {
        const auto o = gpu::Load<float4>(out + at);
        gpu::Store(out + at, float4{gpu::Divide(o.x, l), gpu::Divide(o.y, l), gpu::Divide(o.z, l),
                                    gpu::Divide(o.w, l)});
      }
    }
  }

  // What is cheap to tell again is not kept: registers are what this kernel is short of.
  GPU_DEVICE static int Thread() { return static_cast<int>(threadIdx.x); }
  // A warp has 4 groups and 8 columns, so that what it reads at once is rarely the same bank.
  GPU_DEVICE static int Row() {
    return static_cast<int>(threadIdx.x / 32 % 2 * 4 + threadIdx.x % 32 / 8);
  }
  GPU_DEVICE static int Column() {
    return static_cast<int>(threadIdx.x / 64 * 8 + threadIdx.x % 8);
  }
  // Where 16 threads share a row.
  GPU_DEVICE static int Lane() { return static_cast<int>(threadIdx.x % 16); }
  GPU_DEVICE static int Half() { return static_cast<int>(threadIdx.x / 16); }
  GPU_DEVICE const CudaSequence& Sequence() const { return a_.kv.sequences[sequence_]; }
  // Of the partition at hand: the keys that some row sees.
  GPU_DEVICE KeySpan Keys() const {
    return {MaxOf(a_.FirstKey(Shared::Ends()[0]), begin_), MinOf(End(), begin_ + kCudaPartition)};
  }
  // Where the last row's keys end.
  GPU_DEVICE static std::int32_t End() { return Shared::Ends()[kRows - 1]; }

  const AttentionLaunch& a_;
  const std::int32_t sequence_;
  const std::int32_t first_row_;
  const std::int32_t kv_head_;
  const int rows_;
  std::int32_t begin_ = 0;  // Of the partition at hand.
  // Of the row that is this thread's; see Weights.
  float m_ = 0;
  float l_ = 0;
};

}  // namespace penstock::kernels
