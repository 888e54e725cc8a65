// SPDX-License-Identifier: Apache-2.0
// Ops on the CPU: each call is one parallel region (or two) over the device's threads; the work
// inside is the kernels of this folder. How work is cut never shows in the bits: those are fixed
// per output element.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "device/cpu_device.h"
#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/ops.h"
#include "kernels/sincos.h"

namespace penstock::kernels {
namespace {

// Memory of one worker, grown to what the largest call needed.
class Scratch {
 public:
  std::span<std::byte> Get(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{64})));
      size_ = bytes;
    }
    return {memory_.get(), size_};
  }
  float* Floats(std::size_t n) { return reinterpret_cast<float*>(Get(n * sizeof(float)).data()); }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t size_ = 0;
};

// cos and sin of every row of the batch at hand, kept from layer to layer.
struct RopeRows {
  const float* frequencies = nullptr;  // Identity of the table.
  float magnitude = 0;
  std::vector<std::int32_t> positions;
  std::vector<float> cos, sin;  // [rows, pairs]
};

// Below this many rows a row-wise operation is faster on one thread than the fork and join.
constexpr std::int32_t kParallelRowsMin = 4;
// Output columns computed between two epilogues: a multiple of kPanelRows and kQuantBlock.
constexpr std::int32_t kTilePanels = 4;
// Query tokens of one attention task: enough to pay for widening a partition's keys, few enough to
// share out.
constexpr std::int32_t kAttentionTileTokens = 64;

std::int32_t Panels(const PackedMatrix& m) { return (m.rows + kPanelRows - 1) / kPanelRows; }

class CpuOps final : public Ops {
 public:
  explicit CpuOps(CpuDevice& device)
      : pool_(device.threads()), scratch_(static_cast<std::size_t>(device.threads().threads())) {}

  std::string numerics() const override { return "cpu-1"; }

  void Embed(const PackedMatrix& table, std::span<const TokenId> tokens, float scale,
             float* x) override {
    ForRows(static_cast<std::int32_t>(tokens.size()), [&](int, std::int32_t r) {
      const std::span<float> row(x + std::int64_t{r} * table.cols,
                                 static_cast<std::size_t>(table.cols));
      UnpackRow(table, tokens[static_cast<std::size_t>(r)], row);
      if (scale != 1) {
        for (float& value : row) value *= scale;
      }
    });
  }

  void RmsNorm(const float* x, const float* w, float eps, std::int32_t rows,
               std::span<const std::int32_t> row_index, const Activations& out) override {
    if (!row_index.empty()) CHECK_EQ(static_cast<std::int32_t>(row_index.size()), rows);
    ForRows(rows, [&](int worker, std::int32_t r) {
      const std::int64_t from = row_index.empty() ? r : row_index[static_cast<std::size_t>(r)];
      const Activations to = out.From(r);
      float* y = to.f32 != nullptr ? to.f32
                                   : scratch_of(worker).Floats(static_cast<std::size_t>(out.cols));
      kernels::RmsNorm(x + from * out.cols, w, out.cols, eps, y);
      if (to.wants_int8()) QuantizeRow(y, out.cols, to.q, to.scale, to.sum);
    });
  }

  void RmsNormAdd(const float* y, const float* w, float eps, std::int32_t rows, std::int32_t cols,
                  float* x) override {
    ForRows(rows, [&](int worker, std::int32_t r) {
      float* normed = scratch_of(worker).Floats(static_cast<std::size_t>(cols));
      kernels::RmsNorm(y + std::int64_t{r} * cols, w, cols, eps, normed);
      Add(normed, cols, x + std::int64_t{r} * cols);
    });
  }

  void Linear(const Activations& x, std::int32_t rows,
              std::span<const LinearOutput> outputs) override;
  void GatedLinear(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                   const PackedMatrix& up, Activation activation, const Activations& out) override;
  void PrepareAndStore(const PrepareQkv& qkv, const KvBatch& kv) override;
  void Attention(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                 const Activations& out) override;

 private:
  // A piece of attention: query tokens [token_begin, token_end) of a sequence against one KV head.
  struct Piece {
    std::size_t sequence;
    std::int32_t kv_head;
    std::int32_t token_begin;
    std::int32_t token_end;
    std::int64_t keys;  // Query-key pairs, to start with the largest.
  };

  Scratch& scratch_of(int worker) { return scratch_[static_cast<std::size_t>(worker)]; }
  template <typename F>
  void ForRows(std::int32_t rows, F row);
  template <typename F>
  void ForItems(std::int64_t items, F item);
  void LinearTile(const LinearOutput& output, const Activations& x, std::int32_t rows,
                  std::int32_t panel_begin, std::int32_t panel_end, int worker);
  const RopeRows& RowsFor(const RopeTable& table, const KvBatch& kv);
  void ListPages(const KvBatch& kv, std::int32_t window_tokens);
  AttentionTask MakeTask(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                         const Piece& piece, float* out) const;
  void ListPieces(const KvBatch& kv, std::int32_t group_heads);
  void RunSplit(std::span<const AttentionTask> tasks, std::size_t scratch_bytes);

  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // One per worker.
  std::vector<RopeRows> ropes_;
  // Of the Attention call at hand, kept to reuse their memory.
  std::vector<const std::byte*> pages_;   // Per sequence and KV head, one run of page addresses.
  std::vector<std::size_t> pages_begin_;  // [sequences * kv_heads + 1]
  std::vector<std::int32_t> first_positions_;  // [sequences]: position of the first listed page.
  std::vector<Piece> pieces_;
  std::vector<float> attention_out_;
  std::vector<float> states_;
};

// Calls row(worker, r) for every row.
template <typename F>
void CpuOps::ForRows(std::int32_t rows, F row) {
  if (rows < kParallelRowsMin || pool_.threads() == 1) {
    for (std::int32_t r = 0; r < rows; ++r) row(0, r);
    return;
  }
  pool_.Run([&](int worker) {
    const Range range = SplitRange(rows, 1, worker, pool_.threads());
    for (std::int64_t r = range.begin; r < range.end; ++r)
      row(worker, static_cast<std::int32_t>(r));
  });
}

// Calls item(worker, i) for every item; workers take the next one when they are done, so that
// uneven items even out.
template <typename F>
void CpuOps::ForItems(std::int64_t items, F item) {
  std::atomic<std::int64_t> next{0};
  pool_.Run([&](int worker) {
    for (std::int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < items;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      item(worker, i);
    }
  });
}

void CpuOps::LinearTile(const LinearOutput& output, const Activations& x, std::int32_t rows,
                        std::int32_t panel_begin, std::int32_t panel_end, int worker) {
  const PackedMatrix& w = *output.matrix;
  const std::int64_t stride = w.rows;
  if (output.bias == nullptr && !output.add) {
    MultiplyPanels(w, x, rows, panel_begin, panel_end, output.y, stride);
    return;
  }
  const std::int32_t first = panel_begin * kPanelRows;
  const std::int32_t cols = std::min(panel_end * kPanelRows, w.rows) - first;
  // The product lands at columns [first, first + cols) of rows that are `stride` apart; the tile
  // has its own stride.
  float* tile =
      scratch_of(worker).Floats(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  MultiplyPanels(w, x, rows, panel_begin, panel_end, tile - first, cols);
  for (std::int32_t r = 0; r < rows; ++r) {
    float* product = tile + std::int64_t{r} * cols;
    float* y = output.y + r * stride + first;
    if (output.bias != nullptr) Add(output.bias + first, cols, product);
    if (output.add) {
      Add(product, cols, y);
    } else {
      std::memcpy(y, product, static_cast<std::size_t>(cols) * sizeof(float));
    }
  }
}

void CpuOps::Linear(const Activations& x, std::int32_t rows,
                    std::span<const LinearOutput> outputs) {
  if (rows == 0) return;
  std::int64_t panels = 0;
  for (const LinearOutput& output : outputs) {
    CHECK_EQ(output.matrix->cols, x.cols);
    panels += Panels(*output.matrix);
  }
  // One row streams the weights once: each worker takes one contiguous share. Many rows are
  // compute: small shares.
  const std::int64_t share =
      rows <= 4 ? (panels + pool_.threads() - 1) / pool_.threads() : std::int64_t{kTilePanels};
  const std::int64_t shares = (panels + share - 1) / share;
  ForItems(shares, [&](int worker, std::int64_t i) {
    std::int64_t begin = i * share;
    std::int64_t end = std::min(begin + share, panels);
    for (const LinearOutput& output : outputs) {
      const std::int64_t count = Panels(*output.matrix);
      if (begin < count && begin < end) {
        LinearTile(output, x, rows, static_cast<std::int32_t>(begin),
                   static_cast<std::int32_t>(std::min(end, count)), worker);
      }
      begin = std::max<std::int64_t>(begin - count, 0);
      end -= count;
      if (end <= 0) break;
    }
  });
}

void CpuOps::GatedLinear(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                         const PackedMatrix& up, Activation activation, const Activations& out) {
  CHECK_EQ(gate.rows, up.rows);
  CHECK_EQ(gate.rows, out.cols);
  CHECK_EQ(gate.cols, x.cols);
  if (rows == 0) return;
  const std::int64_t panels = Panels(gate);
  const std::int64_t even = (panels / 2 + pool_.threads() - 1) / pool_.threads() * 2;
  const std::int64_t share = rows <= 4 ? std::max<std::int64_t>(even, kTilePanels) : kTilePanels;
  ForItems((panels + share - 1) / share, [&](int worker, std::int64_t i) {
    const auto begin = static_cast<std::int32_t>(i * share);
    const auto end = static_cast<std::int32_t>(std::min((i + 1) * share, panels));
    const std::int32_t first = begin * kPanelRows;
    const std::int32_t cols = std::min(end * kPanelRows, gate.rows) - first;
    const std::size_t tile_floats = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    float* gated = scratch_of(worker).Floats(2 * tile_floats);
    float* upper = gated + tile_floats;
    MultiplyPanels(gate, x, rows, begin, end, gated - first, cols);
    MultiplyPanels(up, x, rows, begin, end, upper - first, cols);
    GatedActivation(activation, upper, static_cast<std::int32_t>(tile_floats), gated);
    for (std::int32_t r = 0; r < rows; ++r) {
      const float* row = gated + std::int64_t{r} * cols;
      const Activations to = out.From(r);
      if (to.f32 != nullptr)
        std::memcpy(to.f32 + first, row, static_cast<std::size_t>(cols) * sizeof(float));
      if (to.wants_int8()) {
        const std::int32_t block = first / kQuantBlock;
        QuantizeRow(row, cols, to.q + first, to.scale + block, to.sum + block);
      }
    }
  });
}

const RopeRows& CpuOps::RowsFor(const RopeTable& table, const KvBatch& kv) {
  std::vector<std::int32_t> positions;
  for (const SequenceRows& s : kv.sequences) {
    for (std::int32_t i = 0; i < s.rows; ++i) positions.push_back(s.position + i);
  }
  RopeRows* rows = nullptr;
  for (RopeRows& known : ropes_) {
    if (known.frequencies == table.inverse_frequency.data() && known.magnitude == table.magnitude)
      rows = &known;
  }
  if (rows == nullptr) {
    rows = &ropes_.emplace_back();
    rows->frequencies = table.inverse_frequency.data();
    rows->magnitude = table.magnitude;
  } else if (rows->positions == positions) {
    return *rows;
  }
  const std::size_t pairs = table.inverse_frequency.size();
  rows->cos.resize(positions.size() * pairs);
  rows->sin.resize(positions.size() * pairs);
  ForRows(static_cast<std::int32_t>(positions.size()), [&](int, std::int32_t r) {
    const auto row = static_cast<std::size_t>(r);
    for (std::size_t i = 0; i < pairs; ++i) {
      const CosSin turn =
          CosSinOf(positions[row] * static_cast<double>(table.inverse_frequency[i]));
      rows->cos[row * pairs + i] = turn.cos * table.magnitude;
      rows->sin[row * pairs + i] = turn.sin * table.magnitude;
    }
  });
  rows->positions = std::move(positions);
  return *rows;
}

void CpuOps::PrepareAndStore(const PrepareQkv& qkv, const KvBatch& kv) {
  const KvGroup& group = kv.layout->group;
  const RopeRows* rope = qkv.rope != nullptr ? &RowsFor(*qkv.rope, kv) : nullptr;
  const std::size_t pairs = rope != nullptr ? qkv.rope->inverse_frequency.size() : 0;
  std::int32_t row_begin = 0;  // In the batch's order; rope rows are listed in it.
  for (const SequenceRows& s : kv.sequences) {
    ForRows(s.rows, [&](int, std::int32_t i) {
      const std::int64_t row = s.row_begin + i;
      float* q = qkv.q + row * qkv.qo_heads * group.k_dim;
      float* k = qkv.k + row * group.kv_heads * group.k_dim;
      const float* v = qkv.v + row * group.kv_heads * group.v_dim;
      const std::size_t turn = static_cast<std::size_t>(row_begin + i) * pairs;
      for (std::int32_t h = 0; h < qkv.qo_heads + group.kv_heads; ++h) {
        const bool is_q = h < qkv.qo_heads;
        float* head = is_q ? q + h * group.k_dim : k + (h - qkv.qo_heads) * group.k_dim;
        const float* norm = is_q ? qkv.q_norm : qkv.k_norm;
        if (norm != nullptr) kernels::RmsNorm(head, norm, group.k_dim, qkv.norm_eps, head);
        if (rope != nullptr) {
          Rope(qkv.rope->pairs, rope->cos.data() + turn, rope->sin.data() + turn,
               static_cast<std::int32_t>(2 * pairs), head);
        }
      }
      const std::int32_t position = s.position + i;
      const std::int32_t block = position / kv.layout->block_tokens - s.first_block;
      CHECK(block >= 0 && static_cast<std::size_t>(block) < s.slabs.size());
      const SlabRef slab = s.slabs[static_cast<std::size_t>(block)];
      CHECK_EQ(static_cast<int>(slab.pool), 0);
      std::byte* base = kv.pools.base[0] + slab.index * kv.pools.slab_bytes;
      const std::int32_t in_block = position % kv.layout->block_tokens;
      const std::int32_t token = in_block % kv.layout->page_tokens;
      const std::size_t element = BytesPerElement(group.dtype);
      for (std::int32_t h = 0; h < group.kv_heads; ++h) {
        std::byte* page =
            base + kv.layout->PageOffset(kv.cache_layer, h, in_block / kv.layout->page_tokens);
        NarrowRow(group.dtype, k + h * group.k_dim, group.k_dim,
                  page + static_cast<std::size_t>(token * group.k_dim) * element);
        NarrowRow(
            group.dtype, v + h * group.v_dim, group.v_dim,
            page + kv.layout->k_bytes() + static_cast<std::size_t>(token * group.v_dim) * element);
      }
    });
    row_begin += s.rows;
  }
}

// Fills pages_: for each sequence and KV head the addresses of the pages that some row of the batch
// can see.
void CpuOps::ListPages(const KvBatch& kv, std::int32_t window_tokens) {
  const PageLayout& layout = *kv.layout;
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
        const std::byte* base = kv.pools.base[slab.pool] + slab.index * kv.pools.slab_bytes;
        for (std::int32_t p = 0; p < layout.pages_per_block(); ++p) {
          pages_.push_back(base + layout.PageOffset(kv.cache_layer, h, p));
        }
      }
      pages_begin_.push_back(pages_.size());
    }
  }
}

void CpuOps::ListPieces(const KvBatch& kv, std::int32_t group_heads) {
  pieces_.clear();
  const std::int32_t kv_heads = kv.layout->group.kv_heads;
  for (std::size_t s = 0; s < kv.sequences.size(); ++s) {
    const SequenceRows& rows = kv.sequences[s];
    for (std::int32_t begin = 0; begin < rows.rows; begin += kAttentionTileTokens) {
      const std::int32_t end = std::min(begin + kAttentionTileTokens, rows.rows);
      const std::int64_t keys = std::int64_t{end - begin} * (rows.position + end) * group_heads;
      for (std::int32_t h = 0; h < kv_heads; ++h) pieces_.push_back({s, h, begin, end, keys});
    }
  }
  std::stable_sort(pieces_.begin(), pieces_.end(),
                   [](const Piece& a, const Piece& b) { return a.keys > b.keys; });
}

AttentionTask CpuOps::MakeTask(const float* q, std::int32_t qo_heads, float scale,
                               const KvBatch& kv, const Piece& piece, float* out) const {
  const KvGroup& group = kv.layout->group;
  const SequenceRows& s = kv.sequences[piece.sequence];
  const std::int32_t heads = qo_heads / group.kv_heads;
  const std::int64_t row = s.row_begin + piece.token_begin;
  AttentionTask task;
  task.q_token_stride = std::int64_t{qo_heads} * group.k_dim;
  task.q = q + row * task.q_token_stride + std::int64_t{piece.kv_head} * heads * group.k_dim;
  task.out_token_stride = std::int64_t{qo_heads} * group.v_dim;
  task.out = out + row * task.out_token_stride + std::int64_t{piece.kv_head} * heads * group.v_dim;
  task.tokens = piece.token_end - piece.token_begin;
  task.heads = heads;
  task.position = s.position + piece.token_begin;
  task.window_tokens = group.window_tokens;
  task.scale = scale;
  const std::size_t list = piece.sequence * static_cast<std::size_t>(group.kv_heads) +
                           static_cast<std::size_t>(piece.kv_head);
  task.pages =
      std::span(pages_).subspan(pages_begin_[list], pages_begin_[list + 1] - pages_begin_[list]);
  task.first_page_position = first_positions_[piece.sequence];
  task.page_tokens = kv.layout->page_tokens;
  task.k_dim = group.k_dim;
  task.v_dim = group.v_dim;
  task.dtype = group.dtype;
  return task;
}

// Few tasks over long contexts: every partition is an item of its own, merged afterwards in
// ascending order.
void CpuOps::RunSplit(std::span<const AttentionTask> tasks, std::size_t scratch_bytes) {
  struct Item {
    std::size_t task;
    std::int32_t partition;
    std::size_t state;
  };
  std::vector<Item> items;
  std::vector<std::size_t> first_state(tasks.size());
  std::vector<std::int32_t> partitions(tasks.size());
  std::size_t floats = 0;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    const AttentionTask& task = tasks[t];
    const std::int32_t oldest =
        task.window_tokens > 0 ? std::max(0, task.position - task.window_tokens + 1) : 0;
    const std::int32_t begin = oldest / kPartitionTokens;
    const std::int32_t end = (task.position + task.tokens - 1) / kPartitionTokens + 1;
    first_state[t] = floats;
    partitions[t] = end - begin;
    for (std::int32_t p = begin; p < end; ++p) {
      items.push_back({t, p, floats});
      floats += static_cast<std::size_t>(task.tokens * task.heads * (2 + task.v_dim));
    }
  }
  states_.resize(floats);
  ForItems(static_cast<std::int64_t>(items.size()), [&](int worker, std::int64_t i) {
    const Item& item = items[static_cast<std::size_t>(i)];
    AttendPartition(tasks[item.task], item.partition, states_.data() + item.state,
                    scratch_of(worker).Get(scratch_bytes));
  });
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    MergePartitions(tasks[t], states_.data() + first_state[t], partitions[t]);
  }
}

void CpuOps::Attention(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                       const Activations& out) {
  const KvGroup& group = kv.layout->group;
  CHECK_EQ(qo_heads % group.kv_heads, 0);
  CHECK_EQ(out.cols, qo_heads * group.v_dim);
  const std::int32_t heads = qo_heads / group.kv_heads;
  std::int32_t rows = 0;
  for (const SequenceRows& s : kv.sequences) rows = std::max(rows, s.row_begin + s.rows);
  if (rows == 0) return;
  float* y = out.f32;
  if (y == nullptr) {
    attention_out_.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(out.cols));
    y = attention_out_.data();
  }
  ListPages(kv, group.window_tokens);
  ListPieces(kv, heads);
  std::vector<AttentionTask> tasks;
  std::int32_t tokens_max = 0;
  std::int64_t partitions = 0;
  for (const Piece& piece : pieces_) {
    tasks.push_back(MakeTask(q, qo_heads, scale, kv, piece, y));
    tokens_max = std::max(tokens_max, tasks.back().tokens);
    partitions += static_cast<std::int64_t>(tasks.back().pages.size()) * kv.layout->page_tokens /
                      kPartitionTokens +
                  1;
  }
  const std::size_t scratch_bytes =
      AttentionScratchBytes(tokens_max, heads, group.k_dim, group.v_dim);
  const bool uneven = static_cast<int>(tasks.size()) < 4 * pool_.threads();
  if (pool_.threads() > 1 && tokens_max == 1 && uneven &&
      partitions > static_cast<std::int64_t>(tasks.size())) {
    RunSplit(tasks, scratch_bytes);
  } else {
    ForItems(static_cast<std::int64_t>(tasks.size()), [&](int worker, std::int64_t i) {
      Attend(tasks[static_cast<std::size_t>(i)], scratch_of(worker).Get(scratch_bytes));
    });
  }
  if (out.wants_int8()) {
    ForRows(rows, [&](int, std::int32_t r) {
      const Activations to = out.From(r);
      QuantizeRow(y + std::int64_t{r} * out.cols, out.cols, to.q, to.scale, to.sum);
    });
  }
}

}  // namespace

std::unique_ptr<Ops> MakeCpuOps(CpuDevice& device) { return std::make_unique<CpuOps>(device); }

}  // namespace penstock::kernels
