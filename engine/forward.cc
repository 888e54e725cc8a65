// SPDX-License-Identifier: Apache-2.0
#include "engine/forward.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "base/check_ok.h"
#include "base/status.h"
#include "engine/logit_rows.h"

namespace penstock::engine {
namespace {

using kernels::Activations;
using kernels::PackedMatrix;

// What the matrices that read an activation take it as.
struct Forms {
  bool f32 = false;
  bool int8 = false;
};

Forms FormsFor(std::initializer_list<const PackedMatrix*> readers) {
  Forms forms;
  for (const PackedMatrix* m : readers) (m->takes_int8() ? forms.int8 : forms.f32) = true;
  return forms;
}

// Of partial sums: several take their columns from the floats.
Forms FormsFor(std::span<const PackedMatrix> sums) {
  if (sums.size() > 1) return {.f32 = true};
  return FormsFor({&sums[0]});
}

// Device memory for one row-major activation of up to rows x cols, in both forms.
struct ActivationBuffer {
  float* f32;
  std::int8_t* q;
  float* scale;
  std::int32_t* sum;

  Activations View(std::int32_t cols, Forms forms) const {
    Activations a{.cols = cols};
    if (forms.f32) a.f32 = f32;
    if (forms.int8) {
      a.q = q;
      a.scale = scale;
      a.sum = sum;
    }
    return a;
  }
};

// Hands out parts of one allocation; with no memory behind it, only counts.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}
  template <typename T>
  T* Take(std::size_t n) {
    T* place = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (n * sizeof(T) + 63) / 64 * 64;
    return place;
  }
  ActivationBuffer TakeActivation(std::size_t rows, std::size_t cols) {
    const std::size_t blocks = (cols + kernels::kQuantBlock - 1) / kernels::kQuantBlock;
    return {Take<float>(rows * cols), Take<std::int8_t>(rows * blocks * kernels::kQuantBlock),
            Take<float>(rows * blocks), Take<std::int32_t>(rows * blocks)};
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* const base_;
  std::size_t used_ = 0;
};

}  // namespace

struct ForwardPass::Buffers {
  std::unique_ptr<DeviceMemory> memory;
  float* x = nullptr;        // [rows, d_model], the residual stream
  float* q = nullptr;        // [rows, qo_heads * head_dim]
  float* k = nullptr;        // [rows, kv_heads * head_dim]
  float* v = nullptr;        // [rows, kv_heads * head_dim]
  float* y = nullptr;        // [rows, d_model], before a post norm
  float* logit_x = nullptr;  // [logit rows, d_model]: the rows that the last layer goes on with
  float* logit_q = nullptr;  // [logit rows, qo_heads * head_dim]
  float* logits = nullptr;   // [logit rows, the shard's vocab]
  // What shards exchange, in one place and the other by turns: [sums, rows, d_model]. One place is
  // enough for a model that is not split.
  float* gathered[2] = {};
  std::size_t turn = 0;
  std::unique_ptr<LogitRows> logit_rows;
  ActivationBuffer normed{};    // [rows, d_model]
  ActivationBuffer attended{};  // [rows, qo_heads * head_dim]
  ActivationBuffer gated{};     // [rows, ffn_dim]
  ActivationBuffer taken{};     // [rows, columns of a partial sum], where the shard has several
  // The batch at hand.
  std::vector<TokenId> tokens;
  std::vector<std::vector<kernels::SequenceRows>> sequences;  // One list per group.
  std::vector<std::int32_t> with_logits;                      // Indices into the batch's rows.
  std::vector<std::int32_t> logit_rows_of;                    // Their number, per sequence.
  std::vector<std::vector<kernels::SequenceRows>>
      logit_sequences;                    // As sequences, those rows only.
  std::vector<TokenId> own_tokens;        // Of tokens, as rows of the shard's embedding.
  std::vector<std::int32_t> embedded_at;  // And where the gathered rows of all have them.
  std::vector<kernels::RopeTable> ropes;

  void Lay(const model::Architecture& a, const Weights& weights, const RunnerOptions& options,
           std::byte* base, std::size_t* bytes) {
    Arena arena(base);
    const auto rows = static_cast<std::size_t>(options.rows_max);
    const auto d_model = static_cast<std::size_t>(a.d_model);
    const std::size_t q_cols = std::size_t{1} * a.qo_heads * a.head_dim;
    const std::size_t kv_cols = std::size_t{1} * a.kv_heads * a.head_dim;
    x = arena.Take<float>(rows * d_model);
    q = arena.Take<float>(rows * q_cols);
    k = arena.Take<float>(rows * kv_cols);
    v = arena.Take<float>(rows * kv_cols);
    y = arena.Take<float>(rows * d_model);
    const auto logit_rows_max = static_cast<std::size_t>(options.logit_rows_max);
    logit_x = arena.Take<float>(logit_rows_max * d_model);
    logit_q = arena.Take<float>(logit_rows_max * q_cols);
    logits = arena.Take<float>(logit_rows_max * static_cast<std::size_t>(weights.head.rows));
    normed = arena.TakeActivation(rows, d_model);
    attended = arena.TakeActivation(rows, q_cols);
    gated = arena.TakeActivation(rows, static_cast<std::size_t>(a.ffn_dim));
    const TensorShard& shard = weights.shard();
    const auto sums = static_cast<std::size_t>(shard.sums);
    if (sums > 1) {
      gathered[0] = arena.Take<float>(sums * rows * d_model);
      gathered[1] = shard.shards > 1 ? arena.Take<float>(sums * rows * d_model) : gathered[0];
    }
    if (const auto own = static_cast<std::size_t>(shard.own_sums()); own > 1) {
      taken =
          arena.TakeActivation(rows, std::max(q_cols, static_cast<std::size_t>(a.ffn_dim)) / own);
    }
    *bytes = arena.used();
  }
};

absl::StatusOr<std::unique_ptr<ForwardPass>> ForwardPass::Make(
    const model::Architecture& architecture, const ShardParts& shard, KvPool& pool,
    const RunnerOptions& options, const PassEnds& ends) {
  const Weights& weights = *shard.weights;
  CHECK_GT(options.rows_max, 0);
  CHECK_GT(options.logit_rows_max, 0);
  const PipelineStage& stage = weights.part().stage;
  CHECK_EQ(weights.layers.size(), architecture.layers.size());
  CHECK_EQ(stage.first(), ends.before == nullptr);
  CHECK_EQ(stage.last(), ends.after == nullptr);
  CHECK_EQ(weights.shard().shards > 1, ends.shards != nullptr);
  if (ends.shards != nullptr) {
    CHECK_EQ(ends.shards->ranks(), weights.shard().shards);
    CHECK_EQ(ends.shards->rank(), weights.shard().index);
  }
  auto pass =
      std::unique_ptr<ForwardPass>(new ForwardPass(architecture, shard, pool, options, ends));
  std::size_t bytes = 0;
  pass->buffers_->Lay(architecture, weights, options, nullptr, &bytes);
  ASSIGN_OR_RETURN(pass->buffers_->memory, shard.device->Allocate(bytes));
  pass->buffers_->Lay(architecture, weights, options, pass->buffers_->memory->data(), &bytes);
  if (stage.last()) {
    ASSIGN_OR_RETURN(
        pass->buffers_->logit_rows,
        LogitRows::Make(*shard.device, *shard.ops, *pass->buffers_->memory, pass->buffers_->logits,
                        options.logit_rows_max, weights.head.rows));
  }
  for (const model::RopeSpec& rope : architecture.ropes) {
    pass->buffers_->ropes.push_back({rope.pairs, rope.inverse_frequency, rope.magnitude});
  }
  for (std::int32_t g = 0; g < std::ssize(pool.spec().groups); ++g) {
    shard.ops->WillAttend(pool.layout_on(weights.part().device(), g), architecture.qo_heads);
  }
  return pass;
}

ForwardPass::ForwardPass(const model::Architecture& architecture, const ShardParts& shard,
                         KvPool& pool, const RunnerOptions& options, const PassEnds& ends)
    : architecture_(architecture),
      weights_(*shard.weights),
      device_(*shard.device),
      ops_(*shard.ops),
      pool_(pool),
      options_(options),
      ends_(ends),
      first_layer_(
          LayersOf(static_cast<std::int32_t>(pool.spec().layers.size()), weights_.part().stage)
              .begin),
      buffers_(std::make_unique<Buffers>()) {}

ForwardPass::~ForwardPass() = default;

std::size_t ForwardPass::scratch_bytes() const { return buffers_->memory->size_bytes(); }

std::span<const float> ForwardPass::logits(std::int32_t i) const {
  return buffers_->logit_rows->row(i);
}

void ForwardPass::Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
                      const std::function<void(std::int32_t layer)>& layer_done) {
  Take(sequences);
  const auto rows = static_cast<std::int32_t>(buffers_->tokens.size());
  CHECK_LE(rows, options_.rows_max);
  const auto logit_rows = static_cast<std::int32_t>(buffers_->with_logits.size());
  CHECK_LE(logit_rows, options_.logit_rows_max);
  LogitRows* const logits = buffers_->logit_rows.get();
  if (logits != nullptr) logits->Begin(logit_rows, draws);
  if (rows == 0) return;
  const auto step = [&] {
    Compute(rows, layer_done);
    if (logits != nullptr) logits->Draw();
  };
  // Decode steps of a whole model are alike until the batch changes.
  const bool whole = ends_.shards == nullptr && ends_.before == nullptr && ends_.after == nullptr;
  const bool decodes = rows == std::ssize(sequences) && rows == logit_rows;
  if (decodes && !layer_done && whole) {
    ops_.Repeat(step);
  } else {
    step();
  }
  if (logits != nullptr) logits->CopyRows();
  MustGoOn(ends_.shards == nullptr ? ops_.stream().Synchronize()
                                   : ends_.shards->Finish(ops_.stream()));
  if (logits != nullptr) logits->Finish(draws);
}

void ForwardPass::Take(std::span<const SequenceInput> sequences) {
  Buffers& b = *buffers_;
  b.tokens.clear();
  b.with_logits.clear();
  b.logit_rows_of.clear();
  b.sequences.assign(static_cast<std::size_t>(pool_.groups()), {});
  for (const SequenceInput& s : sequences) {
    const auto row_begin = static_cast<std::int32_t>(b.tokens.size());
    const auto rows = static_cast<std::int32_t>(s.tokens.size());
    CHECK_EQ(s.blocks.size(), b.sequences.size());
    CHECK_LE(s.logit_rows, rows);
    for (const TokenId token : s.tokens) CHECK(token >= 0 && token < architecture_.vocab);
    b.tokens.insert(b.tokens.end(), s.tokens.begin(), s.tokens.end());
    for (std::size_t g = 0; g < b.sequences.size(); ++g) {
      b.sequences[g].push_back(
          {row_begin, rows, s.position, s.blocks[g].slabs, s.blocks[g].first_block});
    }
    b.logit_rows_of.push_back(s.logit_rows);
    for (std::int32_t r = rows - s.logit_rows; r < rows; ++r)
      b.with_logits.push_back(row_begin + r);
  }
}

void ForwardPass::Compute(std::int32_t rows,
                          const std::function<void(std::int32_t layer)>& layer_done) {
  Buffers& b = *buffers_;
  Begin(rows);
  Live live{.x = b.x, .q = b.q, .rows = rows, .sequences = &b.sequences, .batch = ops_.NewBatch()};
  for (std::size_t layer = 0; layer < architecture_.layers.size(); ++layer) {
    StoreKv(layer, live);
    if (layer_done) layer_done(first_layer_ + static_cast<std::int32_t>(layer));
    const bool last = ends_.after == nullptr && layer + 1 == architecture_.layers.size();
    if (last) live = KeepLogitRows();
    if (live.rows == 0) return;
    Attend(layer, live);
    FeedForward(layer, live);
  }
  if (ends_.after == nullptr) return Head(live);
  MustGoOn(ends_.after->Send(ops_.stream(), reinterpret_cast<const std::byte*>(b.x),
                             ResidualBytes(rows)));
}

std::size_t ForwardPass::ResidualBytes(std::int32_t rows) const {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(architecture_.d_model) *
         sizeof(float);
}

void ForwardPass::Begin(std::int32_t rows) {
  if (ends_.before == nullptr) return Embed(rows);
  MustGoOn(ends_.before->Receive(ops_.stream(), reinterpret_cast<std::byte*>(buffers_->x),
                                 ResidualBytes(rows)));
}

// A shard looks up the tokens whose rows it has; for the others it gives any row, which nobody
// takes.
void ForwardPass::Embed(std::int32_t rows) {
  Buffers& b = *buffers_;
  const TensorShard& shard = weights_.shard();
  if (shard.shards == 1) {
    ops_.Embed(weights_.embedding, b.tokens, architecture_.embedding_scale, b.x);
    return;
  }
  const ShardRange own = VocabOf(architecture_, shard);
  b.own_tokens.clear();
  b.embedded_at.clear();
  for (const TokenId token : b.tokens) {
    const std::int32_t owner = VocabShardOf(token, architecture_.vocab, shard.shards);
    b.embedded_at.push_back(owner * rows + static_cast<std::int32_t>(b.own_tokens.size()));
    b.own_tokens.push_back(owner == shard.index ? token - own.begin : 0);
  }
  const std::size_t floats =
      static_cast<std::size_t>(rows) * static_cast<std::size_t>(architecture_.d_model);
  float* const all = PlaceToGather();
  ops_.Embed(weights_.embedding, b.own_tokens, architecture_.embedding_scale,
             all + static_cast<std::size_t>(shard.index) * floats);
  GatherShards(all, floats);
  ops_.GatherRows(all, architecture_.d_model, b.embedded_at, b.x);
}

float* ForwardPass::PlaceToGather() { return buffers_->gathered[buffers_->turn++ % 2]; }

void ForwardPass::GatherShards(float* all, std::size_t floats) {
  if (ends_.shards == nullptr) return;
  MustGoOn(ends_.shards->AllGather(ops_.stream(), reinterpret_cast<std::byte*>(all),
                                   floats * sizeof(float)));
}

void ForwardPass::MustGoOn(const absl::Status& exchanged) {
  if (!exchanged.ok() && options_.exchange_failed) options_.exchange_failed(exchanged);
  CHECK_OK(exchanged);
}

void ForwardPass::StoreKv(std::size_t layer, const Live& live) {
  Buffers& b = *buffers_;
  const model::Architecture& a = architecture_;
  const LayerWeights& w = weights_.layers[layer];
  const Activations normed = b.normed.View(a.d_model, FormsFor({&w.q, &w.k, &w.v}));
  ops_.RmsNorm(live.x, w.attn_norm, a.norm_eps, live.rows, normed);
  const kernels::LinearOutput qkv[] = {
      {&w.q, w.q_bias, live.q}, {&w.k, w.k_bias, b.k}, {&w.v, w.v_bias, b.v}};
  ops_.Linear(normed, live.rows, qkv);
  ops_.PrepareAndStore({.q = live.q,
                        .k = b.k,
                        .v = b.v,
                        .qo_heads = a.qo_heads,
                        .q_norm = w.q_norm,
                        .k_norm = w.k_norm,
                        .norm_eps = a.norm_eps,
                        .rope = &b.ropes[static_cast<std::size_t>(a.layers[layer].rope)]},
                       KvOf(layer, live));
}

kernels::KvBatch ForwardPass::KvOf(std::size_t layer, const Live& live) const {
  const KvLayerRef cache = pool_.spec().layers[static_cast<std::size_t>(first_layer_) + layer];
  const std::int32_t device = weights_.part().device();
  return {&pool_.layout_on(device, cache.group), pool_.pools(cache.group, device),
          pool_.cache_layer_on(device, cache),
          (*live.sequences)[static_cast<std::size_t>(cache.group)], live.batch};
}

// After the last layer's KV is stored only rows whose logits are wanted matter: moves those
// together.
ForwardPass::Live ForwardPass::KeepLogitRows() {
  Buffers& b = *buffers_;
  b.logit_sequences.assign(b.sequences.size(), {});
  for (std::size_t g = 0; g < b.sequences.size(); ++g) {
    std::int32_t row_begin = 0;
    for (std::size_t s = 0; s < b.sequences[g].size(); ++s) {
      kernels::SequenceRows rows = b.sequences[g][s];
      const std::int32_t dropped = rows.rows - b.logit_rows_of[s];
      rows.row_begin = row_begin;
      rows.rows -= dropped;
      rows.position += dropped;
      row_begin += rows.rows;
      if (rows.rows > 0) b.logit_sequences[g].push_back(rows);
    }
  }
  const auto rows = static_cast<std::int32_t>(b.with_logits.size());
  ops_.GatherRows(b.x, architecture_.d_model, b.with_logits, b.logit_x);
  ops_.GatherRows(b.q, architecture_.qo_heads * architecture_.head_dim, b.with_logits, b.logit_q);
  return {.x = b.logit_x,
          .q = b.logit_q,
          .rows = rows,
          .sequences = &b.logit_sequences,
          .batch = ops_.NewBatch()};
}

void ForwardPass::Attend(std::size_t layer, const Live& live) {
  const model::Architecture& a = architecture_;
  const LayerWeights& w = weights_.layers[layer];
  const Activations attended = buffers_->attended.View(a.qo_heads * a.head_dim, FormsFor(w.o));
  ops_.Attention(live.q, a.qo_heads, a.attention_scale, KvOf(layer, live), attended);
  AddProjected(attended, live, w.o, w.post_attn_norm);
}

void ForwardPass::FeedForward(std::size_t layer, const Live& live) {
  Buffers& b = *buffers_;
  const model::Architecture& a = architecture_;
  const LayerWeights& w = weights_.layers[layer];
  const Activations normed = b.normed.View(a.d_model, FormsFor({&w.gate, &w.up}));
  ops_.RmsNorm(live.x, w.ffn_norm, a.norm_eps, live.rows, normed);
  const Activations gated = b.gated.View(a.ffn_dim, FormsFor(w.down));
  ops_.GatedLinear(normed, live.rows, w.gate, w.up, a.activation, gated);
  AddProjected(gated, live, w.down, w.post_ffn_norm);
}

void ForwardPass::AddProjected(const kernels::Activations& in, const Live& live,
                               std::span<const PackedMatrix> w, const float* post_norm) {
  const TensorShard& shard = weights_.shard();
  const bool add = post_norm == nullptr;  // To the residual, as it is.
  float* const y = add ? live.x : buffers_->y;
  if (shard.sums == 1) {
    const kernels::LinearOutput out = {&w[0], nullptr, y, add};
    ops_.Linear(in, live.rows, {&out, 1});
  } else {
    float* const sums = PlaceToGather();
    const std::int64_t floats = std::int64_t{live.rows} * architecture_.d_model;
    MakeSums(in, live.rows, w, sums);
    GatherShards(sums, w.size() * static_cast<std::size_t>(floats));
    ops_.SumParts(sums, shard.sums, floats, add, y);
  }
  if (!add) {
    ops_.RmsNormAdd(y, post_norm, architecture_.norm_eps, live.rows, architecture_.d_model, live.x);
  }
}

void ForwardPass::MakeSums(const kernels::Activations& in, std::int32_t rows,
                           std::span<const PackedMatrix> w, float* sums) {
  const std::int64_t floats = std::int64_t{rows} * architecture_.d_model;
  const std::int64_t first = std::int64_t{weights_.shard().index} * std::ssize(w);
  for (std::int64_t i = 0; i < std::ssize(w); ++i) {
    const PackedMatrix& part = w[static_cast<std::size_t>(i)];
    Activations x = in;
    if (w.size() > 1) {
      x = buffers_->taken.View(part.cols, FormsFor({&part}));
      ops_.TakeColumns(in.f32, in.cols, static_cast<std::int32_t>(i) * part.cols, rows, x);
    }
    const kernels::LinearOutput out = {&part, nullptr, sums + (first + i) * floats};
    ops_.Linear(x, rows, {&out, 1});
  }
}

void ForwardPass::Head(const Live& live) {
  Buffers& b = *buffers_;
  const Activations normed = b.normed.View(architecture_.d_model, FormsFor({&weights_.head}));
  ops_.RmsNorm(live.x, weights_.output_norm, architecture_.norm_eps, live.rows, normed);
  const kernels::LinearOutput out = {&weights_.head, nullptr, b.logits};
  ops_.Linear(normed, live.rows, {&out, 1});
}

}  // namespace penstock::engine
