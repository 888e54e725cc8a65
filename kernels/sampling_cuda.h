// SPDX-License-Identifier: Apache-2.0
// Tokens drawn on a GPU: Draw of kernels/draw.h, without typical_p, and its bits.
//
// Up to twelve short launches, whatever the batch: the first tokens of pieces of 512 logits; for top_k
// and for top_p each the key at which the order of tokens is cut, 11 bits of it at a time, from how many
// tokens have them and what those weigh; what each piece weighs; and the token. A launch has nothing to
// do for a draw that does not ask for it, and is left out where none does.
//
// The program uses these types too (kernels/cuda_kernels.h), so this has no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "device/cuda_api.h"
#include "kernels/draw.h"

namespace penstock::kernels {

// How many draws there are, and what any of them asks for.
struct DrawKinds {
  std::int32_t count = 0;
  bool weights = false;  // A temperature above 0.
  bool top_k = false;    // These with weights only.
  bool top_p = false;
  bool sums = false;  // top_logits of 0 or more.
};
inline DrawKinds KindsOf(std::span<const RowDraw> draws) {
  DrawKinds kinds = {.count = static_cast<std::int32_t>(draws.size())};
  for (const RowDraw& draw : draws) {
    const bool weighs = draw.spec.temperature > 0;
    kinds.weights |= weighs;
    kinds.top_k |= weighs && draw.spec.top_k > 0;
    kinds.top_p |= weighs && draw.spec.top_p < 1;
    kinds.sums |= draw.spec.top_logits >= 0;
  }
  return kinds;
}

// Per draw 28 bytes for each 512 logits and, with top_k or top_p, 120 KiB.
std::size_t DrawScratchBytesCuda(std::int32_t vocab, const DrawKinds& kinds);
// What so many draws take at most with what comes of them, for who plans memory.
constexpr std::size_t DrawBytesMax(std::int32_t vocab, std::int32_t draws) {
  const std::size_t pieces = (static_cast<std::size_t>(vocab) + kSumExpPiece - 1) / kSumExpPiece;
  return static_cast<std::size_t>(draws) * (28 * pieces + (std::size_t{121} << 10)) + 1024;
}

// logits: [*, vocab], vocab at least 1; draws, whose rows are of those, and out: [kinds.count]; scratch:
// DrawScratchBytesCuda, aligned to 64. All are the device's memory. Gives a cudaError_t:
// cudaErrorInvalidValue where vocab is not 1 to kDrawVocabMax or the count is negative, or what a launch
// said.
int DrawCuda(const float* logits, std::int32_t vocab, const RowDraw* draws, const DrawKinds& kinds,
             Drawn* out, std::byte* scratch, CudaStreamHandle stream);

}  // namespace penstock::kernels
