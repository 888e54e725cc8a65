// SPDX-License-Identifier: Apache-2.0
// The tiled way of kernels/attention_cuda.h: what a block keeps in shared memory, and the scores of a
// tile. For kernel files only.
#pragma once

#include "kernels/gpu.h"
//
#include <cstddef>
#include <cstdint>

#include "kernels/attention_cuda_parts.h"

namespace penstock::kernels {

inline constexpr int kTileThreads = 128;
inline constexpr int kTileGroups = 8;    // Threads that share the rows: each has rows g, g + 8...
inline constexpr int kTileKeys = 64;     // Keys of a tile of K.
inline constexpr int kTileKeyDims = 64;  // Dims of a tile of K.
inline constexpr int kTileFloats = kTileKeys * kTileKeyDims;
// Eights of a tile of K that one thread brings.
inline constexpr int kTileUnits = kTileFloats / 8 / kTileThreads;
// Dims of a tile of V, and bytes: two take the place of one of K.
inline constexpr int kTileValueDims = 128;
inline constexpr int kTileValueBytes = kTileFloats * 4 / 2;

// Rows of scores are stored with four floats i at i ^ (row & 7), so that lanes with a row each meet
// no bank twice.
GPU_DEVICE int SwizzledFour(int row, int four) { return four ^ (row & 7); }

// A block's shared memory. 64 rows of 128 dims come to just half of what an SM of 9.0 has, less the
// KiB that each block costs. What has a fixed place needs no register.
template <int kRows>
struct TilePlaces {
  static constexpr std::size_t kScores = sizeof(float) * kTileFloats;
  static constexpr std::size_t kMerge = kScores + sizeof(float) * kRows * kCudaPartition;
  static constexpr std::size_t kEnds = kMerge + sizeof(float2) * kRows;
  static constexpr std::size_t kQuery = kEnds + sizeof(std::int32_t) * kRows;
};
// Query(): [k_dim, kRows], by QueryAt.
template <int kRows>
struct TileShared : TilePlaces<kRows>, QueryAndPages<kRows, TilePlaces<kRows>::kQuery> {
  using Places = TilePlaces<kRows>;
  // K [kTileKeyDims, kTileKeys], by KeyAt, or two of V [keys, kTileValueDims] as in pages.
  GPU_DEVICE static float* Tile() { return SharedAt<float>(0); }
  // [kRows, 256]: scores, then weights.
  GPU_DEVICE static float* Scores() { return SharedAt<float>(Places::kScores); }
  // [kRows]: how the state so far and that of the partition merge, o = o * x + o' * y; x is -1 in
  // the first that a row sees, where o = o'. At last x is l.
  GPU_DEVICE static float2* Merge() { return SharedAt<float2>(Places::kMerge); }
  // [kRows]: where the row's keys end.
  GPU_DEVICE static std::int32_t* Ends() { return SharedAt<std::int32_t>(Places::kEnds); }
};

// Q K^T of a tile, by all threads of the block.
template <int kRows>
struct TileScores {
  using Shared = TileShared<kRows>;
  static constexpr int kScoreRows = kRows / 4;  // Of one warp; see AddProducts.

  // A dim's keys lie side by side, in fours that are swizzled so that neither those who write 8 keys
  // of 4 eights, nor those who read two eights of keys of 4 dims meet a bank twice; a row's queries
  // likewise.
  GPU_DEVICE static float* KeyAt(int dim, int key) {
    return Shared::Tile() + dim * kTileKeys + 4 * ((key / 4) ^ KeySwizzle(dim)) + key % 4;
  }
  GPU_DEVICE static int KeySwizzle(int dim) { return ((dim & 2) << 1) ^ (((dim / 8) & 3) << 1); }
  GPU_DEVICE static float* QueryAt(int dim, int row) {
    return Shared::Query() + dim * kRows + 4 * ((row / 4) ^ QuerySwizzle(dim)) + row % 4;
  }
  GPU_DEVICE static int QuerySwizzle(int dim) {
    return kScoreRows == 16 ? dim & 1 : kScoreRows == 8 ? (dim & 1) * 2 : dim & 3;
  }

  // A score is four sums, over the dims of each residue mod 4. A warp has kScoreRows rows, a thread
  // of it one residue, eight keys and all those rows, so that what it reads serves many products.
  // Then lanes swap: of its rows a lane keeps the first half and gets the other lane's sums for them,
  // and so for its keys. Those with another half to keep have their halves in the other order.
  GPU_DEVICE static int Residue() { return static_cast<int>(threadIdx.x % 4); }
  // Of the thread's fours of rows and of keys, where number j is.
  GPU_DEVICE static int RowFour(int j) {
    return static_cast<int>(threadIdx.x / 32) * (kScoreRows / 4) +
           (j ^ (Residue() / 2 * (kScoreRows / 8)));
  }
  GPU_DEVICE static int KeyFour(int j) {
    return static_cast<int>(threadIdx.x % 32 / 4) * 2 + (j ^ (Residue() % 2));
  }

  // Adds the products of the tile's dims, which are `dims` of the queries' from `dim` on.
  GPU_DEVICE static void AddProducts(int dim, int dims, float (&sums)[kScoreRows][8]) {
    const int fours = dims / 4;
    const float* k = Shared::Tile() + Residue() * kTileKeys;
    const float* q = Shared::Query() + (dim + Residue()) * kRows;
    GPU_UNROLL(1) for (int four = 0; four < fours; four += 2) {  // Dims come in eights.
      const int key_swizzle = KeySwizzle(Residue()) ^ (four & 6);
      GPU_UNROLL(2) for (int i = 0; i < 2; ++i, k += 4 * kTileKeys, q += 4 * kRows) {
        float x[8];
        GPU_UNROLL(2) for (int j = 0; j < 2; ++j) {
          const auto keys = gpu::Load<float4>(k + 4 * (KeyFour(j) ^ key_swizzle));
          x[4 * j] = keys.x;
          x[4 * j + 1] = keys.y;
          x[4 * j + 2] = keys.z;
          x[4 * j + 3] = keys.w;
        }
        GPU_UNROLL(4) for (int j = 0; j < kScoreRows / 4; ++j) {
          const auto rows = gpu::Load<float4>(q + 4 * (RowFour(j) ^ QuerySwizzle(Residue())));
          const float y[4] = {rows.x, rows.y, rows.z, rows.w};
          GPU_UNROLL(4) for (int r = 0; r < 4; ++r) {
            GPU_UNROLL(8) for (int key = 0; key < 8; ++key) {
              sums[4 * j + r][key] = gpu::Fma(y[r], x[key], sums[4 * j + r][key]);
            }
          }
        }
      }
    }
  }

  // Of keys first_key.. in the partition; `sums` begin anew.
  GPU_DEVICE static void WriteScores(int first_key, float (&sums)[kScoreRows][8]) {
    // Of 4 rows there are no halves that are fours: both lanes keep all.
    constexpr bool kHalves = kScoreRows >= 8;
    constexpr int kKept = kHalves ? kScoreRows / 2 : kScoreRows;
    GPU_UNROLL(8) for (int r = 0; r < kKept; ++r) {
      float both[8];
      GPU_UNROLL(8) for (int key = 0; key < 8; ++key) {
        both[key] = sums[r][key] + gpu::ShflXor(sums[kHalves ? r + kKept : r][key], 2);
      }
      float score[4];
      GPU_UNROLL(4) for (int key = 0; key < 4; ++key) {
        score[key] = both[key] + gpu::ShflXor(both[key + 4], 1);
      }
      if (!kHalves && Residue() / 2 != 0) continue;
      gpu::Store(ScoreAt(4 * RowFour(r / 4) + r % 4, first_key + 4 * KeyFour(0)),
                 float4{score[0], score[1], score[2], score[3]});
    }
    GPU_UNROLL(16) for (int r = 0; r < kScoreRows; ++r) {
      GPU_UNROLL(8) for (int key = 0; key < 8; ++key) sums[r][key] = 0;
    }
  }

  // Where a row's score of a key (in the partition) lies.
  GPU_DEVICE static float* ScoreAt(int row, int key) {
    const int four = static_cast<int>(static_cast<unsigned>(key) / 4);
    return Shared::Scores() + row * kCudaPartition + 4 * SwizzledFour(row, four) + key % 4;
  }
};

}  // namespace penstock::kernels
