// SPDX-License-Identifier: Apache-2.0
// What the kernels of kernels/sampling_cuda.h share.
#pragma once

#include "kernels/gpu.h"
//
#include "kernels/draw_weights.h"
#include "kernels/sampling_cuda.h"

namespace penstock::kernels {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kPiece = kSumExpPiece;  // Logits of a row that a warp takes.
inline constexpr int kPerLane = kPiece / 32;
inline constexpr int kPerBlock = kWarps * kPiece;

inline constexpr int kLevels = 3;  // The bits of a key that are looked at at once.
inline constexpr int kBins = 2048;
inline constexpr int kTables = 1 + 2 * (kLevels - 1);  // By level; the first serves both cuts.

// What the order of tokens is cut by.
enum By : int { kByCount = 0, kByMass = 1 };

struct First {
  std::uint32_t key;
  std::int32_t index;  // -1, with key 0: there is none.
};

// Tokens with larger keys remain, and the first `ties` of those that have this one.
struct Cut {
  std::uint32_t key;
  std::uint32_t ties;
  std::uint64_t target;       // The count or mass to be reached.
  std::uint64_t count_above;  // Of tokens with larger keys.
  std::uint64_t mass_above;
  std::uint64_t mass;  // Of what remains.
};

struct DrawLaunch {
  const float* logits;  // [*, vocab]
  std::int32_t vocab;
  std::int32_t pieces;
  const RowDraw* draws;
  First* firsts;             // [draws, pieces]
  std::uint64_t* mass;       // [draws, pieces]: of what remains, but for ties
  double* exp_sums;          // [draws, pieces]
  std::uint32_t* ties;       // [draws, pieces]
  Cut* cuts;                 // [draws, By]
  std::uint64_t* bin_mass;   // [draws, kTables, kBins]
  std::uint32_t* bin_count;  // [draws, kTables, kBins]
  Drawn* out;                // [draws]
};

// A draw as its threads see it.
struct One {
  DrawSpec spec;
  const float* row;  // [vocab]
  std::int64_t at;   // Of the draw.
  int lane;
};
GPU_DEVICE One OneOf(const DrawLaunch& a) {
  const RowDraw& draw = a.draws[blockIdx.x];
  return {draw.spec, a.logits + std::int64_t{draw.row} * a.vocab, std::int64_t{blockIdx.x},
          static_cast<int>(threadIdx.x) % 32};
}

GPU_DEVICE bool Wants(const DrawSpec& spec, int by, std::int32_t vocab) {
  if (!(spec.temperature > 0)) return false;
  return by == kByCount ? spec.top_k > 0 && spec.top_k < vocab : spec.top_p < 1;
}

GPU_DEVICE float NumberOf(float logit) {
  return logit == logit ? logit : LogitOfKey(DrawKey(logit));
}

// --- Of a warp ---

GPU_DEVICE First Before(First a, First b) {
  return b.key > a.key || (b.key == a.key && b.index < a.index) ? b : a;
}
GPU_DEVICE First FirstOfLanes(First first) {
  GPU_UNROLL()
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    first = Before(first, {gpu::ShflXor(first.key, lanes), gpu::ShflXor(first.index, lanes)});
  }
  return first;
}
GPU_DEVICE std::uint64_t SumOfLanes(std::uint64_t value) {
  GPU_UNROLL()
  for (int lanes = 16; lanes > 0; lanes /= 2) value += gpu::ShflXor(value, lanes);
  return value;
}
// Of the lanes up to this one.
GPU_DEVICE std::uint64_t SumUpTo(std::uint64_t value, int lane) {
  GPU_UNROLL()
  for (int distance = 1; distance < 32; distance *= 2) {
    const std::uint64_t before = gpu::Pick(value, static_cast<std::uint32_t>(lane - distance));
    if (lane >= distance) value += before;
  }
  return value;
}

// The first token of a piece that comes after `last`.
GPU_DEVICE First FirstOfPiece(const DrawLaunch& a, const One& one, std::int32_t piece, First last) {
  float logits[kPerLane];
  GPU_UNROLL()
  for (int i = 0; i < kPerLane; ++i) {
    const std::int32_t index = piece * kPiece + i * 32 + one.lane;
    logits[i] = index < a.vocab ? one.row[index] : 0;
  }
  First first = {0, -1};
  GPU_UNROLL()
  for (int i = 0; i < kPerLane; ++i) {
    const First own = {DrawKey(logits[i]), piece * kPiece + i * 32 + one.lane};
    const bool is_after = own.key < last.key || (own.key == last.key && own.index > last.index);
    if (own.index < a.vocab && is_after) first = Before(first, own);
  }
  return FirstOfLanes(first);
}

// The first token of the row.
GPU_DEVICE First FirstOfRow(const DrawLaunch& a, const One& one) {
  First first = {0, -1};
  for (std::int32_t p = one.lane; p < a.pieces; p += 32) {
    first = Before(first, a.firsts[one.at * a.pieces + p]);
  }
  return FirstOfLanes(first);
}
GPU_DEVICE float MaxOf(const DrawLaunch& a, const One& one) {
  return NumberOf(one.row[FirstOfRow(a, one).index]);
}

// What a draw keeps: the stricter of its cuts, if it has any, and what min_p asks for.
struct Kept {
  Cut cut;
  std::uint64_t least;
  float max;
  double temperature;

  GPU_DEVICE std::uint64_t Weight(float logit) const {
    const std::uint64_t weight = DrawWeight(logit, max, temperature);
    return weight < least ? 0 : weight;
  }
};
GPU_DEVICE Kept KeptOf(const DrawLaunch& a, const One& one, float max) {
  Kept kept = {};
  if (Wants(one.spec, kByMass, a.vocab)) {
    kept.cut = a.cuts[2 * one.at + kByMass];
  } else if (Wants(one.spec, kByCount, a.vocab)) {
    kept.cut = a.cuts[2 * one.at + kByCount];
  }
  kept.least = LeastWeight(one.spec.min_p, std::uint64_t{1} << kDrawWeightBits);
  kept.max = max;
  kept.temperature = one.spec.temperature;
  return kept;
}

// Queues what finds the cuts; `pieces`: a block for each draw (x) and 4096 logits (y).
void LaunchCuts(const DrawLaunch& a, const DrawKinds& kinds, dim3 pieces, cudaStream_t stream);

}  // namespace penstock::kernels
