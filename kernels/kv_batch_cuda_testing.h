// SPDX-License-Identifier: Apache-2.0
// A batch with pages of random keys and values, on the host and on the device, for tests of what
// reads kernels/batch_cuda.h. Slabs lie in three pools of unlike strides, in random order. Keys that
// no row may see are NaN, so that using one shows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/kv_spec.h"
#include "kernels/batch_cuda.h"
#include "kernels/cuda_testing.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {

struct CudaBatchShape {
  struct Sequence {
    std::int32_t rows = 1;
    std::int32_t position = 0;
  };
  std::vector<Sequence> sequences = {};
  std::int32_t kv_heads = 2;
  std::int32_t group = 1;  // Query heads of each.
  std::int32_t k_dim = 64;
  std::int32_t v_dim = 64;
  KvDtype dtype = KvDtype::kF16;
  std::int32_t window_tokens = 0;
  std::int32_t block_tokens = 32;
  std::int32_t page_tokens = 32;
  bool own_pool_only = false;

  std::string ToString() const {
    std::string text =
        absl::StrCat("kv_heads=", kv_heads, " group=", group, " k_dim=", k_dim, " v_dim=", v_dim,
                     " dtype=", std::string(penstock::ToString(dtype)), " window=", window_tokens,
                     " block=", block_tokens, " page=", page_tokens);
    for (const Sequence& s : sequences) absl::StrAppend(&text, " ", s.rows, "@", s.position);
    return text;
  }
};

class CudaBatch {
 public:
  CudaBatch(const CudaBatchShape& shape, std::uint32_t seed) : shape_(shape), random_(seed) {
    const KvGroup group = {shape.window_tokens, kCacheLayers, shape.kv_heads,
                           shape.k_dim,         shape.v_dim,  shape.dtype};
    layout_ = *PageLayout::Make(group, shape.block_tokens, shape.page_tokens);
    PlaceSequences();
    PlaceSlabs();
    for (std::size_t i = 0; i < sequences_.size(); ++i) FillKeys(i);
    Upload();
  }

  // Device tables. Valid while this lives.
  const CudaKv& kv() const { return kv_; }
  const PageLayout& layout() const { return layout_; }
  std::int32_t rows() const { return kv_.row_count; }
  const std::vector<CudaSequence>& sequences() const { return sequences_; }
  // The host's bytes of a page.
  std::byte* HostPage(std::size_t sequence, std::int32_t kv_head, std::int32_t page) {
    const CudaSequence& s = sequences_[sequence];
    const std::int32_t pages = layout_.pages_per_block();
    const std::uint32_t slab =
        slabs_[static_cast<std::size_t>(s.slabs_begin + page / pages - s.first_block)];
    Pool& pool = pools_[slab & 255];
    return pool.host.data() + (slab >> 8) * pool.stride +
           layout_.PageOffset(kv_.cache_layer, kv_head, page % pages);
  }
  // Where the K (or V) row of a token in a page lies, and its scale; the latter of use with int8 alone.
  std::byte* RowIn(std::byte* page, std::size_t in_page, bool is_k) const {
    return page + (is_k ? 0 : layout_.v_offset()) +
           in_page * (is_k ? layout_.k_row_bytes() : layout_.v_row_bytes());
  }
  std::byte* ScaleIn(std::byte* page, std::size_t in_page, bool is_k) const {
    return page + (is_k ? layout_.k_scales_offset() : layout_.v_scales_offset()) +
           in_page * ScaleBytes(shape_.dtype);
  }
  // Of a sequence: the first position that some row sees, and where they end.
  std::int32_t FirstSeen(std::size_t sequence) const {
    const std::int32_t window = shape_.window_tokens;
    return window > 0 ? std::max(0, sequences_[sequence].position + 1 - window) : 0;
  }
  std::int32_t End(std::size_t sequence) const {
    return sequences_[sequence].position + sequences_[sequence].rows;
  }
  // Sends the host's bytes to the device, and back.
  void UploadPages() {
    for (Pool& pool : pools_) pool.device->Set(pool.host);
  }
  void SetDevicePool(int pool, const std::vector<std::byte>& bytes) {
    pools_[static_cast<std::size_t>(pool)].device->Set(bytes);
  }
  std::vector<std::byte> DownloadPool(int pool) const {
    return pools_[static_cast<std::size_t>(pool)].device->Get();
  }
  std::vector<std::byte>& HostPool(int pool) { return pools_[static_cast<std::size_t>(pool)].host; }

  std::vector<float> Random(std::size_t n, float size = 1) {
    std::uniform_real_distribution<float> uniform(-size, size);
    std::vector<float> values(n);
    for (float& v : values) v = uniform(random_);
    return values;
  }

 private:
  static constexpr std::int32_t kCacheLayers = 2;
  struct Pool {
    std::size_t stride = 0;
    std::vector<std::byte> host;
    std::unique_ptr<DeviceBuffer<std::byte>> device;
  };

  void PlaceSequences() {
    for (const CudaBatchShape::Sequence& s : shape_.sequences) {
      CudaSequence to;
      to.row_begin = kv_.row_count;
      to.rows = s.rows;
      to.position = s.position;
      to.slabs_begin = static_cast<std::int32_t>(slabs_.size());
      sequences_.push_back(to);
      const std::int32_t oldest = FirstSeen(sequences_.size() - 1);
      sequences_.back().first_block = oldest / shape_.block_tokens;
      const std::int32_t blocks =
          (s.position + s.rows - 1) / shape_.block_tokens - oldest / shape_.block_tokens + 1;
      slabs_.resize(slabs_.size() + static_cast<std::size_t>(s.rows == 0 ? 0 : blocks));
      kv_.row_count += s.rows;
      kv_.rows_max = std::max(kv_.rows_max, s.rows);
      for (std::int32_t i = 0; i < s.rows; ++i) {
        const std::int32_t position = s.position + i;
        rows_.push_back(
            {to.row_begin + i, static_cast<std::int32_t>(sequences_.size()) - 1, position});
        const std::int32_t window = shape_.window_tokens;
        const std::int32_t first = window > 0 ? std::max(position - window + 1, 0) : 0;
        kv_.partitions_max = std::max(kv_.partitions_max, position / 256 - first / 256 + 1);
      }
    }
  }

  void PlaceSlabs() {
    const std::size_t slab = layout_.slab_bytes();
    const std::size_t strides[] = {slab, 4096, slab + 4096};
    std::vector<std::size_t> used(std::size(strides), 0);
    std::vector<std::size_t> order(slabs_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random_);
    for (const std::size_t i : order) {
      const std::size_t pool = shape_.own_pool_only ? 0 : random_() % std::size(strides);
      const std::size_t index = (used[pool] + strides[pool] - 1) / strides[pool];
      slabs_[i] = static_cast<std::uint32_t>(pool | index << 8);
      used[pool] = index * strides[pool] + slab;
    }
    for (std::size_t pool = 0; pool < std::size(strides); ++pool) {
      pools_.push_back(
          {strides[pool], std::vector<std::byte>(used[pool] + 16, std::byte{0xff}), nullptr});
    }
  }

  void FillKeys(std::size_t sequence) {
    if (sequences_[sequence].rows == 0) return;
    for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
      for (std::int32_t p = FirstSeen(sequence); p < End(sequence); ++p) {
        std::byte* const page = HostPage(sequence, head, p / shape_.page_tokens);
        const auto in_page = static_cast<std::size_t>(p % shape_.page_tokens);
        for (const bool is_k : {true, false}) {
          const std::int32_t dim = is_k ? shape_.k_dim : shape_.v_dim;
          NarrowRow(shape_.dtype, Random(static_cast<std::size_t>(dim)).data(), dim,
                    RowIn(page, in_page, is_k), ScaleIn(page, in_page, is_k));
        }
      }
    }
  }

  void Upload() {
    std::vector<std::byte*> bases;
    std::vector<std::uint64_t> strides;
    for (Pool& pool : pools_) {
      pool.device = std::make_unique<DeviceBuffer<std::byte>>(pool.host);
      bases.push_back(pool.device->data());
      strides.push_back(pool.stride);
    }
    device_bases_ = std::make_unique<DeviceBuffer<std::byte*>>(bases);
    device_strides_ = std::make_unique<DeviceBuffer<std::uint64_t>>(strides);
    device_slabs_ = std::make_unique<DeviceBuffer<std::uint32_t>>(slabs_);
    device_sequences_ = std::make_unique<DeviceBuffer<CudaSequence>>(sequences_);
    device_rows_ = std::make_unique<DeviceBuffer<CudaRow>>(rows_);
    kv_.dtype = shape_.dtype;
    kv_.block_tokens = shape_.block_tokens;
    kv_.page_tokens = shape_.page_tokens;
    kv_.kv_heads = shape_.kv_heads;
    kv_.k_dim = shape_.k_dim;
    kv_.v_dim = shape_.v_dim;
    kv_.window_tokens = shape_.window_tokens;
    kv_.cache_layer = 1;
    kv_.page_bytes = static_cast<std::int64_t>(layout_.page_bytes());
    kv_.k_bytes = static_cast<std::int64_t>(layout_.k_bytes());
    kv_.scales_at = static_cast<std::int64_t>(layout_.k_scales_offset());
    kv_.pool_base = device_bases_->data();
    kv_.pool_stride_bytes = device_strides_->data();
    kv_.slabs = device_slabs_->data();
    kv_.sequences = device_sequences_->data();
    kv_.rows = device_rows_->data();
    kv_.sequence_count = static_cast<std::int32_t>(sequences_.size());
  }

  const CudaBatchShape shape_;
  std::mt19937 random_;
  PageLayout layout_;
  CudaKv kv_ = {.cache_layer = 1};
  std::vector<CudaSequence> sequences_;
  std::vector<CudaRow> rows_;
  std::vector<std::uint32_t> slabs_;
  std::vector<Pool> pools_;
  std::unique_ptr<DeviceBuffer<std::byte*>> device_bases_;
  std::unique_ptr<DeviceBuffer<std::uint64_t>> device_strides_;
  std::unique_ptr<DeviceBuffer<std::uint32_t>> device_slabs_;
  std::unique_ptr<DeviceBuffer<CudaSequence>> device_sequences_;
  std::unique_ptr<DeviceBuffer<CudaRow>> device_rows_;
};

}  // namespace penstock::kernels
