// SPDX-License-Identifier: Apache-2.0
#include "kernels/crc32c_cuda.h"
#include "kernels/gpu.h"
#include "kernels/units_cuda.h"

namespace penstock::kernels {
namespace {

constexpr unsigned kThreads = 128;
constexpr unsigned kWarps = kThreads / gpu::kWarp;
constexpr unsigned kVector = 16;                 // Bytes of one load.
constexpr unsigned kRow = gpu::kWarp * kVector;  // Of a warp's load.
constexpr int kRowsAhead = 4;                    // Loads on their way, of each lane.
constexpr unsigned kStep = kRowsAhead * kRow;    // 2 KiB
// What a warp takes at least: less takes no longer than to sum up over its lanes.
constexpr unsigned kShareMin = 2 * kStep;
// Blocks that fill any GPU: H100's 132 SMs hold eight each. A unit is split until there are so
// many, but not below kShareMin for one of 256 KiB.
constexpr int kBlocksWanted = 1024;
constexpr int kPartsMax = 16;

constexpr int kRowPower = 9;     // x^(8 * 2^k) is a row,
constexpr int kVectorPower = 4;  // a vector
constexpr int kWordPower = 2;    // and a word further on.
static_assert(1u << kRowPower == kRow && 1u << kVectorPower == kVector);

struct CopyLaunch {
  const CopyUnit* units;
  const CopyRun* runs;
  std::uint32_t* crcs;
};

// A lane's place in the runs of a unit. It only goes forward.
struct Place {
  const CopyRun* next;  // The run behind.
  std::uint32_t start;  // Of the run, in the unit.
  std::uint32_t end;
  const std::byte* from;  // [end - start]
  std::byte* to;          // [end - start] or null

  // To the run of byte `at` of the unit.
  GPU_DEVICE void GoTo(std::uint32_t at) {
    if (at < end) return;
    do {
      start = end;
      end += next->bytes;
      ++next;
    } while (at >= end);
    from = next[-1].from;
    to = next[-1].to;
  }
};

// Where the runs of each thread, `per_thread` of them, start in the unit; returns its bytes.
// totals: [kWarps], free again on return. Every thread of the block comes here.
GPU_DEVICE std::uint32_t FindStarts(const CopyRun* runs, std::uint32_t count,
                                    std::uint32_t per_thread, std::uint32_t* starts,
                                    std::uint32_t* totals) {
  const unsigned lane = threadIdx.x % gpu::kWarp;
  const unsigned warp = threadIdx.x / gpu::kWarp;
  std::uint32_t own = 0;
  for (std::uint32_t i = 0; i < per_thread; ++i) {
    const std::uint32_t run = threadIdx.x * per_thread + i;
    if (run < count) own += runs[run].bytes;
  }
  std::uint32_t up_to = own;  // Of the warp's lanes so far, with this one.
  for (unsigned distance = 1; distance < gpu::kWarp; distance *= 2) {
    const std::uint32_t before = gpu::Pick(up_to, lane - distance);
    if (lane >= distance) up_to += before;
  }
  if (lane == gpu::kWarp - 1) totals[warp] = up_to;
  gpu::SyncThreads();
  std::uint32_t before = 0;
  std::uint32_t bytes = 0;
  for (unsigned i = 0; i < kWarps; ++i) {
    if (i < warp) before += totals[i];
    bytes += totals[i];
  }
  starts[threadIdx.x] = before + up_to - own;
  gpu::SyncThreads();
  return bytes;
}

// From which byte `at`, which is in the unit, can be gone to.
GPU_DEVICE Place FindPlace(const CopyRun* runs, std::uint32_t per_thread,
                           const std::uint32_t* starts, std::uint32_t at) {
  std::uint32_t thread = 0;
  for (unsigned step = kThreads / 2; step > 0; step /= 2) {
    if (starts[thread + step] <= at) thread += step;
  }
  return {runs + thread * per_thread, starts[thread], starts[thread], nullptr, nullptr};
}

// Copies what there is of the 16 bytes at `at`, and returns them with zeros behind.
GPU_DEVICE uint4 CopyBytes(Place& place, std::uint32_t at, std::uint32_t unit_bytes) {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  for (std::uint32_t i = 0; i < kVector && at + i < unit_bytes; ++i) {
    place.GoTo(at + i);
    const std::uint32_t in_run = at + i - place.start;
    const std::byte byte = place.from[in_run];
    if (place.to != nullptr) place.to[in_run] = byte;
    const std::uint64_t shifted = static_cast<std::uint64_t>(byte) << (8 * (i % 8));
    if (i < 8) {
      low |= shifted;
    } else {
      high |= shifted;
    }
  }
  return {static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(low >> 32),
          static_cast<std::uint32_t>(high), static_cast<std::uint32_t>(high >> 32)};
}

// The 16 bytes at `at`, with zeros behind the unit's end. `to`: where they are still to be stored,
// or null.
GPU_DEVICE uint4 TakeVector(Place& place, std::uint32_t at, std::uint32_t unit_bytes,
                            std::byte*& to) {
  place.GoTo(at);
  const std::uint32_t in_run = at - place.start;
  const std::byte* const from = place.from + in_run;
  to = place.to == nullptr ? nullptr : place.to + in_run;
  const auto addresses =
      reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  if (addresses % kVector == 0 && place.end - at >= kVector) return gpu::LoadOnce<uint4>(from);
  to = nullptr;
  return CopyBytes(place, at, unit_bytes);
}

// The remainder of a row whose words have those in `word`, for every lane.
GPU_DEVICE std::uint32_t SumLanes(const std::uint32_t (&word)[4], unsigned lane) {
  const CrcPower over_word = LoadCrcPower(kWordPower, lane);
  std::uint32_t sum = CrcTimes(word[0], over_word);
  for (int i = 1; i < 4; ++i) sum = CrcTimes(sum ^ word[i], over_word);
  for (int k = 0; 1u << k < gpu::kWarp; ++k) {
    const std::uint32_t other = gpu::ShflXor(sum, 1 << k);
    const bool is_behind = (lane >> k & 1) != 0;
    const CrcPower over_lanes = LoadCrcPower(kVectorPower + k, lane);
    sum = CrcTimes(is_behind ? other : sum, over_lanes) ^ (is_behind ? sum : other);
  }
  return sum;
}

// A warp copies bytes [begin, end) of the unit; both are multiples of 16, but for the unit's end.
// Returns their remainder, for every lane; 0 without kSums.
template <bool kSums>
GPU_DEVICE std::uint32_t CopyShare(Place place, std::uint32_t begin, std::uint32_t end,
                                   std::uint32_t unit_bytes, unsigned lane) {
  const std::uint32_t vectors = (end - begin + kVector - 1) / kVector;
  const std::uint32_t steps = (vectors * kVector + kStep - 1) / kStep;
  // The last step is whole; the first may begin before the share, with zeros.
  const auto first = static_cast<std::int32_t>(begin + vectors * kVector - steps * kStep);
  auto at = first + static_cast<std::int32_t>(lane * kVector);
  CrcPower over_row = {};
  if (kSums) over_row = LoadCrcPower(kRowPower, lane);
  std::uint32_t sums[4] = {};  // Of each word of the lane's vectors.
  for (std::uint32_t step = 0; step < steps; ++step) {
    uint4 vectors_ahead[kRowsAhead];
    std::byte* to[kRowsAhead];
    GPU_UNROLL(kRowsAhead)
    for (int row = 0; row < kRowsAhead; ++row, at += static_cast<std::int32_t>(kRow)) {
      vectors_ahead[row] = {};
      to[row] = nullptr;
      if (at < static_cast<std::int32_t>(begin)) continue;
      vectors_ahead[row] = TakeVector(place, static_cast<std::uint32_t>(at), unit_bytes, to[row]);
    }
    GPU_UNROLL(kRowsAhead)
    for (int row = 0; row < kRowsAhead; ++row) {
      const uint4 vector = vectors_ahead[row];
      if (to[row] != nullptr) gpu::Store(to[row], vector);
      if (!kSums) continue;
      sums[0] = CrcTimes(sums[0], over_row) ^ vector.x;
      sums[1] = CrcTimes(sums[1], over_row) ^ vector.y;
      sums[2] = CrcTimes(sums[2], over_row) ^ vector.z;
      sums[3] = CrcTimes(sums[3], over_row) ^ vector.w;
    }
  }
  if (!kSums) return 0;
  const std::uint32_t padded_end = begin + vectors * kVector;
  return CrcShift(SumLanes(sums, lane), static_cast<std::int32_t>(unit_bytes - padded_end), lane);
}

// One thread per checksum.
GPU_KERNEL(256, 1) ClearCrcsKernel(std::uint32_t* crcs, std::int32_t count) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) crcs[i] = 0;
}

// gridDim.y blocks per unit, whose warps take a share each; the sums of blocks meet in `crcs`,
// which are 0 before.
template <bool kSums>
GPU_KERNEL(kThreads, 8)
CopyUnitsKernel(const CopyLaunch a) {
  GPU_SHARED(std::uint32_t, starts, kThreads);
  GPU_SHARED(std::uint32_t, sums, kWarps);
  const unsigned lane = threadIdx.x % gpu::kWarp;
  const unsigned warp = threadIdx.x / gpu::kWarp;
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const CopyUnit unit = a.units[blockIdx.x];
  const CopyRun* const runs = a.runs + unit.first_run;
  const std::uint32_t per_thread = (unit.runs + kThreads - 1) / kThreads;
  const std::uint32_t bytes = FindStarts(runs, unit.runs, per_thread, starts, sums);

  const unsigned shares = gridDim.y * kWarps;
  const unsigned even = ((bytes + shares - 1) / shares + kStep - 1) / kStep * kStep;
  const unsigned share = even < kShareMin ? kShareMin : even;
  if (blockIdx.y * kWarps * share >= bytes) return;
  const unsigned begin = (blockIdx.y * kWarps + warp) * share;
  std::uint32_t sum = 0;
  if (begin < bytes) {
    const unsigned end = bytes - begin < share ? bytes : begin + share;
    const Place place = FindPlace(runs, per_thread, starts, begin);
    sum = CopyShare<kSums>(place, begin, end, bytes, lane);
  }
  if (!kSums) return;
  if (begin == 0) sum ^= CrcShift(~0u, static_cast<std::int32_t>(bytes), lane) ^ ~0u;
  if (lane == 0) sums[warp] = sum;
  gpu::SyncThreads();
  if (threadIdx.x != 0) return;
  for (unsigned i = 1; i < kWarps; ++i) sum ^= sums[i];
  gpu::AtomicXor(a.crcs + blockIdx.x, sum);
}

}  // namespace

int CopyUnitsCuda(const CopyUnit* units, std::int32_t count, const CopyRun* runs,
                  std::uint32_t* crcs, CudaStreamHandle stream) {
  if (count < 0) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  const int wanted = 1 + (kBlocksWanted - 1) / count;
  const int parts = wanted < kPartsMax ? wanted : kPartsMax;
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(parts));
  const CopyLaunch a = {units, runs, crcs};
  if (crcs == nullptr) {
    GPU_LAUNCH_EARLY(CopyUnitsKernel<false>, grid, dim3(kThreads), 0, stream, a);
  } else {
    const dim3 clear((static_cast<unsigned>(count) + 255) / 256);
    GPU_LAUNCH_EARLY(ClearCrcsKernel, clear, dim3(256), 0, stream, crcs, count);
    GPU_LAUNCH_EARLY(CopyUnitsKernel<true>, grid, dim3(kThreads), 0, stream, a);
  }
  return cudaGetLastError();
}

}  // namespace penstock::kernels
