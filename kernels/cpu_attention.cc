// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu_attention.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::kernels {
namespace {

// Query tokens of one task: enough to pay for widening a partition's keys, few enough to share out.
constexpr std::int32_t kTileTokens = 64;

// The partitions that some row of a task can see.
struct Partitions {
  std::int32_t begin;
  std::int32_t end;
};
Partitions VisiblePartitions(const AttentionTask& task) {
  const std::int32_t oldest =
      task.window_tokens > 0 ? std::max(0, task.position - task.window_tokens + 1) : 0;
  return {oldest / kPartitionTokens, (task.position + task.tokens - 1) / kPartitionTokens + 1};
}

}  // namespace

// Fills pages_: for each sequence and KV head the addresses of the pages that some row of the batch
// can see.
void CpuAttention::ListPages(const KvBatch& kv) {
  const PageLayout& layout = *kv.layout;
  const std::int32_t window_tokens = layout.group.window_tokens;
  pages_.clear();
  pages_begin_.assign(1, 0);
  first_positions_.clear();
  for (const SequenceRows& s : kv.sequences) {
    const std::int32_t oldest = window_tokens > 0 ? std::max(0, s.position - window_tokens + 1) : 0;
    const std::int32_t first = oldest / layout.block_tokens;
    const std::int32_t last = (s.position + s.rows - 1) / layout.block_tokens;
    CHECK_GE(first, s.first_block);
    CHECK_LT(static_cast<std::size_t>(last - s.first_block), s.slabs.size());
    first_positions_.push_back(first * layout.block_tokens);
    for (std::int32_t h = 0; h < layout.group.kv_heads; ++h) {
      for (std::int32_t b = first; b <= last; ++b) {
        const SlabRef slab = s.slabs[static_cast<std::size_t>(b - s.first_block)];
        const std::byte* base = kv.pools.At(slab);
        for (std::int32_t p = 0; p < layout.pages_per_block(); ++p) {
          pages_.push_back(base + layout.PageOffset(kv.cache_layer, h, p));
        }
      }
      pages_begin_.push_back(pages_.size());
    }
  }
}

// Fills tasks_: tiles of query tokens against one KV head each, the largest first.
void CpuAttention::ListTasks(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                             float* out) {
  const KvGroup& group = kv.layout->group;
  const std::int32_t heads = qo_heads / group.kv_heads;
  AttentionTask task;
  task.q_token_stride = std::int64_t{qo_heads} * group.k_dim;
  task.out_token_stride = std::int64_t{qo_heads} * group.v_dim;
  task.heads = heads;
  task.window_tokens = group.window_tokens;
  task.scale = scale;
  task.page_tokens = kv.layout->page_tokens;
  task.k_dim = group.k_dim;
  task.v_dim = group.v_dim;
  task.dtype = group.dtype;
  tasks_.clear();
  for (std::size_t s = 0; s < kv.sequences.size(); ++s) {
    const SequenceRows& rows = kv.sequences[s];
    task.first_page_position = first_positions_[s];
    for (std::int32_t begin = 0; begin < rows.rows; begin += kTileTokens) {
      task.tokens = std::min(kTileTokens, rows.rows - begin);
      task.position = rows.position + begin;
      for (std::int32_t h = 0; h < group.kv_heads; ++h) {
        const std::size_t list =
            s * static_cast<std::size_t>(group.kv_heads) + static_cast<std::size_t>(h);
        task.pages = std::span(pages_).subspan(pages_begin_[list],
                                               pages_begin_[list + 1] - pages_begin_[list]);
        const std::int64_t row = rows.row_begin + begin;
        task.q = q + row * task.q_token_stride + std::int64_t{h} * heads * group.k_dim;
        task.out = out + row * task.out_token_stride + std::int64_t{h} * heads * group.v_dim;
        tasks_.push_back(task);
      }
    }
  }
  const auto pairs = [](const AttentionTask& t) {
    return std::int64_t{t.tokens} * (t.position + t.tokens);
  };
  std::stable_sort(
      tasks_.begin(), tasks_.end(),
      [&pairs](const AttentionTask& a, const AttentionTask& b) { return pairs(a) > pairs(b); });
}

// Few tasks over long contexts: every partition is an item of its own, merged afterwards in
// ascending order.
void CpuAttention::RunSplit(std::size_t scratch_bytes) {
  struct Item {
    std::size_t task;
    std::int32_t partition;
    std::size_t state;
  };
  std::vector<Item> items;
  std::size_t floats = 0;
  for (std::size_t t = 0; t < tasks_.size(); ++t) {
    const Partitions visible = VisiblePartitions(tasks_[t]);
    for (std::int32_t p = visible.begin; p < visible.end; ++p) {
      items.push_back({t, p, floats});
      floats +=
          static_cast<std::size_t>(tasks_[t].tokens * tasks_[t].heads * (2 + tasks_[t].v_dim));
    }
  }
  states_.resize(floats);
  workers_.ForRuns(static_cast<std::int64_t>(items.size()), [&](int worker, std::int64_t begin,
                                                                std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Item& item = items[static_cast<std::size_t>(i)];
      AttendPartition(tasks_[item.task], item.partition, states_.data() + item.state,
                      workers_.scratch(worker).Get(scratch_bytes));
    }
  });
  std::size_t first = 0;
  for (std::size_t t = 0; t < tasks_.size(); ++t) {
    const Partitions visible = VisiblePartitions(tasks_[t]);
    MergePartitions(tasks_[t], states_.data() + items[first].state, visible.end - visible.begin);
    first += static_cast<std::size_t>(visible.end - visible.begin);
  }
}

void CpuAttention::Run(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                       float* out) {
  const KvGroup& group = kv.layout->group;
  CHECK_EQ(qo_heads % group.kv_heads, 0);
  ListPages(kv);
  ListTasks(q, qo_heads, scale, kv, out);
  std::int32_t tokens_max = 0;
  std::int64_t partitions = 0;
  for (const AttentionTask& task : tasks_) {
    tokens_max = std::max(tokens_max, task.tokens);
    const Partitions visible = VisiblePartitions(task);
    partitions += visible.end - visible.begin;
  }
  const auto tasks = static_cast<std::int64_t>(tasks_.size());
  const std::size_t scratch_bytes =
      AttentionScratchBytes(tokens_max, qo_heads / group.kv_heads, group.k_dim, group.v_dim);
  const bool uneven = tasks < 4 * workers_.threads() && partitions > tasks;
  if (workers_.threads() > 1 && tokens_max == 1 && uneven) {
    RunSplit(scratch_bytes);
    return;
  }
  workers_.ForItems(tasks, [&](int worker, std::int64_t i) {
    Attend(tasks_[static_cast<std::size_t>(i)], workers_.scratch(worker).Get(scratch_bytes));
  });
}

}  // namespace penstock::kernels
