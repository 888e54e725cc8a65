// SPDX-License-Identifier: Apache-2.0
// What the cases of gpu_work.h are made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "bench/gpu_work.h"
#include "kernels/activations.h"

namespace penstock::bench {

inline constexpr std::int32_t kBlockTokens = 32;

// As MakeGpuWork says; for all that a case reads: as bytes they are levels, as F32 small numbers.
absl::Status Fill(CudaStream& stream, std::byte* data, std::size_t bytes);

struct WorkBase : GpuWork {
  absl::StatusOr<std::byte*> Take(CudaDevice& device, CudaStream& stream, std::size_t bytes) {
    ASSIGN_OR_RETURN(memory.emplace_back(), device.Allocate(std::max<std::size_t>(bytes, 4)));
    RETURN_IF_ERROR(Fill(stream, memory.back()->data(), bytes));
    return memory.back()->data();
  }
  template <typename T>
  absl::Status Take(CudaDevice& device, CudaStream& stream, std::size_t n, T*& out) {
    ASSIGN_OR_RETURN(std::byte* const data, Take(device, stream, n * sizeof(T)));
    out = reinterpret_cast<T*>(data);
    return absl::OkStatus();
  }
  absl::Status TakeRows(CudaDevice& device, CudaStream& stream, std::int32_t rows,
                        std::int32_t cols, kernels::Activations& out) {
    out.cols = cols;
    const auto blocks = static_cast<std::size_t>(rows) * static_cast<std::size_t>(out.blocks());
    RETURN_IF_ERROR(Take(device, stream, blocks * 32, out.q));
    RETURN_IF_ERROR(Take(device, stream, blocks, out.scale));
    return Take(device, stream, blocks, out.sum);
  }

  std::vector<std::unique_ptr<DeviceMemory>> memory;
};

inline std::size_t Floats(std::int64_t rows, std::int64_t cols) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
}

// Loads at least `round_bytes` of pieces of `bytes`.
inline std::size_t Copies(std::size_t bytes, std::size_t round_bytes) {
  return round_bytes / bytes + 1;
}

// ---- gpu_work_moves.cc: what moves KV, and what stores make of it.

absl::StatusOr<std::unique_ptr<GpuWork>> MakeCopy(const GpuCase& c, CudaDevice& device,
                                                  CudaStream& stream);
absl::StatusOr<std::unique_ptr<GpuWork>> MakeUnits(const GpuCase& c, CudaDevice& device,
                                                   std::size_t round_bytes);
absl::StatusOr<std::unique_ptr<GpuWork>> MakeCoded(const GpuCase& c, CudaDevice& device,
                                                   CudaStream& stream, kernels::Ops& ops,
                                                   std::size_t round_bytes);

}  // namespace penstock::bench
