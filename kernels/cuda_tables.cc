// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_tables.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/check_ok.h"
#include "base/status.h"

namespace penstock::kernels {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::int32_t kPartitionTokens = 256;  // Of attention.h's order.

// A SlabRef's bits are those that batch_cuda.h reads.
static_assert(sizeof(SlabRef) == sizeof(std::uint32_t));

std::size_t Aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Hands out arrays of one place, on both sides.
class Arrays {
 public:
  explicit Arrays(const CudaUploads::Place& place) : place_(place) {}
  template <typename T>
  T* Take(std::size_t n, const T** device) {
    T* const host = reinterpret_cast<T*>(place_.host + used_);
    *device = reinterpret_cast<const T*>(place_.device + used_);
    used_ += Aligned(n * sizeof(T));
    CHECK_LE(used_, place_.bytes);
    return host;
  }

 private:
  const CudaUploads::Place place_;
  std::size_t used_ = 0;
};

// Partitions that the row at `position` sees.
std::int32_t PartitionsSeen(std::int32_t position, std::int32_t window_tokens) {
  const std::int32_t first = window_tokens > 0 ? std::max(position - window_tokens + 1, 0) : 0;
  return position / kPartitionTokens - first / kPartitionTokens + 1;
}

void CopyShape(const PageLayout& layout, CudaKv* to) {
  const KvGroup& group = layout.group;
  to->dtype = group.dtype;
  to->block_tokens = layout.block_tokens;
  to->page_tokens = layout.page_tokens;
  to->kv_heads = group.kv_heads;
  to->k_dim = group.k_dim;
  to->v_dim = group.v_dim;
  to->window_tokens = group.window_tokens;
  to->page_bytes = static_cast<std::int64_t>(layout.page_bytes());
  to->k_bytes = static_cast<std::int64_t>(layout.k_bytes());
  to->scales_at = static_cast<std::int64_t>(layout.k_scales_offset());
}

std::size_t SlabCount(const KvBatch& kv) {
  std::size_t slabs = 0;
  for (const SequenceRows& s : kv.sequences) slabs += s.slabs.size();
  return slabs;
}

// That kernels find every block that a sequence's rows are written to.
void CheckCovered(const SequenceRows& s, const PageLayout& layout) {
  if (s.rows == 0) return;
  const std::int32_t last = (s.position + s.rows - 1) / layout.block_tokens - s.first_block;
  CHECK_GE(s.position / layout.block_tokens, s.first_block);
  CHECK_LT(last, static_cast<std::int32_t>(s.slabs.size()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaUploads>> CudaUploads::Make(CudaDevice& device,
                                                               CudaStream& stream,
                                                               std::size_t bytes) {
  std::unique_ptr<CudaUploads> uploads(new CudaUploads(device, stream));
  RETURN_IF_ERROR(uploads->Resize(bytes));
  return uploads;
}

absl::Status CudaUploads::Resize(std::size_t bytes) {
  RETURN_IF_ERROR(stream_.Synchronize());
  ASSIGN_OR_RETURN(host_, device_.AllocateHost(bytes));
  ASSIGN_OR_RETURN(on_device_, device_.Allocate(bytes));
  used_ = 0;
  ++round_;
  return absl::OkStatus();
}

void CudaUploads::MakeRoom(std::size_t bytes) {
  const std::size_t needed = Aligned(bytes) + 8 * kAlignment;
  if (needed <= host_->size_bytes() - used_) return;
  // A step whose pieces do not fit together would never be whole.
  if (in_step_ || needed > host_->size_bytes()) {
    device_.MustHave(Resize(2 * std::max(needed, host_->size_bytes())));
    return;
  }
  CHECK_OK(stream_.Synchronize());
  used_ = 0;
  ++round_;
}

void CudaUploads::BeginStep() {
  CHECK_OK(stream_.Synchronize());
  used_ = 0;
  step_round_ = ++round_;
  in_step_ = true;
}

void CudaUploads::EndStep(bool send) {
  in_step_ = false;
  if (send) stream_.Copy(on_device_->data(), host_->data(), used_);
}

CudaUploads::Place CudaUploads::Reserve(std::size_t bytes) {
  if (in_step_) bytes = std::bit_ceil(bytes);
  if (Aligned(bytes) > host_->size_bytes() - used_) MakeRoom(bytes);
  const Place place = {host_->data() + used_, on_device_->data() + used_, bytes};
  used_ += Aligned(bytes);
  return place;
}

std::byte* CudaScratch::AtLeast(std::size_t bytes) {
  if (memory_ != nullptr && memory_->size_bytes() >= bytes) return memory_->data();
  CHECK_OK(stream_.Synchronize());
  memory_.reset();
  absl::StatusOr<std::unique_ptr<DeviceMemory>> memory =
      device_.Allocate(std::max(bytes, std::size_t{1} << 20));
  device_.MustHave(memory.status());
  memory_ = *std::move(memory);
  return memory_->data();
}

std::size_t TableBytes(const KvBatch& kv) {
  std::size_t rows = 0;
  for (const SequenceRows& s : kv.sequences) rows += static_cast<std::size_t>(s.rows);
  const std::size_t pools = kv.pools.base.size();
  return Aligned(pools * sizeof(std::byte*)) + Aligned(pools * sizeof(std::uint64_t)) +
         Aligned(SlabCount(kv) * sizeof(std::uint32_t)) +
         Aligned(kv.sequences.size() * sizeof(CudaSequence)) + Aligned(rows * sizeof(CudaRow));
}

CudaKv UploadTables(const KvBatch& kv, CudaUploads& uploads) {
  CudaKv to;
  CopyShape(*kv.layout, &to);
  for (const SequenceRows& s : kv.sequences) {
    CheckCovered(s, *kv.layout);
    CHECK_EQ(s.row_begin, to.row_count);
    to.row_count += s.rows;
    to.rows_max = std::max(to.rows_max, s.rows);
    for (std::int32_t i = 0; i < s.rows; ++i) {
      to.partitions_max =
          std::max(to.partitions_max, PartitionsSeen(s.position + i, to.window_tokens));
    }
  }
  if (uploads.in_step()) {
    to.partitions_max =
        static_cast<std::int32_t>(std::bit_ceil(static_cast<std::uint32_t>(to.partitions_max)));
  }
  const auto rows = static_cast<std::size_t>(to.row_count);
  const std::size_t pools = kv.pools.base.size();
  to.sequence_count = static_cast<std::int32_t>(kv.sequences.size());
  const CudaUploads::Place place = uploads.Reserve(TableBytes(kv));
  Arrays arrays(place);
  std::byte* const* bases = nullptr;
  std::ranges::copy(kv.pools.base, arrays.Take<std::byte*>(pools, &bases));
  to.pool_base = bases;
  std::ranges::copy(kv.pools.stride_bytes,
                    arrays.Take<std::uint64_t>(pools, &to.pool_stride_bytes));
  CudaSequence* sequence = arrays.Take<CudaSequence>(kv.sequences.size(), &to.sequences);
  CudaRow* row = arrays.Take<CudaRow>(rows, &to.rows);
  // The last: with every block that a sequence begins they become more.
  std::uint32_t* const slab_list = arrays.Take<std::uint32_t>(SlabCount(kv), &to.slabs);
  std::int32_t slabs_begin = 0;
  for (std::size_t i = 0; i < kv.sequences.size(); ++i) {
    const SequenceRows& s = kv.sequences[i];
    *sequence++ = {s.row_begin, s.rows, s.position, s.first_block, slabs_begin};
    if (!s.slabs.empty()) {
      std::memcpy(slab_list + slabs_begin, s.slabs.data(), s.slabs.size_bytes());
    }
    slabs_begin += static_cast<std::int32_t>(s.slabs.size());
    for (std::int32_t r = 0; r < s.rows; ++r) {
      *row++ = {s.row_begin + r, static_cast<std::int32_t>(i), s.position + r};
    }
  }
  uploads.Send(place);
  return to;
}

}  // namespace penstock::kernels
