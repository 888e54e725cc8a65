// SPDX-License-Identifier: Apache-2.0
#include "engine/memory_plan.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/kv_pool.h"
#include "kernels/cuda_graphs.h"
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
  const auto states = static_cast<std::size_t>(context / 256 + 1) * 16 *
                      static_cast<std::size_t>(a.kv_heads) *
                      static_cast<std::size_t>(request.sequences);
  return kChunks + states * static_cast<std::size_t>(a.head_dim + 2) * sizeof(float);
}

// What comes of every sequence's draw there, and what that takes.
std::size_t DrawBytes(const model::Architecture& a, const MemoryRequest& request) {
  return kernels::DrawBytesMax(a.vocab, request.sequences);
}

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

// The largest context up to the model's whose KV fits in `bytes`; at least one chunk.
std::int32_t ContextThatFits(const model::Architecture& architecture, const MemoryRequest& request,
                             std::size_t bytes) {
  std::int32_t low = std::min(request.chunk_tokens, architecture.context_tokens_max);
  std::int32_t high = architecture.context_tokens_max;
  while (low < high) {
    const std::int32_t middle = low + (high - low + 1) / 2;
    if (SequenceKvBytes(architecture, request, middle) <= bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Bytes of a block of each group, as all shards together have it and as one has it.
struct SlabSizes {
  std::size_t whole = 0;
  std::size_t own = 0;
};
// None where one shard has all.
std::vector<SlabSizes> SizesOf(const model::Architecture& whole, const model::Architecture& own,
                               const MemoryRequest& request) {
  if (own.kv_heads == whole.kv_heads) return {};
  const KvSpec all = whole.MakeKvSpec(request.kv_dtype);
  const KvSpec part = own.MakeKvSpec(request.kv_dtype);
  std::vector<SlabSizes> sizes;
  for (std::size_t g = 0; g < all.groups.size(); ++g) {
    const auto of_all = PageLayout::Make(all.groups[g], request.block_tokens, request.page_tokens);
    const auto of_own = PageLayout::Make(part.groups[g], request.block_tokens, request.page_tokens);
    if (!of_all.ok() || !of_own.ok()) continue;  // The pool will say what is wrong.
    sizes.push_back({.whole = of_all->slab_bytes(), .own = of_own->slab_bytes()});
  }
  return sizes;
}

// What one shard has of a pool: whichever group fills it.
std::size_t OwnBytes(std::span<const SlabSizes> sizes, std::size_t pool_bytes) {
  std::size_t own = 0;
  for (const SlabSizes& size : sizes) own = std::max(own, pool_bytes / size.whole * size.own);
  return sizes.empty() ? pool_bytes : own;
}

// The pool of which one shard has no more than `own_bytes`, whichever group fills it.
std::size_t PoolBytes(std::span<const SlabSizes> sizes, std::size_t own_bytes) {
  std::size_t pool = std::numeric_limits<std::size_t>::max();
  for (const SlabSizes& size : sizes) pool = std::min(pool, own_bytes / size.own * size.whole);
  return sizes.empty() ? own_bytes : pool;
}

std::string OfShards(const TensorShard& shard) {
  return shard.shards == 1 ? "" : absl::StrCat("each of ", shard.shards, " shards: ");
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

absl::StatusOr<MemoryPlan> PlanMemory(const model::Architecture& whole, const TensorShard& shard,
                                      std::size_t weights_bytes, const MemoryRequest& request,
                                      std::size_t available_bytes) {
  RETURN_IF_ERROR(CheckCounts(whole, request));
  const model::Architecture architecture = ArchitectureOf(whole, shard);
  const std::vector<SlabSizes> sizes = SizesOf(whole, architecture, request);
  MemoryPlan plan;
  plan.weights_bytes = weights_bytes;
  plan.scratch_bytes = ScratchBytes(architecture, shard.sums, request) + kProcessBytes;
  if (request.device_memory) {
    plan.scratch_bytes +=
        AttentionBytes(architecture, request) + DrawBytes(architecture, request) + kGraphsBytes;
  }
  const std::size_t fixed = plan.weights_bytes + plan.scratch_bytes;
  const KvSpec spec = architecture.MakeKvSpec(request.kv_dtype);
  const std::size_t groups = request.device_memory ? spec.groups.size() : 1;
  const std::size_t left = (available_bytes > fixed ? available_bytes - fixed : 0) / groups;
  const std::size_t modest = std::min(kModestPoolBytes, left / 2);

  plan.context_tokens = request.context_tokens;
  if (plan.context_tokens == 0) {
    plan.context_tokens = request.kv_bytes > 0 ? architecture.context_tokens_max
                                               : ContextThatFits(architecture, request, modest);
  }
  plan.pool_bytes = request.kv_bytes;
  plan.kv_bytes = OwnBytes(sizes, request.kv_bytes);
  if (request.kv_bytes == 0) {
    // Two blocks more than the tokens fill: copies of shared tails, and room to move.
    const auto need = [&](std::int32_t tokens) {
      return SequenceKvBytes(architecture, request, tokens + 2 * request.block_tokens);
    };
    const std::size_t first = need(plan.context_tokens);
    // The others share the prompt's whole blocks. Where all of them together would be immodest, the
    // engine lets some wait.
    const std::int32_t own = std::max(plan.context_tokens - request.shared_tokens, 1);
    const std::size_t others = static_cast<std::size_t>(request.sequences - 1) * need(own);
    plan.kv_bytes = first + std::min(others, modest > first ? modest - first : 0);
    plan.pool_bytes = PoolBytes(sizes, plan.kv_bytes);
  }
  if (plan.kv_bytes > left) {
    return absl::ResourceExhaustedError(absl::StrCat(
        OfShards(shard), "this needs ", Mebibytes(plan.weights_bytes), " for weights, ",
        Mebibytes(plan.kv_bytes * groups), " for KV and ", Mebibytes(plan.scratch_bytes),
        " beside, and ", Mebibytes(available_bytes),
        request.device_memory ? " of the GPU's memory is free" : " of memory is available",
        "; ask for less with --context-tokens or --kv-bytes"));
  }
  return plan;
}

}  // namespace penstock::engine
