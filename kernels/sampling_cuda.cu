// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling_cuda_parts.h"
//
#include "kernels/exp_cuda.h"

namespace penstock::kernels {
namespace {

// --- Pieces ---

// A warp per piece finds its first token. And the bins of the draw become empty.
GPU_KERNEL(kThreads, 4)
FirstsKernel(const DrawLaunch a) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const One one = OneOf(a);
  if (one.spec.filters()) {
    for (unsigned i = blockIdx.y * kThreads + threadIdx.x; i < kTables * kBins;
         i += gridDim.y * kThreads) {
      a.bin_mass[one.at * (kTables * kBins) + i] = 0;
      a.bin_count[one.at * (kTables * kBins) + i] = 0;
    }
  }
  const auto piece = static_cast<std::int32_t>(blockIdx.y * kWarps + threadIdx.x / 32);
  if (piece >= a.pieces) return;
  const First first = FirstOfPiece(a, one, piece, {~0u, -1});
  if (one.lane == 0) a.firsts[one.at * a.pieces + piece] = first;
}

// The sum of exps of a piece, in the order of kernels/sampling.h, for lane 0: lanes below 16 add up
// their own values and, each behind its own, those of the lanes above.
GPU_DEVICE double ExpSumOfPiece(const DrawLaunch& a, const One& one, std::int32_t piece,
                                float max) {
  double sum = 0;
  GPU_UNROLL()
  for (int i = 0; i < kPerLane; ++i) {
    const std::int32_t index = piece * kPiece + i * 32 + one.lane;
    // Adding the 0 of what is not there changes no sum, none is -0.
    const float value = index < a.vocab ? ExpCuda(NumberOf(one.row[index]) - max) : 0;
    const float above = gpu::ShflXor(value, 16);
    sum += static_cast<double>(value);
    sum += static_cast<double>(above);
  }
  GPU_UNROLL()
  for (int distance = 8; distance > 0; distance /= 2) sum += gpu::ShflXor(sum, distance);
  return sum;
}

// A warp per piece adds up what remains of it, and its exps.
GPU_KERNEL(kThreads, 4)
PiecesKernel(const DrawLaunch a) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const One one = OneOf(a);
  const auto piece = static_cast<std::int32_t>(blockIdx.y * kWarps + threadIdx.x / 32);
  const bool weighs = one.spec.temperature > 0;
  if (piece >= a.pieces || (!weighs && one.spec.top_logits < 0)) return;
  const float max = MaxOf(a, one);
  const std::int64_t at = one.at * a.pieces + piece;
  if (one.spec.top_logits >= 0) {
    const double sum = ExpSumOfPiece(a, one, piece, max);
    if (one.lane == 0) a.exp_sums[at] = sum;
  }
  if (!weighs) return;
  const Kept kept = KeptOf(a, one, max);
  std::uint64_t mass = 0;
  std::uint64_t ties = 0;
  GPU_UNROLL(4)
  for (int i = 0; i < kPerLane; ++i) {
    const std::int32_t index = piece * kPiece + i * 32 + one.lane;
    if (index >= a.vocab) break;
    const std::uint32_t key = DrawKey(one.row[index]);
    if (key > kept.cut.key) mass += kept.Weight(LogitOfKey(key));
    ties += key == kept.cut.key ? 1 : 0;
  }
  mass = SumOfLanes(mass);
  ties = SumOfLanes(ties);
  if (one.lane == 0) {
    a.mass[at] = mass;
    a.ties[at] = static_cast<std::uint32_t>(ties);
  }
}

// --- The token ---

GPU_DEVICE std::uint64_t AtMost(std::uint64_t value, std::uint64_t most) {
  return value < most ? value : most;
}

// Of a row, a place in the mass of what remains, and how many ties are before.
struct Walk {
  std::uint64_t left;
  std::uint64_t ties;
};

// What piece base + lane weighs with its part of the ties.
struct PieceMass {
  std::uint64_t mass;
  std::uint64_t ties_up_to;  // Of the lanes up to this one.
  std::uint64_t ties;
};
GPU_DEVICE PieceMass MassOfPiece(const DrawLaunch& a, const One& one, const Cut& cut,
                                 std::uint64_t tie_weight, std::int32_t base,
                                 std::uint64_t ties_before) {
  const std::int32_t p = base + one.lane;
  const std::int64_t at = one.at * a.pieces + p;
  PieceMass piece = {};
  if (p < a.pieces) piece = {a.mass[at], 0, a.ties[at]};
  piece.ties_up_to = SumUpTo(piece.ties, one.lane);
  const std::uint64_t up_to = ties_before + piece.ties_up_to;
  const std::uint64_t remain = AtMost(up_to, cut.ties) - AtMost(up_to - piece.ties, cut.ties);
  piece.mass += remain * tie_weight;
  return piece;
}

// The piece in which `walk` ends, and the walk in it.
GPU_DEVICE std::int32_t FindPiece(const DrawLaunch& a, const One& one, const Cut& cut,
                                  std::uint64_t tie_weight, Walk& walk) {
  for (std::int32_t base = 0; base < a.pieces; base += 32) {
    const PieceMass piece = MassOfPiece(a, one, cut, tie_weight, base, walk.ties);
    const std::uint64_t up_to = SumUpTo(piece.mass, one.lane);
    const unsigned behind = gpu::Ballot(walk.left < up_to);
    const unsigned lane = behind != 0 ? gpu::LowestBit(behind) : 31;
    const std::uint64_t mass = gpu::Pick(behind != 0 ? up_to - piece.mass : up_to, lane);
    const std::uint64_t ties =
        gpu::Pick(behind != 0 ? piece.ties_up_to - piece.ties : piece.ties_up_to, lane);
    walk = {walk.left - mass, walk.ties + ties};
    if (behind != 0) return base + static_cast<std::int32_t>(lane);
  }
  return -1;
}

GPU_DEVICE std::int32_t FindToken(const DrawLaunch& a, const One& one, const Kept& kept,
                                  std::uint64_t tie_weight, std::int32_t piece, Walk walk) {
  for (std::int32_t begin = piece * kPiece; begin < (piece + 1) * kPiece; begin += 32) {
    const std::int32_t index = begin + one.lane;
    const std::uint32_t key = index < a.vocab ? DrawKey(one.row[index]) : 0;
    const unsigned tied = gpu::Ballot(key == kept.cut.key);
    const std::uint64_t rank = walk.ties + gpu::CountBits(tied & ((1u << one.lane) - 1));
    std::uint64_t weight = 0;
    if (key > kept.cut.key) weight = kept.Weight(LogitOfKey(key));
    if (key == kept.cut.key && rank < kept.cut.ties) weight = tie_weight;
    const std::uint64_t up_to = SumUpTo(weight, one.lane);
    const unsigned behind = gpu::Ballot(walk.left < up_to);
    if (behind != 0) return begin + static_cast<std::int32_t>(gpu::LowestBit(behind));
    walk = {walk.left - gpu::Pick(up_to, 31), walk.ties + gpu::CountBits(tied)};
  }
  return -1;
}

GPU_DEVICE std::int32_t DrawToken(const DrawLaunch& a, const One& one, const Kept& kept) {
  const std::uint64_t tie_weight = kept.Weight(LogitOfKey(kept.cut.key));
  std::uint64_t mass = 0;
  std::uint64_t ties = 0;
  for (std::int32_t p = one.lane; p < a.pieces; p += 32) {
    mass += a.mass[one.at * a.pieces + p];
    ties += a.ties[one.at * a.pieces + p];
  }
  const std::uint64_t remain = AtMost(SumOfLanes(ties), kept.cut.ties);
  const std::uint64_t all = SumOfLanes(mass) + remain * tie_weight;
  Walk walk = {MassBefore(one.spec.uniform, all), 0};
  const std::int32_t piece = FindPiece(a, one, kept.cut, tie_weight, walk);
  return FindToken(a, one, kept, tie_weight, piece, walk);
}

// Every lane adds all pieces, in ascending order.
GPU_DEVICE double ExpSum(const DrawLaunch& a, const One& one) {
  double sum = 0;
  for (std::int32_t base = 0; base < a.pieces; base += 32) {
    const std::int32_t p = base + one.lane;
    const double own = p < a.pieces ? a.exp_sums[one.at * a.pieces + p] : 0;
    for (int lane = 0; lane < 32; ++lane) sum += gpu::Shfl(own, lane);
  }
  return sum;
}

// The first tokens, one after another: behind each, its piece has another first.
GPU_DEVICE std::int32_t TopLogits(const DrawLaunch& a, const One& one, Candidate* top) {
  std::int32_t count = 0;
  for (; count < one.spec.top_logits; ++count) {
    const First first = FirstOfRow(a, one);
    if (first.index < 0) break;
    const std::int32_t piece = first.index / kPiece;
    const First next = FirstOfPiece(a, one, piece, first);
    gpu::SyncWarp();
    if (one.lane == 0) {
      top[count] = {first.index, NumberOf(one.row[first.index])};
      a.firsts[one.at * a.pieces + piece] = next;
    }
    gpu::SyncWarp();
  }
  return count;
}

// One warp per draw.
GPU_KERNEL(32, 16)
TokenKernel(const DrawLaunch a) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const One one = OneOf(a);
  Drawn& out = a.out[one.at];
  const First first = FirstOfRow(a, one);
  const float max = NumberOf(one.row[first.index]);
  const bool is_finite = max - max == 0;
  std::int32_t token = -1;
  if (is_finite) {
    token = one.spec.temperature > 0 ? DrawToken(a, one, KeptOf(a, one, max)) : first.index;
  }
  double exp_sum = 0;
  std::int32_t top_count = 0;
  if (is_finite && one.spec.top_logits >= 0) {
    exp_sum = ExpSum(a, one);
    top_count = TopLogits(a, one, out.top);
  }
  if (one.lane == 0) {
    out.token = token;
    out.max = max;
    out.logit = token >= 0 ? one.row[token] : 0;
    out.exp_sum = exp_sum;
    out.top_count = top_count;
  }
}

// Gives out parts of the scratch, aligned to 64; with no memory behind it, only counts.
struct Parts {
  std::byte* base;
  std::size_t used = 0;
  template <typename T>
  T* Take(std::size_t n) {
    T* const part = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (n * sizeof(T) + 63) / 64 * 64;
    return part;
  }
};

std::size_t Lay(std::int32_t vocab, const DrawKinds& kinds, std::byte* scratch, DrawLaunch& a) {
  Parts parts{scratch};
  const auto draws = static_cast<std::size_t>(kinds.count);
  a.pieces = (vocab + kPiece - 1) / kPiece;
  const std::size_t pieces = draws * static_cast<std::size_t>(a.pieces);
  a.firsts = parts.Take<First>(pieces);
  a.mass = parts.Take<std::uint64_t>(pieces);
  a.exp_sums = parts.Take<double>(pieces);
  a.ties = parts.Take<std::uint32_t>(pieces);
  if (kinds.top_k || kinds.top_p) {
    a.cuts = parts.Take<Cut>(2 * draws);
    a.bin_mass = parts.Take<std::uint64_t>(draws * kTables * kBins);
    a.bin_count = parts.Take<std::uint32_t>(draws * kTables * kBins);
  }
  return parts.used;
}

}  // namespace

std::size_t DrawScratchBytesCuda(std::int32_t vocab, const DrawKinds& kinds) {
  DrawLaunch a = {};
  return Lay(vocab, kinds, nullptr, a);
}

int DrawCuda(const float* logits, std::int32_t vocab, const RowDraw* draws, const DrawKinds& kinds,
             Drawn* out, std::byte* scratch, CudaStreamHandle stream) {
  if (vocab < 1 || vocab > kDrawVocabMax || kinds.count < 0) return cudaErrorInvalidValue;
  if (kinds.count == 0) return cudaSuccess;
  DrawLaunch a = {};
  a.logits = logits;
  a.vocab = vocab;
  a.draws = draws;
  a.out = out;
  (void)Lay(vocab, kinds, scratch, a);
  const dim3 pieces(static_cast<unsigned>(kinds.count),
                    static_cast<unsigned>((vocab + kPerBlock - 1) / kPerBlock));
  GPU_LAUNCH_EARLY(FirstsKernel, pieces, dim3(kThreads), 0, stream, a);
  LaunchCuts(a, kinds, pieces, stream);
  if (kinds.weights || kinds.sums) {
    GPU_LAUNCH_EARLY(PiecesKernel, pieces, dim3(kThreads), 0, stream, a);
  }
  GPU_LAUNCH_EARLY(TokenKernel, dim3(static_cast<unsigned>(kinds.count)), dim3(32), 0, stream, a);
  return cudaGetLastError();
}

}  // namespace penstock::kernels
