// SPDX-License-Identifier: Apache-2.0
// The matrix products of Numerics::kFast: those of many rows are cuBLASLt's, by the first algorithm
// that its heuristic holds best for their shape. Weights lie in panels (kernels/packed_layout.h), which
// no library reads: a kernel of ours unpacks them into a room of kRoomBytes at most, in the type that
// DenseFormat gives, as many rows at a time as it holds; activations are rounded to that type, too.
// Sums and results are floats. What few rows would gain by that is less than what unpacking costs:
// their products, and those that cuBLASLt knows no way for or refuses, are the exact kernels'.
//
// A product may be captured into a graph: workspace, room and plan are there before, since what is taken
// down makes them (kernels/cuda_launches.h), and their places are part of the graph's key.
//
// Of one stream's thread; device, stream and launches outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <set>
#include <span>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "device/cublas_lt_api.h"
#include "device/cuda_device.h"
#include "kernels/activations.h"
#include "kernels/cuda_launches.h"
#include "kernels/cuda_tables.h"
#include "kernels/packed_matrix.h"

namespace penstock::kernels {

class FastProducts {
 public:
  // Rows from which on unpacking pays: of float weights, which the exact kernels multiply without
  // tensor cores, and of the others.
  static constexpr std::int32_t kFloatRowsMin = 17;
  static constexpr std::int32_t kInt8RowsMin = 128;
  // What cuBLASLt is given to work in: NVIDIA's advice for GPUs from 9.0 on.
  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
  // For unpacked weights: 4096 x 14336 of 16 bits are 112 MiB.
  static constexpr std::size_t kRoomBytes = std::size_t{128} << 20;
  static constexpr std::size_t kPlansMax = 512;
  static constexpr std::size_t kSaidMax = 64;

  // UNIMPLEMENTED where there is no cuBLASLt, with why; RESOURCE_EXHAUSTED as Device::Allocate;
  // INTERNAL where cuBLASLt does not start.
  static absl::StatusOr<std::unique_ptr<FastProducts>> Make(CudaDevice& device, CudaStream& stream,
                                                            CudaLaunches& launches,
                                                            std::size_t room_bytes = kRoomBytes,
                                                            std::size_t plans_max = kPlansMax);
  ~FastProducts();
  FastProducts(const FastProducts&) = delete;
  FastProducts& operator=(const FastProducts&) = delete;

  // What it takes of the device's memory at most, for batches of that many rows of so many columns.
  static std::size_t BytesMax(std::int32_t rows, std::int32_t cols_max);

  // As Ops::Linear; does those of the outputs that are its own, and gives back the others.
  std::vector<LinearOutput> Multiply(const Activations& x, std::int32_t rows,
                                     std::span<const LinearOutput> outputs);

 private:
  struct Plan {
    CublasLtProduct product;
    CublasLtPlan* made = nullptr;  // Null: cuBLASLt knows no way.
  };
  // x as a product takes it.
  struct Input {
    const void* data = nullptr;
    WeightFormat format = WeightFormat::kF32;
    std::int64_t stride = 0;  // In elements.
  };

  FastProducts(CudaDevice& device, CudaStream& stream, CudaLaunches& launches,
               const CublasLtApi& lt, std::size_t room_bytes, std::size_t plans_max)
      : stream_(stream),
        launches_(launches),
        lt_(lt),
        room_bytes_(room_bytes),
        plans_max_(plans_max),
        room_(device, stream),
        rounded_(device, stream) {}
  Input RoundInput(const Activations& x, std::int32_t rows, WeightFormat format);
  // False, with nothing done: it has to be made otherwise.
  bool MultiplyOne(const Input& x, std::int32_t rows, const LinearOutput& output);
  CublasLtPlan* PlanOf(const CublasLtProduct& product);
  // A plan that cuBLASLt made and does not run: it knows no way, from now on.
  void Drop(const CublasLtProduct& product, int status);
  void SayExact(const CublasLtProduct& product, int status);
  void Expect(int status, const char* what);

  CudaStream& stream_;
  CudaLaunches& launches_;
  const CublasLtApi& lt_;
  const std::size_t room_bytes_;
  const std::size_t plans_max_;
  CublasLtHandle handle_ = nullptr;
  std::unique_ptr<DeviceMemory> workspace_;
  CudaScratch room_;       // [rows of a piece, cols up to 8 more]
  CudaScratch rounded_;    // [rows, cols up to 8 more]
  std::list<Plan> plans_;  // The last used first.
  // Of which products the log has it that they are exact: type, outputs and columns.
  std::set<std::tuple<CublasLtType, std::int64_t, std::int64_t>> said_;
};

}  // namespace penstock::kernels
