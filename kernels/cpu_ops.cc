// SPDX-License-Identifier: Apache-2.0
// Ops on the CPU: each call is one parallel region (or two) over the device's threads; the work
// inside is the kernels of this folder. How work is cut never shows in the bits: those are fixed
// per output element.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "device/cpu_device.h"
#include "kernels/cpu_attention.h"
#include "kernels/cpu_parallel.h"
#include "kernels/kv_encoding.h"
#include "kernels/linear.h"
#include "kernels/ops.h"
#include "kernels/sincos.h"

namespace penstock::kernels {
namespace {

// One row of a batch.
struct BatchRow {
  const SequenceRows* sequence;
  std::int32_t row;       // In the batch's buffers.
  std::int32_t position;  // In its sequence.
};

// cos and sin of every row of the batch at hand, kept from layer to layer.
struct RopeRows {
  const float* frequencies = nullptr;  // Identity of the table.
  float magnitude = 0;
  std::vector<std::int32_t> positions;
  std::vector<float> cos, sin;  // [rows, pairs]
};

// Output columns computed between two epilogues: a multiple of kPanelRows and kQuantBlock.
constexpr std::int32_t kTilePanels = 4;

std::int32_t Panels(const PackedMatrix& m) { return (m.rows + kPanelRows - 1) / kPanelRows; }

class CpuOps final : public Ops {
 public:
  explicit CpuOps(CpuDevice& device)
      : stream_(device.NewStream()), workers_(device.threads()), attention_(workers_) {}

  std::string numerics() const override { return "cpu-1"; }
  Stream& stream() override { return *stream_; }

  void Embed(const PackedMatrix& table, std::span<const TokenId> tokens, float scale,
             float* x) override {
    workers_.ForRows(static_cast<std::int32_t>(tokens.size()), [&](int, std::int32_t r) {
      const std::span<float> row(x + std::int64_t{r} * table.cols,
                                 static_cast<std::size_t>(table.cols));
      UnpackRow(table, tokens[static_cast<std::size_t>(r)], row);
      if (scale != 1) {
        for (float& value : row) value *= scale;
      }
    });
  }

  void GatherRows(const float* x, std::int32_t cols, std::span<const std::int32_t> row_index,
                  float* out) override {
    for (std::size_t i = 0; i < row_index.size(); ++i) {
      std::memcpy(out + i * static_cast<std::size_t>(cols), x + std::int64_t{row_index[i]} * cols,
                  static_cast<std::size_t>(cols) * sizeof(float));
    }
  }

  void RmsNorm(const float* x, const float* w, float eps, std::int32_t rows,
               const Activations& out) override {
    workers_.ForRows(rows, [&](int worker, std::int32_t r) {
      const Activations to = out.From(r);
      float* y = to.f32 != nullptr
                     ? to.f32
                     : workers_.scratch(worker).Floats(static_cast<std::size_t>(out.cols));
      kernels::RmsNorm(x + std::int64_t{r} * out.cols, w, out.cols, eps, y);
      if (to.wants_int8()) QuantizeRow(y, out.cols, to.q, to.scale, to.sum);
    });
  }

  void RmsNormAdd(const float* y, const float* w, float eps, std::int32_t rows, std::int32_t cols,
                  float* x) override {
    workers_.ForRows(rows, [&](int worker, std::int32_t r) {
      float* normed = workers_.scratch(worker).Floats(static_cast<std::size_t>(cols));
      kernels::RmsNorm(y + std::int64_t{r} * cols, w, cols, eps, normed);
      Add(normed, cols, x + std::int64_t{r} * cols);
    });
  }

  std::span<const Drawn> Draw(const float* logits, std::int32_t vocab,
                              std::span<const RowDraw> draws) override {
    drawn_.resize(draws.size());
    workers_.ForItems(std::ssize(draws), [&](int, std::int64_t i) {
      const RowDraw& draw = draws[static_cast<std::size_t>(i)];
      drawn_[static_cast<std::size_t>(i)] = kernels::Draw(
          {logits + std::int64_t{draw.row} * vocab, static_cast<std::size_t>(vocab)}, draw.spec);
    });
    return drawn_;
  }

  void TakeColumns(const float* x, std::int32_t cols, std::int32_t first, std::int32_t rows,
                   const Activations& out) override {
    CHECK_LE(out.cols, cols - first);
    workers_.ForRows(rows, [&](int, std::int32_t r) {
      const float* const from = x + std::int64_t{r} * cols + first;
      const Activations to = out.From(r);
      if (to.f32 != nullptr) {
        std::memcpy(to.f32, from, static_cast<std::size_t>(out.cols) * sizeof(float));
      }
      if (to.wants_int8()) QuantizeRow(from, out.cols, to.q, to.scale, to.sum);
    });
  }

  void SumParts(const float* parts, std::int32_t count, std::int64_t n, bool add,
                float* y) override {
    constexpr std::int64_t kPiece = 2048;  // Of y at once: stays in the nearest cache.
    const auto pieces = static_cast<std::int32_t>((n + kPiece - 1) / kPiece);
    workers_.ForRows(pieces, [&](int worker, std::int32_t p) {
      const std::int64_t begin = p * kPiece;
      const auto length = static_cast<std::int32_t>(std::min(kPiece, n - begin));
      float* const sum = add ? workers_.scratch(worker).Floats(kPiece) : y + begin;
      std::memcpy(sum, parts + begin, static_cast<std::size_t>(length) * sizeof(float));
      for (std::int32_t c = 1; c < count; ++c) Add(parts + c * n + begin, length, sum);
      if (add) Add(sum, length, y + begin);
    });
  }

  void Linear(const Activations& x, std::int32_t rows,
              std::span<const LinearOutput> outputs) override;
  void GatedLinear(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                   const PackedMatrix& up, Activation activation, const Activations& out) override;
  void EncodeBlock(const KvEncoding& encoding, const PageLayout& layout, const std::byte* slab,
                   std::byte* out) override {
    kernels::EncodeBlock(encoding, layout, slab, out);
  }
  void DecodeBlock(const KvEncoding& encoding, const PageLayout& layout,
                   std::span<const std::byte> encoded, std::byte* slab,
                   Stream& /*stream*/) override {
    kernels::DecodeBlock(encoding, layout, encoded, slab);
  }

  void PrepareAndStore(const PrepareQkv& qkv, const KvBatch& kv) override;
  void Attention(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                 const Activations& out) override;

 private:
  void LinearTile(const LinearOutput& output, const Activations& x, std::int32_t rows,
                  std::int32_t panel_begin, std::int32_t panel_end, int worker);
  void ListRows(const KvBatch& kv);
  const RopeRows& TurnsFor(const RopeTable& table);
  void Store(const float* k, const float* v, const BatchRow& row, const KvBatch& kv);

  const std::unique_ptr<Stream> stream_;
  CpuWorkers workers_;
  CpuAttention attention_;
  std::vector<BatchRow> batch_rows_;  // Of the call at hand.
  std::vector<RopeRows> ropes_;       // One per table seen.
  std::vector<float> attention_out_;
  std::vector<Drawn> drawn_;
};

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
  float* tile = workers_.scratch(worker).Floats(static_cast<std::size_t>(rows) *
                                                static_cast<std::size_t>(cols));
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
  const std::int64_t share = rows <= 4 ? (panels + workers_.threads() - 1) / workers_.threads()
                                       : std::int64_t{kTilePanels};
  const std::int64_t shares = (panels + share - 1) / share;
  workers_.ForItems(shares, [&](int worker, std::int64_t i) {
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
  const std::int64_t even = (panels / 2 + workers_.threads() - 1) / workers_.threads() * 2;
  const std::int64_t share = rows <= 4 ? std::max<std::int64_t>(even, kTilePanels) : kTilePanels;
  workers_.ForItems((panels + share - 1) / share, [&](int worker, std::int64_t i) {
    const auto begin = static_cast<std::int32_t>(i * share);
    const auto end = static_cast<std::int32_t>(std::min((i + 1) * share, panels));
    const std::int32_t first = begin * kPanelRows;
    const std::int32_t cols = std::min(end * kPanelRows, gate.rows) - first;
    const std::size_t tile_floats = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    float* gated = workers_.scratch(worker).Floats(2 * tile_floats);
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

// Fills batch_rows_ with every row of the batch, in its order.
void CpuOps::ListRows(const KvBatch& kv) {
  batch_rows_.clear();
  for (const SequenceRows& s : kv.sequences) {
    for (std::int32_t i = 0; i < s.rows; ++i)
      batch_rows_.push_back({&s, s.row_begin + i, s.position + i});
  }
}

const RopeRows& CpuOps::TurnsFor(const RopeTable& table) {
  RopeRows* rows = nullptr;
  for (RopeRows& known : ropes_) {
    if (known.frequencies == table.inverse_frequency.data() && known.magnitude == table.magnitude)
      rows = &known;
  }
  if (rows == nullptr) rows = &ropes_.emplace_back();
  const auto same = [](std::int32_t position, const BatchRow& row) {
    return position == row.position;
  };
  if (rows->frequencies != nullptr && std::equal(rows->positions.begin(), rows->positions.end(),
                                                 batch_rows_.begin(), batch_rows_.end(), same)) {
    return *rows;
  }
  const std::size_t pairs = table.inverse_frequency.size();
  rows->frequencies = table.inverse_frequency.data();
  rows->magnitude = table.magnitude;
  rows->positions.resize(batch_rows_.size());
  rows->cos.resize(batch_rows_.size() * pairs);
  rows->sin.resize(batch_rows_.size() * pairs);
  workers_.ForRows(static_cast<std::int32_t>(batch_rows_.size()), [&](int, std::int32_t r) {
    const auto row = static_cast<std::size_t>(r);
    rows->positions[row] = batch_rows_[row].position;
    for (std::size_t i = 0; i < pairs; ++i) {
      const CosSin turn =
          CosSinOf(batch_rows_[row].position * static_cast<double>(table.inverse_frequency[i]));
      rows->cos[row * pairs + i] = turn.cos * table.magnitude;
      rows->sin[row * pairs + i] = turn.sin * table.magnitude;
    }
  });
  return *rows;
}

void CpuOps::PrepareAndStore(const PrepareQkv& qkv, const KvBatch& kv) {
  const KvGroup& group = kv.layout->group;
  ListRows(kv);
  const RopeRows* rope = qkv.rope != nullptr ? &TurnsFor(*qkv.rope) : nullptr;
  const std::size_t pairs = rope != nullptr ? qkv.rope->inverse_frequency.size() : 0;
  workers_.ForRows(static_cast<std::int32_t>(batch_rows_.size()), [&](int, std::int32_t r) {
    const BatchRow& row = batch_rows_[static_cast<std::size_t>(r)];
    float* q = qkv.q + std::int64_t{row.row} * qkv.qo_heads * group.k_dim;
    float* k = qkv.k + std::int64_t{row.row} * group.kv_heads * group.k_dim;
    const float* v = qkv.v + std::int64_t{row.row} * group.kv_heads * group.v_dim;
    for (std::int32_t h = 0; h < qkv.qo_heads + group.kv_heads; ++h) {
      const bool is_q = h < qkv.qo_heads;
      float* head = is_q ? q + h * group.k_dim : k + (h - qkv.qo_heads) * group.k_dim;
      const float* norm = is_q ? qkv.q_norm : qkv.k_norm;
      if (norm != nullptr) kernels::RmsNorm(head, norm, group.k_dim, qkv.norm_eps, head);
      if (rope != nullptr) {
        const std::size_t turn = static_cast<std::size_t>(r) * pairs;
        Rope(qkv.rope->pairs, rope->cos.data() + turn, rope->sin.data() + turn,
             static_cast<std::int32_t>(2 * pairs), head);
      }
    }
    Store(k, v, row, kv);
  });
}

// k: [kv_heads, k_dim] and v: [kv_heads, v_dim] of one row into its pages.
void CpuOps::Store(const float* k, const float* v, const BatchRow& row, const KvBatch& kv) {
  const PageLayout& layout = *kv.layout;
  const std::int32_t block = row.position / layout.block_tokens - row.sequence->first_block;
  CHECK(block >= 0 && static_cast<std::size_t>(block) < row.sequence->slabs.size());
  const SlabRef slab = row.sequence->slabs[static_cast<std::size_t>(block)];
  CHECK_EQ(static_cast<int>(slab.pool), 0);
  std::byte* base = kv.pools.base[0] + slab.index * kv.pools.stride_bytes[0];
  const std::int32_t in_block = row.position % layout.block_tokens;
  const auto token = static_cast<std::size_t>(in_block % layout.page_tokens);
  const KvGroup& group = layout.group;
  const std::size_t scale_at = token * ScaleBytes(group.dtype);
  for (std::int32_t h = 0; h < group.kv_heads; ++h) {
    std::byte* page = base + layout.PageOffset(kv.cache_layer, h, in_block / layout.page_tokens);
    NarrowRow(group.dtype, k + h * group.k_dim, group.k_dim, page + token * layout.k_row_bytes(),
              page + layout.k_scales_offset() + scale_at);
    NarrowRow(group.dtype, v + h * group.v_dim, group.v_dim,
              page + layout.v_offset() + token * layout.v_row_bytes(),
              page + layout.v_scales_offset() + scale_at);
  }
}

void CpuOps::Attention(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                       const Activations& out) {
  CHECK_EQ(out.cols, qo_heads * kv.layout->group.v_dim);
  ListRows(kv);
  float* y = out.f32;
  if (y == nullptr) {
    std::int32_t rows = 0;
    for (const BatchRow& row : batch_rows_) rows = std::max(rows, row.row + 1);
    attention_out_.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(out.cols));
    y = attention_out_.data();
  }
  attention_.Run(q, qo_heads, scale, kv, y);
  if (!out.wants_int8()) return;
  workers_.ForRows(static_cast<std::int32_t>(batch_rows_.size()), [&](int, std::int32_t r) {
    const std::int64_t row = batch_rows_[static_cast<std::size_t>(r)].row;
    const Activations to = out.From(row);
    QuantizeRow(y + row * out.cols, out.cols, to.q, to.scale, to.sum);
  });
}

}  // namespace

std::unique_ptr<Ops> MakeCpuOps(CpuDevice& device) { return std::make_unique<CpuOps>(device); }

}  // namespace penstock::kernels
