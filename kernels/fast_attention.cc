// SPDX-License-Identifier: Apache-2.0
#include "kernels/fast_attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/cuda_kernels.h"

namespace penstock::kernels {
namespace {

// Shapes are rounded up to powers of four of these, so that few plans serve all batches: a plan
// takes about a second to make, and threads that find no work end at once.
constexpr std::int32_t kTokensLeast = 64;
constexpr std::int32_t kKeysLeast = 256;
constexpr std::int64_t kPoolLeast = 65536;  // Most pools are smaller.

std::int64_t RoundUp(std::int64_t n, std::int64_t least) {
  std::int64_t up = least;
  while (up < n) up *= 4;
  return up;
}

std::int64_t RowsOf(const KvBatch& kv) {
  std::int64_t rows = 0;
  for (const SequenceRows& s : kv.sequences) rows += s.rows;
  return rows;
}

// Of pages that cuDNN can find in a pool.
absl::Status CheckLayout(const PageLayout& layout, std::int32_t qo_heads) {
  const KvGroup& group = layout.group;
  if (group.dtype != KvDtype::kF16 && group.dtype != KvDtype::kBF16) {
    return absl::UnimplementedError(
        absl::StrCat("pages of ", std::string(ToString(group.dtype)), ", not f16 or bf16"));
  }
  if (layout.page_tokens != layout.block_tokens) {
    return absl::UnimplementedError(absl::StrCat("pages of ", layout.page_tokens,
                                                 " tokens in blocks of ", layout.block_tokens));
  }
  if (group.window_tokens != 0) {
    return absl::UnimplementedError(absl::StrCat("a window of ", group.window_tokens, " tokens"));
  }
  CHECK_EQ(qo_heads % group.kv_heads, 0);
  return absl::OkStatus();
}

// Whether the batch is one that cuDNN does well, and all of its blocks are in the own pool.
bool Suits(const KvBatch& kv, std::int32_t qo_heads) {
  std::int32_t rows_max = 0;
  for (const SequenceRows& s : kv.sequences) {
    rows_max = std::max(rows_max, s.rows);
    if (s.first_block != 0) return false;
    if (std::ranges::any_of(s.slabs, [](const SlabRef& slab) { return slab.pool != 0; })) {
      return false;
    }
  }
  const std::int64_t cols =
      std::int64_t{qo_heads} * std::max(kv.layout->group.k_dim, kv.layout->group.v_dim);
  return rows_max >= kFastRowsMin && std::ssize(kv.sequences) <= kFastSequencesMax &&
         RowsOf(kv) * cols <= std::numeric_limits<std::int32_t>::max();
}

CudnnSdpaShape ShapeOf(const KvBatch& kv, std::int32_t qo_heads) {
  const PageLayout& layout = *kv.layout;
  std::int64_t rows = 1, keys = 1, slabs = 1;
  for (const SequenceRows& s : kv.sequences) {
    rows = std::max<std::int64_t>(rows, s.rows);
    keys = std::max<std::int64_t>(keys, std::int64_t{s.position} + s.rows);
    for (const SlabRef& slab : s.slabs) slabs = std::max<std::int64_t>(slabs, slab.index + 1);
  }
  CHECK_EQ(kv.pools.stride_bytes[0] % 16, std::size_t{0});
  CudnnSdpaShape shape;
  shape.bf16 = layout.group.dtype == KvDtype::kBF16;
  shape.sequences = static_cast<std::int32_t>(RoundUp(std::ssize(kv.sequences), 1));
  shape.q_tokens = static_cast<std::int32_t>(RoundUp(rows, kTokensLeast));
  shape.block_tokens = layout.block_tokens;
  shape.kv_blocks = static_cast<std::int32_t>(
      RoundUp(keys, std::max(kKeysLeast, layout.block_tokens)) / layout.block_tokens);
  shape.qo_heads = qo_heads;
  shape.kv_heads = layout.group.kv_heads;
  shape.k_dim = layout.group.k_dim;
  shape.v_dim = layout.group.v_dim;
  // The pool may end before that: tables name none of what is behind.
  shape.pool_blocks = RoundUp(slabs, kPoolLeast);
  shape.block_stride = static_cast<std::int64_t>(kv.pools.stride_bytes[0] / 2);
  shape.head_stride = static_cast<std::int64_t>(layout.page_bytes() / 2);
  return shape;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FastAttention>> FastAttention::Make(CudaDevice& device,
                                                                   CudaStream& stream,
                                                                   CudaUploads& uploads) {
  if (device.plugin().cudnn == nullptr) {
    return absl::UnimplementedError("no cuDNN: the plug-in looks for none");
  }
  const CudnnLibrary& library = *device.plugin().cudnn();
  if (library.api == nullptr) {
    return absl::UnimplementedError(absl::StrCat("no cuDNN: ", library.why_not));
  }
  std::unique_ptr<FastAttention> made(new FastAttention(device, stream, uploads, library));
  (void)stream.handle();  // The thread's GPU is the stream's from here on.
  if (const int error = library.api->create(&made->handle_); error != 0) {
    made->handle_ = nullptr;
    return absl::UnavailableError(
        absl::StrCat("cuDNN does not start: ", library.api->get_error_string(error)));
  }
  return made;
}

FastAttention::~FastAttention() {
  // A stream that failed has said so.
  (void)stream_.Synchronize();
  for (auto& [shape, plan] : plans_) {
    if (plan.sdpa != nullptr) library_.api->sdpa_free(plan.sdpa);
  }
  if (handle_ != nullptr) library_.api->destroy(handle_);
}

absl::Status FastAttention::Check(const PageLayout& layout, std::int32_t qo_heads) {
  const KvGroup& group = layout.group;
  const Kind kind = {.dtype = group.dtype,
                     .qo_heads = qo_heads,
                     .kv_heads = group.kv_heads,
                     .k_dim = group.k_dim,
                     .v_dim = group.v_dim,
                     .page_tokens = layout.page_tokens,
                     .block_tokens = layout.block_tokens,
                     .window_tokens = group.window_tokens};
  if (const auto known = checked_.find(kind); known != checked_.end()) return known->second;
  absl::Status checked = CheckLayout(layout, qo_heads);
  const bool may = checked.ok();
  if (may) checked = CheckKind(layout, qo_heads);
  if (checked.ok()) {
    LOG_INFO("prefill_attention", {{"by", "cudnn"}, {"cudnn", library_.version}});
  } else if (!may) {
    LOG_INFO("prefill_attention", {{"by", "own"}, {"why", ToStd(checked.message())}});
  } else {
    LOG_WARNING("prefill_attention", {{"by", "own"}, {"why", ToStd(checked.message())}});
  }
  checked_.emplace(kind, checked);
  return checked;
}

bool FastAttention::Run(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                        float* y) {
  if (broken_ || !Suits(kv, qo_heads) || !Check(*kv.layout, qo_heads).ok()) return false;
  return Attend(q, qo_heads, scale, kv, y).ok();
}

const FastAttention::Plan& FastAttention::PlanFor(const CudnnSdpaShape& shape) {
  ++uses_;
  if (const auto known = plans_.find(shape); known != plans_.end()) {
    known->second.used = uses_;
    return known->second;
  }
  if (plans_.size() >= kFastPlansMax) DropAPlan();
  Plan plan;
  plan.used = uses_;
  char why[512] = {};
  (void)stream_.handle();
  plan.sdpa = library_.api->sdpa_make(handle_, shape, &plan.workspace_bytes, why, sizeof(why));
  if (plan.sdpa == nullptr) {
    plan.why_not = why;
  } else if (plan.workspace_bytes > kFastWorkspaceBytesMax) {
    plan.why_not = absl::StrCat("it wants ", plan.workspace_bytes, " bytes of workspace, at most ",
                                kFastWorkspaceBytesMax, " are given");
    library_.api->sdpa_free(plan.sdpa);
    plan.sdpa = nullptr;
  }
  if (!plan.why_not.empty()) {
    LOG_WARNING("prefill_attention_no_plan", {{"sequences", shape.sequences},
                                              {"tokens", shape.q_tokens},
                                              {"blocks", shape.kv_blocks},
                                              {"why", plan.why_not}});
  }
  return plans_.emplace(shape, std::move(plan)).first->second;
}

void FastAttention::DropAPlan() {
  if (!full_) LOG_WARNING("prefill_attention_plans_full", {{"plans", kFastPlansMax}});
  full_ = true;
  (void)stream_.Synchronize();  // It may run. A stream that failed has said so.
  const auto oldest =
      std::ranges::min_element(plans_, {}, [](const auto& known) { return known.second.used; });
  if (oldest->second.sdpa != nullptr) library_.api->sdpa_free(oldest->second.sdpa);
  plans_.erase(oldest);
}

CudnnSdpaData FastAttention::SendTables(const KvBatch& kv, const CudnnSdpaShape& shape) {
  if (kv.batch != 0 && sent_.batch == kv.batch && sent_.layout == kv.layout &&
      sent_.round == uploads_.round()) {
    return sent_.tables;
  }
  // [sequences] each, but for offsets, of which there is one more; each begins aligned to 16.
  const auto sequences = static_cast<std::size_t>(shape.sequences);
  const auto width = static_cast<std::size_t>(shape.kv_blocks);
  const std::size_t lengths = (sequences + 1 + 3) / 4 * 4;
  const std::size_t blocks = (sequences * width + 3) / 4 * 4;
  const CudaUploads::Place place = uploads_.Reserve(sizeof(std::int32_t) * (blocks + 4 * lengths));
  auto* const host = reinterpret_cast<std::int32_t*>(place.host);
  std::fill_n(host, blocks + 4 * lengths, 0);
  std::int32_t* const q_lengths = host + blocks;
  std::int32_t* const kv_lengths = q_lengths + lengths;
  std::int32_t* const q_offsets = kv_lengths + lengths;
  std::int32_t* const o_offsets = q_offsets + lengths;
  const std::int32_t q_row = shape.qo_heads * shape.k_dim;
  const std::int32_t o_row = shape.qo_heads * shape.v_dim;
  std::int32_t rows = 0;
  for (std::size_t i = 0; i < sequences; ++i) {
    if (i < kv.sequences.size()) {
      const SequenceRows& s = kv.sequences[i];
      CHECK_EQ(s.row_begin, rows);
      q_lengths[i] = s.rows;
      kv_lengths[i] = s.position + s.rows;
      rows += s.rows;
      const auto used =
          static_cast<std::size_t>((kv_lengths[i] + shape.block_tokens - 1) / shape.block_tokens);
      CHECK_LE(used, s.slabs.size());
      for (std::size_t b = 0; b < used; ++b) {
        host[i * width + b] = static_cast<std::int32_t>(s.slabs[b].index);
      }
    }
    q_offsets[i + 1] = rows * q_row;
    o_offsets[i + 1] = rows * o_row;
  }
  uploads_.Send(place);
  const auto* const device = reinterpret_cast<const std::int32_t*>(place.device);
  CudnnSdpaData tables;
  tables.blocks = device;
  tables.q_lengths = device + blocks;
  tables.kv_lengths = tables.q_lengths + lengths;
  tables.q_offsets = tables.kv_lengths + lengths;
  tables.o_offsets = tables.q_offsets + lengths;
  sent_ = {.layout = kv.layout, .batch = kv.batch, .round = uploads_.round(), .tables = tables};
  return tables;
}

absl::Status FastAttention::Attend(const float* q, std::int32_t qo_heads, float scale,
                                   const KvBatch& kv, float* y) {
  const CudnnSdpaShape shape = ShapeOf(kv, qo_heads);
  const Plan& plan = PlanFor(shape);
  if (plan.sdpa == nullptr) return absl::UnimplementedError(plan.why_not);
  const CudaKernels& kernels = *device_.plugin().kernels;
  const KvDtype dtype = kv.layout->group.dtype;
  const std::int64_t q_count = RowsOf(kv) * qo_heads * shape.k_dim;
  const std::int64_t o_count = RowsOf(kv) * qo_heads * shape.v_dim;
  const std::size_t q_bytes = (2 * static_cast<std::size_t>(q_count) + 255) / 256 * 256;
  std::byte* const narrow = scratch_.AtLeast(q_bytes + 2 * static_cast<std::size_t>(o_count));
  std::byte* const pool = kv.pools.base[0] + kv.layout->PageOffset(kv.cache_layer, 0, 0);
  CudnnSdpaData data = SendTables(kv, shape);
  data.q = narrow;
  data.k = pool;
  data.v = pool + kv.layout->v_offset();
  data.o = narrow + q_bytes;
  data.workspace = workspace_.AtLeast(std::max<std::size_t>(plan.workspace_bytes, 1));
  data.scale = scale;
  stream_.Expect(kernels.narrow(q, q_count, dtype, narrow, stream_.handle()), "narrow");
  if (const int error = library_.api->sdpa_run(plan.sdpa, data, stream_.handle()); error != 0) {
    broken_ = true;
    const char* const what = library_.api->get_error_string(error);
    LOG_WARNING("prefill_attention", {{"by", "own"}, {"why", what}});
    return absl::UnavailableError(absl::StrCat("cuDNN failed: ", what));
  }
  stream_.Expect(kernels.widen(narrow + q_bytes, o_count, dtype, y, stream_.handle()), "widen");
  return absl::OkStatus();
}

}  // namespace penstock::kernels
