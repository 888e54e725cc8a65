// SPDX-License-Identifier: Apache-2.0
// Prefill attention of Numerics::kFast on a GPU: by cuDNN (device/cudnn_api.h), which multiplies on
// tensor cores, straight from the pages of the pool. Queries are rounded to the pages' type; sums are
// floats, weights and results are of the pages' type. What it cannot take, our kernel does.
//
// cuDNN's attention is taken at its word only after a check: for each kind of pages, before they are
// first attended to, a small batch goes both ways. Where the results differ by more than
// kFastAttentionBound, or cuDNN has no plan, those pages stay with our kernel. The log says which it
// is, once for each kind.
//
// Of one stream's thread. Owns its plans and scratch memory.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "device/cuda_device.h"
#include "device/cudnn_api.h"
#include "kernels/cuda_tables.h"
#include "kernels/ops.h"

namespace penstock::kernels {

// Fewer tokens than this of every sequence are our kernel's: decode, and the ends of prompts.
inline constexpr std::int32_t kFastRowsMin = 64;
inline constexpr std::int32_t kFastSequencesMax = 64;
inline constexpr std::size_t kFastPlansMax = 64;  // Of shapes.
inline constexpr std::size_t kFastWorkspaceBytesMax = std::size_t{64} << 20;
// How far values may be apart in the check, where all keys and values are within [-1, 1]: eight
// times what rounding a number near 1 to the pages' type changes.
constexpr float FastAttentionBound(KvDtype dtype) {
  return dtype == KvDtype::kF16 ? 8.0f / 2048 : 8.0f / 256;
}

// What it keeps on the GPU for batches of up to so many rows.
constexpr std::size_t FastAttentionBytesMax(std::int32_t rows, std::int32_t qo_heads,
                                            std::int32_t dim) {
  constexpr std::size_t kLeast = std::size_t{1} << 20;  // Of each scratch.
  return kFastWorkspaceBytesMax + 2 * kLeast +
         std::size_t{4} * static_cast<std::size_t>(rows) * static_cast<std::size_t>(qo_heads) *
             static_cast<std::size_t>(dim);
}

class FastAttention {
 public:
  // UNIMPLEMENTED without cuDNN, saying why; UNAVAILABLE: it does not start. `device`, `stream` and `uploads` outlive it.
  static absl::StatusOr<std::unique_ptr<FastAttention>> Make(CudaDevice& device, CudaStream& stream,
                                                             CudaUploads& uploads);
  ~FastAttention();

  // Checks the kind of pages, if that was not done, and says whether cuDNN attends to it: OK;
  // UNIMPLEMENTED: its kind is not cuDNN's, or there is no plan; UNAVAILABLE: cuDNN failed;
  // DATA_LOSS: it came out wrong; as Device::Allocate and Stream::Synchronize.
  absl::Status Check(const PageLayout& layout, std::int32_t qo_heads);

  // As Ops::Attention, into y: [rows, qo_heads * v_dim]. False: nothing was done, the batch is our
  // kernel's.
  bool Run(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv, float* y);

 private:
  struct Kind {  // What a check is good for.
    KvDtype dtype;
    std::int32_t qo_heads, kv_heads, k_dim, v_dim, page_tokens, block_tokens, window_tokens;
    auto operator<=>(const Kind&) const = default;
  };
  struct Plan {
    CudnnSdpa* sdpa = nullptr;  // Null: cuDNN has none.
    std::size_t workspace_bytes = 0;
    std::string why_not;
    std::uint64_t used = 0;  // When last: uses_ of then.
  };
  // Tables of a batch on the GPU, good while uploads are in the same round.
  struct Sent {
    const PageLayout* layout = nullptr;
    std::uint64_t batch = 0;
    std::uint64_t round = 0;
    CudnnSdpaData tables;
  };

  FastAttention(CudaDevice& device, CudaStream& stream, CudaUploads& uploads,
                const CudnnLibrary& library)
      : device_(device),
        stream_(stream),
        uploads_(uploads),
        library_(library),
        scratch_(device, stream),
        workspace_(device, stream) {}
  absl::Status CheckKind(const PageLayout& layout, std::int32_t qo_heads);
  // FAILED_PRECONDITION where the batch is not for cuDNN.
  absl::Status Attend(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                      float* y);
  // Good until the next call.
  const Plan& PlanFor(const CudnnSdpaShape& shape);
  void DropAPlan();  // That used longest ago.
  CudnnSdpaData SendTables(const KvBatch& kv, const CudnnSdpaShape& shape);

  CudaDevice& device_;
  CudaStream& stream_;
  CudaUploads& uploads_;
  const CudnnLibrary& library_;
  CudnnHandle handle_ = nullptr;
  CudaScratch scratch_;  // q and what comes out, of 16 bits.
  CudaScratch workspace_;
  std::map<Kind, absl::Status> checked_;
  std::map<CudnnSdpaShape, Plan> plans_;
  Sent sent_;
  std::uint64_t uses_ = 0;
  bool full_ = false;    // Said that plans_ are.
  bool broken_ = false;  // cuDNN failed: all is ours from then on.
};

// What Make and Check say of such pages, without anything that lives on.
absl::Status CheckFastAttention(CudaDevice& device, const PageLayout& layout,
                                std::int32_t qo_heads);

}  // namespace penstock::kernels
