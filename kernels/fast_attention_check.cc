// SPDX-License-Identifier: Apache-2.0
// cuDNN's attention beside our kernel's, on a small batch: a prompt from its beginning, and a chunk
// behind a prefix, both ending inside a block, whose other rows hold what must not be seen.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise.h"
#include "kernels/fast_attention.h"

namespace penstock::kernels {
namespace {

struct Part {
  std::int32_t rows;
  std::int32_t position;
};
// The second has more keys than a tile of either kernel, so that sums are carried from one to the next.
constexpr std::array<Part, 2> kParts = {{{kFastRowsMin + 7, 0}, {21, 301}}};
constexpr float kHidden = 60000;  // Would show in any result that saw it.

class Sample {
 public:
  // One layer, and as few KV heads as show that each has its own queries.
  Sample(const PageLayout& like, std::int32_t qo_heads) : layout_(like) {
    group_heads_ = qo_heads / like.group.kv_heads;
    layout_.group.cache_layers = 1;
    layout_.group.kv_heads = std::min(like.group.kv_heads, 2);
    std::uint32_t slabs = 0;
    for (const Part& part : kParts) {
      const std::int32_t keys = part.position + part.rows;
      slabs += static_cast<std::uint32_t>((keys + layout_.block_tokens - 1) / layout_.block_tokens);
    }
    for (std::uint32_t i = 0; i < slabs; ++i) {
      SlabRef slab;
      slab.index = (slabs - 1 - i) & 0xffffffU;  // Not in the order of the keys.
      slabs_.push_back(slab);
    }
    std::size_t first = 0;
    std::int32_t row = 0;
    for (const Part& part : kParts) {
      const auto count = static_cast<std::size_t>(
          (part.position + part.rows + layout_.block_tokens - 1) / layout_.block_tokens);
      sequences_.push_back({.row_begin = row,
                            .rows = part.rows,
                            .position = part.position,
                            .slabs = std::span(slabs_).subspan(first, count)});
      first += count;
      row += part.rows;
    }
    rows_ = row;
  }

  std::int32_t qo_heads() const { return group_heads_ * layout_.group.kv_heads; }
  std::size_t q_floats() const { return Floats(layout_.group.k_dim); }
  std::size_t y_floats() const { return Floats(layout_.group.v_dim); }
  float scale() const { return 1 / std::sqrt(static_cast<float>(layout_.group.k_dim)); }

  std::vector<float> Queries() {
    std::vector<float> q(q_floats());
    for (float& x : q) x = uniform_(random_);
    return q;
  }
  std::vector<std::byte> Pool() {
    std::vector<std::byte> pool(slabs_.size() * layout_.slab_bytes());
    for (const SequenceRows& s : sequences_) {
      const std::int32_t keys = s.position + s.rows;
      for (std::size_t b = 0; b < s.slabs.size(); ++b) {
        std::byte* const slab = pool.data() + s.slabs[b].index * layout_.slab_bytes();
        const std::int32_t shown = keys - static_cast<std::int32_t>(b) * layout_.block_tokens;
        for (std::int32_t h = 0; h < layout_.group.kv_heads; ++h) {
          std::byte* const page = slab + layout_.PageOffset(0, h, 0);
          Fill(layout_.group.k_dim, shown, page);
          Fill(layout_.group.v_dim, shown, page + layout_.v_offset());
        }
      }
    }
    return pool;
  }
  KvBatch Batch(std::byte* const* pool, const std::size_t* stride) const {
    return {.layout = &layout_,
            .pools = {.base = {pool, 1}, .stride_bytes = {stride, 1}},
            .cache_layer = 0,
            .sequences = sequences_};
  }
  std::size_t slab_bytes() const { return layout_.slab_bytes(); }

 private:
  std::size_t Floats(std::int32_t dim) const {
    return static_cast<std::size_t>(rows_) * static_cast<std::size_t>(qo_heads() * dim);
  }
  void Fill(std::int32_t dim, std::int32_t shown, std::byte* rows) {
    std::vector<float> row(static_cast<std::size_t>(dim));
    for (std::int32_t t = 0; t < layout_.page_tokens; ++t) {
      for (float& x : row) x = t < shown ? uniform_(random_) : kHidden;
      NarrowRow(layout_.group.dtype, row.data(), dim, rows + 2 * std::ptrdiff_t{t} * dim, nullptr);
    }
  }

  PageLayout layout_;
  std::int32_t group_heads_ = 1;
  std::int32_t rows_ = 0;
  std::vector<SlabRef> slabs_;
  std::vector<SequenceRows> sequences_;
  std::mt19937 random_{1};
  std::uniform_real_distribution<float> uniform_{-1, 1};
};

}  // namespace

absl::Status FastAttention::CheckKind(const PageLayout& layout, std::int32_t qo_heads) {
  Sample sample(layout, qo_heads);
  const std::vector<float> queries = sample.Queries();
  const std::vector<std::byte> bytes = sample.Pool();
  const std::size_t y_bytes = sizeof(float) * sample.y_floats();
  ASSIGN_OR_RETURN(const auto pool, device_.Allocate(bytes.size()));
  ASSIGN_OR_RETURN(const auto q, device_.Allocate(sizeof(float) * queries.size()));
  ASSIGN_OR_RETURN(const auto ours, device_.Allocate(y_bytes));
  ASSIGN_OR_RETURN(const auto theirs, device_.Allocate(y_bytes));
  stream_.Copy(pool->data(), bytes.data(), bytes.size());
  stream_.Copy(q->data(), reinterpret_cast<const std::byte*>(queries.data()),
               sizeof(float) * queries.size());
  std::byte* const base = pool->data();
  const std::size_t stride = sample.slab_bytes();
  const KvBatch batch = sample.Batch(&base, &stride);
  const auto* const q_data = reinterpret_cast<const float*>(q->data());
  const CudaKernels& kernels = *device_.plugin().kernels;
  const CudaKv tables = UploadTables(batch, uploads_);
  CudaScratch scratch(device_, stream_);
  std::byte* const room = scratch.AtLeast(
      std::max<std::size_t>(kernels.attention_scratch_bytes(tables, sample.qo_heads()), 1));
  stream_.Expect(kernels.attention(q_data, sample.qo_heads(), sample.scale(), tables,
                                   reinterpret_cast<float*>(ours->data()), room, stream_.handle()),
                 "Attention");
  const absl::Status ran = Attend(q_data, sample.qo_heads(), sample.scale(), batch,
                                  reinterpret_cast<float*>(theirs->data()));
  std::vector<float> want(sample.y_floats()), got(sample.y_floats());
  stream_.Copy(reinterpret_cast<std::byte*>(want.data()), ours->data(), y_bytes);
  stream_.Copy(reinterpret_cast<std::byte*>(got.data()), theirs->data(), y_bytes);
  RETURN_IF_ERROR(stream_.Synchronize());
  RETURN_IF_ERROR(ran);
  float apart = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const float distance = std::abs(want[i] - got[i]);
    if (distance > apart || std::isnan(distance)) apart = distance;  // A NaN stays.
  }
  const float bound = FastAttentionBound(layout.group.dtype);
  if (apart <= bound) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("cuDNN's attention is ", apart,
                                          " from our kernel's, at most ", bound, " is allowed"));
}

absl::Status CheckFastAttention(CudaDevice& device, const PageLayout& layout,
                                std::int32_t qo_heads) {
  CudaStream stream(device.plugin(), device.gpu());
  ASSIGN_OR_RETURN(const auto uploads, CudaUploads::Make(device, stream, std::size_t{1} << 16));
  ASSIGN_OR_RETURN(const auto attention, FastAttention::Make(device, stream, *uploads));
  return attention->Check(layout, qo_heads);
}

}  // namespace penstock::kernels
