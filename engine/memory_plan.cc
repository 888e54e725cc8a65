// SPDX-License-Identifier: Apache-2.0
#include "engine/memory_plan.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/group_shard.h"
#include "engine/kv_pool.h"
#include "engine/slab_encoder.h"
#include "kernels/cuda_graphs.h"
#include "kernels/fast_attention.h"
#include "kernels/fast_products.h"
#include "kernels/sampling_cuda.h"

namespace penstock::engine {
namespace {

constexpr std::size_t kUnknown = std::numeric_limits<std::size_t>::max();
constexpr std::size_t kModestPoolBytes = std::size_t{1} << 30;
// On a GPU: room for what its driver keeps of the kernels' arguments in the graphs of
// kernels/cuda_graphs.h, 1 MiB each.
constexpr std::size_t kGraphsBytes = kernels::CudaGraphs::kGraphsMax << 20;
// Code, tokenizer, thread stacks and the kernels' own scratch.
constexpr std::size_t kProcessBytes = std::size_t{64} << 20;

// The number that follows `key` in a file of the kernel's; kUnknown without one.
std::size_t ReadNumber(const std::string& path, std::string_view key) {
  const absl::StatusOr<std::string> text = ReadFile(path, std::size_t{1} << 16);
  if (!text.ok()) return kUnknown;
  std::size_t at = text->find(key);
  if (at == std::string::npos) return kUnknown;
  at = text->find_first_not_of(" \t", at + key.size());
  if (at == std::string::npos) return kUnknown;
  std::size_t value = 0;
  const char* begin = text->data() + at;
  const auto [end, error] = std::from_chars(begin, text->data() + text->size(), value);
  return error == std::errc() && end != begin ? value : kUnknown;
}

std::string Mebibytes(std::size_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

std::size_t ScratchBytes(const model::Architecture& a, std::int32_t sums,
                         const MemoryRequest& request) {
  const std::int32_t rows = std::max(request.chunk_tokens, request.sequences);
  const std::int32_t logit_rows = std::max(request.logit_rows, request.sequences);
  const auto size = [](std::int32_t n) { return static_cast<std::size_t>(n); };
  const std::size_t q_cols = size(a.qo_heads) * size(a.head_dim);
  const std::size_t kv_cols = size(a.kv_heads) * size(a.head_dim);
  // An activation is kept as float, as int8 and with a scale and a sum per 32: below 6 bytes each.
  std::size_t row = 14 * size(a.d_model) + 10 * q_cols + 8 * kv_cols + 6 * size(a.ffn_dim);
  // Gate and up, and attention before it is quantized.
  if (request.device_memory) row += 8 * size(a.ffn_dim) + 4 * q_cols;
  // At most two places for all partial sums, and the columns of one of them.
  if (sums > 1) {
    row += 8 * size(sums) * size(a.d_model) + 6 * std::max(q_cols, size(a.ffn_dim));
  }
  return size(rows) * row + size(logit_rows) * size(a.vocab) * sizeof(float);
}

// What attention keeps on a device of its own: kernels/attention_cuda.h's bound of what long chunks
// take, and the states of up to 16 rows of every sequence, one per partition of 256 positions.
std::size_t AttentionBytes(const model::Architecture& a, const MemoryRequest& request) {
  constexpr std::size_t kChunks = std::size_t{256} << 20;
  const std::int32_t context =
      request.context_tokens > 0 ? request.context_tokens : a.context_tokens_max;
  const auto partitions = static_cast<std::size_t>(context / 256 + 1);
  // A graph's step rounds them up.
  const std::size_t states =
      std::max(16 * static_cast<std::size_t>(a.kv_heads) * partitions,
               static_cast<std::size_t>(a.qo_heads) * std::bit_ceil(partitions)) *
      static_cast<std::size_t>(request.sequences);
  return kChunks + states * static_cast<std::size_t>(a.head_dim + 2) * sizeof(float);
}

// The same in fast numerics, beside the above.
std::size_t FastAttentionBytes(const model::Architecture& a, const MemoryRequest& request) {
  return kernels::FastAttentionBytesMax(std::max(request.chunk_tokens, request.sequences),
                                        a.qo_heads, a.head_dim);
}

// What comes of every sequence's draw there, and what that takes.
std::size_t DrawBytes(const model::Architecture& a, const MemoryRequest& request) {
  return kernels::DrawBytesMax(a.vocab, request.sequences);
}
// Blocks on their way to the host, or from there, encoded.
std::size_t EncoderBytes(const model::Architecture& a, const MemoryRequest& request) {
  std::vector<PageLayout> layouts;
  for (const KvGroup& group : a.MakeKvSpec(request.kv_dtype).groups) {
    const auto layout = PageLayout::Make(group, request.block_tokens, request.page_tokens);
    if (layout.ok()) layouts.push_back(*layout);  // Of others the pool will say what is wrong.
  }
  return SlabEncoder::RoomBytes(layouts);
}
std::size_t FastProductBytes(const model::Architecture& a, const MemoryRequest& request) {
  return kernels::FastProducts::BytesMax(std::max(request.chunk_tokens, request.sequences),
                                         std::max({a.d_model, a.ffn_dim, a.qo_heads * a.head_dim}));
}

// Of NCCL, which shards exchange by: up to 8 channels, each with buffers of 4 MiB and less to and
// from its neighbours.
constexpr std::size_t kExchangeBytes = std::size_t{8} * (16 << 20);

absl::Status CheckCounts(const model::Architecture& architecture, const MemoryRequest& request) {
  if (request.context_tokens < 0 || request.context_tokens > architecture.context_tokens_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("context-tokens is ", request.context_tokens, ", must be 1 to ",
                     architecture.context_tokens_max, ", what the model was made for"));
  }
  if (request.chunk_tokens < 1 || request.chunk_tokens > 65536) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk-tokens is ", request.chunk_tokens, ", must be 1 to 65536"));
  }
  if (request.sequences < 1 || request.sequences > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("the number of sequences is ", request.sequences, ", must be 1 to 1024"));
  }
  return absl::OkStatus();
}

// Bytes of a block of each group, as the whole model has it and as one part does.
struct SlabSizes {
  std::size_t whole = 0;
  std::size_t own = 0;
};
// None where one part has all.
absl::StatusOr<std::vector<SlabSizes>> SizesOf(const model::Architecture& whole,
                                               const ModelPart& part,
                                               const MemoryRequest& request) {
  std::vector<SlabSizes> sizes;
  if (part.shard.shards == 1 && part.stage.stages == 1) return sizes;
  const KvSpec spec = whole.MakeKvSpec(request.kv_dtype);
  for (std::int32_t g = 0; g < static_cast<std::int32_t>(spec.groups.size()); ++g) {
    ASSIGN_OR_RETURN(const std::vector<ShardRange> layers,
                     CacheLayersOf(spec, g, part.stage.stages));
    const auto layout = PageLayout::Make(spec.groups[static_cast<std::size_t>(g)],
                                         request.block_tokens, request.page_tokens);
    if (!layout.ok()) continue;  // The pool will say what is wrong.
    const GroupShard own(*layout, part.shard, layers[static_cast<std::size_t>(part.stage.index)]);
    sizes.push_back({.whole = layout->slab_bytes(), .own = own.slab_bytes});
  }
  return sizes;
}

// What one part has of a pool: whichever group fills it.
std::size_t OwnBytes(std::span<const SlabSizes> sizes, std::size_t pool_bytes) {
  std::size_t own = 0;
  for (const SlabSizes& size : sizes) own = std::max(own, pool_bytes / size.whole * size.own);
  return sizes.empty() ? pool_bytes : own;
}

// The largest context up to the model's of whose KV the part has at most `bytes`; at least one
// chunk.
std::int32_t ContextThatFits(const model::Architecture& whole, std::span<const SlabSizes> sizes,
                             const MemoryRequest& request, std::size_t bytes) {
  std::int32_t low = std::min(request.chunk_tokens, whole.context_tokens_max);
  std::int32_t high = whole.context_tokens_max;
  while (low < high) {
    const std::int32_t middle = low + (high - low + 1) / 2;
    if (OwnBytes(sizes, SequenceKvBytes(whole, request, middle)) <= bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Groups of the pool that take memory on the part's device.
std::size_t GroupsOf(const model::Architecture& own, const MemoryRequest& request) {
  return own.MakeKvSpec(request.kv_dtype).groups.size();
}

// The pool, in whole slabs: for one context, and the rest of the other sequences' where that is
// modest, which is up to `modest` on the part's device.
std::size_t PoolBytes(const model::Architecture& whole, std::span<const SlabSizes> sizes,
                      const MemoryRequest& request, std::int32_t context_tokens,
                      std::size_t modest) {
  // Two blocks more than the tokens fill: copies of shared tails, and room to move.
  const auto need = [&](std::int32_t tokens) {
    return SequenceKvBytes(whole, request, tokens + 2 * request.block_tokens);
  };
  const std::size_t first = need(context_tokens);
  // The others share the prompt's whole blocks. Where all of them together would be immodest, the
  // engine lets some wait.
  const std::int32_t own = std::max(context_tokens - request.shared_tokens, 1);
  const std::size_t others = static_cast<std::size_t>(request.sequences - 1) * need(own);
  const std::size_t first_here = OwnBytes(sizes, first);
  if (first_here >= modest || others == 0) return first;
  // As much of the whole as `modest` is of what the part has.
  const double part = static_cast<double>(first_here) / static_cast<double>(first);
  const auto room = static_cast<std::size_t>(static_cast<double>(modest - first_here) / part);
  return first + std::min(others, room);
}

std::string OfPart(const ModelPart& part) {
  std::string of;
  if (part.stage.stages > 1) {
    absl::StrAppend(&of, "stage ", part.stage.index, " of ", part.stage.stages, ": ");
  }
  if (part.shard.shards > 1) absl::StrAppend(&of, "each of ", part.shard.shards, " shards: ");
  return of;
}

}  // namespace

std::size_t SequenceKvBytes(const model::Architecture& architecture, const MemoryRequest& request,
                            std::int32_t tokens) {
  std::size_t bytes = 0;
  for (const KvGroup& group : architecture.MakeKvSpec(request.kv_dtype).groups) {
    std::int64_t held = tokens;
    if (group.window_tokens > 0) {
      held = std::min<std::int64_t>(held, std::int64_t{group.window_tokens} + request.chunk_tokens);
    }
    const absl::StatusOr<PageLayout> layout =
        PageLayout::Make(group, request.block_tokens, request.page_tokens);
    if (!layout.ok()) continue;  // The pool will say what is wrong.
    // A window may begin and end inside a block.
    const std::int64_t blocks =
        (held + request.block_tokens - 1) / request.block_tokens + (held < tokens ? 1 : 0);
    bytes += static_cast<std::size_t>(blocks) * layout->slab_bytes();
  }
  return bytes;
}

std::size_t AvailableBytes() {
  std::size_t available = ReadNumber("/proc/meminfo", "MemAvailable:");
  if (available != kUnknown) available *= 1024;
  const std::size_t limit = ReadNumber("/sys/fs/cgroup/memory.max", "");
  const std::size_t current = ReadNumber("/sys/fs/cgroup/memory.current", "");
  if (limit != kUnknown && current != kUnknown) {
    // Clean file pages count as used there, but give way.
    std::size_t reclaimable = ReadNumber("/sys/fs/cgroup/memory.stat", "inactive_file");
    if (reclaimable == kUnknown || reclaimable > current) reclaimable = 0;
    const std::size_t used = current - reclaimable;
    available = std::min(available, limit > used ? limit - used : 0);
  }
  return available;
}

absl::StatusOr<MemoryPlan> PlanMemory(const model::Architecture& whole, const ModelPart& part,
                                      std::size_t weights_bytes, const MemoryRequest& request,
                                      std::size_t available_bytes) {
  RETURN_IF_ERROR(CheckCounts(whole, request));
  const model::Architecture architecture = ArchitectureOf(whole, part);
  ASSIGN_OR_RETURN(const std::vector<SlabSizes> sizes, SizesOf(whole, part, request));
  MemoryPlan plan;
  plan.weights_bytes = weights_bytes;
  plan.scratch_bytes = ScratchBytes(architecture, part.shard.sums, request) + kProcessBytes;
  if (request.device_memory) {
    plan.scratch_bytes += AttentionBytes(architecture, request);
    if (request.fast_products) plan.scratch_bytes += FastAttentionBytes(architecture, request);
    if (request.fast_products) plan.scratch_bytes += FastProductBytes(architecture, request);
    // Tokens are drawn, and steps are graphs, where the whole model is.
    const bool is_whole = part.stage.stages == 1 && part.shard.shards == 1;
    if (is_whole) {
      plan.scratch_bytes +=
          DrawBytes(architecture, request) + kGraphsBytes + EncoderBytes(architecture, request);
    }
    if (part.shard.shards > 1) plan.scratch_bytes += kExchangeBytes;
  }
  plan.links_bytes = request.links_bytes;
  const std::size_t fixed = plan.weights_bytes + plan.scratch_bytes + plan.links_bytes;
  const std::size_t groups = request.device_memory ? GroupsOf(architecture, request) : 1;
  const std::size_t left = (available_bytes > fixed ? available_bytes - fixed : 0) / groups;
  const std::size_t modest = std::min(kModestPoolBytes, left / 2);

  plan.context_tokens = request.context_tokens;
  if (plan.context_tokens == 0) {
    plan.context_tokens = request.kv_bytes > 0 ? whole.context_tokens_max
                                               : ContextThatFits(whole, sizes, request, modest);
  }
  plan.pool_bytes = request.kv_bytes > 0
                        ? request.kv_bytes
                        : PoolBytes(whole, sizes, request, plan.context_tokens, modest);
  plan.kv_bytes = OwnBytes(sizes, plan.pool_bytes);
  if (plan.kv_bytes > left) {
    return absl::ResourceExhaustedError(absl::StrCat(
        OfPart(part), "this needs ", Mebibytes(plan.weights_bytes), " for weights, ",
        Mebibytes(plan.kv_bytes * groups), " for KV and ", Mebibytes(plan.scratch_bytes),
        " beside, ",
        plan.links_bytes > 0 ? absl::StrCat(Mebibytes(plan.links_bytes), " for links, ") : "",
        "and ", Mebibytes(available_bytes),
        request.device_memory ? " of the GPU's memory is free" : " of memory is available",
        "; ask for less with --context-tokens or --kv-bytes"));
  }
  return plan;
}

absl::StatusOr<std::vector<MemoryPlan>> PlanStages(const model::Architecture& whole,
                                                   std::span<const StageWeights> parts,
                                                   const MemoryRequest& request,
                                                   std::size_t available_bytes) {
  const auto plan_all = [&](const MemoryRequest& asked) -> absl::StatusOr<std::vector<MemoryPlan>> {
    std::vector<MemoryPlan> plans;
    for (const StageWeights& part : parts) {
      ASSIGN_OR_RETURN(plans.emplace_back(),
                       PlanMemory(whole, part.part, part.bytes, asked, available_bytes));
    }
    return plans;
  };
  ASSIGN_OR_RETURN(std::vector<MemoryPlan> plans, plan_all(request));
  if (plans.size() == 1) return plans;
  MemoryRequest all = request;
  all.context_tokens = std::ranges::min(plans, {}, &MemoryPlan::context_tokens).context_tokens;
  all.kv_bytes = std::ranges::min(plans, {}, &MemoryPlan::pool_bytes).pool_bytes;
  return plan_all(all);
}

}  // namespace penstock::engine
