// SPDX-License-Identifier: Apache-2.0
// Ops on a GPU: host code that makes the tables of a batch, sends them, and starts the plug-in's
// kernels in one stream. Errors stay in the stream until somebody synchronizes.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/check.h"
#include "base/check_ok.h"
#include "base/log.h"
#include "base/status.h"
#include "device/cuda_device.h"
#include "kernels/cuda_graphs.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_kv_block.h"
#include "kernels/cuda_launches.h"
#include "kernels/cuda_tables.h"
#include "kernels/fast_attention.h"
#include "kernels/fast_products.h"
#include "kernels/ops.h"
#include "kernels/sincos.h"

namespace penstock::kernels {
namespace {

// Tokens, tables and cos and sin of a large batch together; a larger one makes it grow.
constexpr std::size_t kUploadBytes = std::size_t{1} << 20;
// Rows times pairs from which on cos and sin are worth other threads.
constexpr std::size_t kParallelTurns = 4096;

// What was sent for a batch, good while uploads are in the same round.
struct SentTables {
  const PageLayout* layout = nullptr;
  std::uint64_t batch = 0;
  std::uint64_t round = 0;
  CudaKv kv;
};
struct SentTurns {
  const float* frequencies = nullptr;  // Identity of the table.
  float magnitude = 0;
  const PageLayout* layout = nullptr;
  std::uint64_t batch = 0;
  std::uint64_t round = 0;
  const float* cos = nullptr;  // [row_count, pairs], on the GPU
  const float* sin = nullptr;
};

// cos and sin of all rows.
std::size_t TurnBytes(const RopeTable& table, const KvBatch& kv) {
  std::size_t rows = 0;
  for (const SequenceRows& s : kv.sequences) rows += static_cast<std::size_t>(s.rows);
  return 2 * sizeof(float) * rows * table.inverse_frequency.size();
}

class CudaOps final : public Ops {
 public:
  static absl::StatusOr<std::unique_ptr<Ops>> Make(CudaDevice& device, Numerics numerics) {
    auto ops = std::unique_ptr<CudaOps>(new CudaOps(device, numerics));
    ASSIGN_OR_RETURN(ops->uploads_, CudaUploads::Make(device, ops->stream_, kUploadBytes));
    if (numerics == Numerics::kFast) {
      ASSIGN_OR_RETURN(ops->fast_, FastProducts::Make(device, ops->stream_, ops->launches_));
      ops->MakeFastAttention();
    }
    return ops;
  }

  std::string numerics() const override {
    return numerics_ == Numerics::kFast ? "fast-1" : "cpu-1";
  }
  Stream& stream() override { return stream_; }

  void Embed(const PackedMatrix& table, std::span<const TokenId> tokens, float scale,
             float* x) override {
    if (tokens.empty()) return;
    Start("Embed", &CudaKernels::embed, table, SendInts(tokens),
          static_cast<std::int32_t>(tokens.size()), scale, x);
  }

  void GatherRows(const float* x, std::int32_t cols, std::span<const std::int32_t> row_index,
                  float* out) override {
    if (row_index.empty()) return;
    Start("GatherRows", &CudaKernels::gather_rows, x, cols, SendInts(row_index),
          static_cast<std::int32_t>(row_index.size()), out);
  }

  void RmsNorm(const float* x, const float* w, float eps, std::int32_t rows,
               const Activations& out) override {
    if (rows == 0) return;
    Start("RmsNorm", &CudaKernels::rms_norm, x, w, eps, rows, out);
  }

  void RmsNormAdd(const float* y, const float* w, float eps, std::int32_t rows, std::int32_t cols,
                  float* x) override {
    if (rows == 0) return;
    Start("RmsNormAdd", &CudaKernels::rms_norm_add, y, w, eps, rows, cols, x);
  }

  void Linear(const Activations& x, std::int32_t rows,
              std::span<const LinearOutput> outputs) override {
    for (const LinearOutput& output : outputs) CHECK_EQ(output.matrix->cols, x.cols);
    if (rows == 0) return;
    std::vector<LinearOutput> others;
    if (fast_ != nullptr) {
      others = fast_->Multiply(x, rows, outputs);
      outputs = others;
    }
    while (!outputs.empty()) {
      const std::size_t now = std::min(outputs.size(), kCudaLinearOutputsMax);
      Start("Linear", &CudaKernels::linear, outputs.first(now), x, rows);
      outputs = outputs.subspan(now);
    }
  }

  void GatedLinear(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                   const PackedMatrix& up, Activation activation, const Activations& out) override {
    CHECK_EQ(gate.rows, up.rows);
    CHECK_EQ(gate.rows, out.cols);
    CHECK_EQ(gate.cols, x.cols);
    if (rows == 0) return;
    auto* const scratch = reinterpret_cast<float*>(gated_scratch_.AtLeast(
        2 * sizeof(float) * static_cast<std::size_t>(rows) * static_cast<std::size_t>(gate.rows)));
    if (fast_ != nullptr) {
      float* const up_y = scratch + std::int64_t{rows} * gate.rows;
      const LinearOutput both[] = {{.matrix = &gate, .y = scratch}, {.matrix = &up, .y = up_y}};
      Linear(x, rows, both);
      Start("GateRows", &CudaKernels::gate_rows, scratch, up_y, activation, rows, out);
      return;
    }
    Start("GatedLinear", &CudaKernels::gated_linear, x, rows, gate, up, activation, out, scratch);
  }

  void TakeColumns(const float* x, std::int32_t cols, std::int32_t first, std::int32_t rows,
                   const Activations& out) override {
    CHECK_LE(out.cols, cols - first);
    if (rows == 0) return;
    Start("TakeColumns", &CudaKernels::take_columns, x, cols, first, rows, out);
  }

  void SumParts(const float* parts, std::int32_t count, std::int64_t n, bool add,
                float* y) override {
    if (n == 0) return;
    Start("SumParts", &CudaKernels::sum_parts, parts, count, n, add, y);
  }

  std::span<const Drawn> Draw(const float* logits, std::int32_t vocab,
                              std::span<const RowDraw> draws) override;
  void Repeat(absl::FunctionRef<void()> step) override;
  void EncodeBlock(const KvEncoding& encoding, const PageLayout& layout, const std::byte* slab,
                   std::byte* out) override {
    CHECK(!launches_.taking_down());
    const CudaStreamHandle stream = stream_.handle();
    const int error = encoding.lossless
                          ? kernels_.split_kv(CudaKvSplitOf(layout), slab, out, stream)
                          : kernels_.encode_kv(CudaKvBlockOf(encoding, layout), slab, out, stream);
    stream_.Expect(error, "EncodeBlock");
  }
  void DecodeBlock(const KvEncoding& encoding, const PageLayout& layout,
                   std::span<const std::byte> encoded, std::byte* slab, Stream& stream) override {
    CudaStream& to = static_cast<CudaStream&>(stream);
    const int error = encoding.lossless ? kernels_.join_kv(CudaKvSplitOf(layout), encoded.data(),
                                                           encoded.size(), slab, to.handle())
                                        : kernels_.decode_kv(CudaKvBlockOf(encoding, layout),
                                                             encoded.data(), slab, to.handle());
    to.Expect(error, "DecodeBlock");
  }

  void PrepareAndStore(const PrepareQkv& qkv, const KvBatch& kv) override;
  void WillAttend(const PageLayout& layout, std::int32_t qo_heads) override {
    if (fast_attention_ != nullptr) (void)fast_attention_->Check(layout, qo_heads);
  }
  void Attention(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                 const Activations& out) override;

 private:
  CudaOps(CudaDevice& device, Numerics numerics)
      : device_(device),
        numerics_(numerics),
        kernels_(*device.plugin().kernels),
        stream_(device),
        launches_(kernels_, stream_),
        gated_scratch_(device, stream_),
        attention_scratch_(device, stream_),
        attention_out_(device, stream_),
        draw_scratch_(device, stream_) {}

  void MakeFastAttention();

  template <typename Kernel, typename... Arguments>
  void Start(const char* what, Kernel kernel, const Arguments&... arguments) {
    launches_.Start(what, kernel, arguments...);
  }
  const CudaGraph* GraphOfStep(absl::FunctionRef<void()> step);
  const CudaGraph* MakeGraph(absl::FunctionRef<void()> step);

  const std::int32_t* SendInts(std::span<const std::int32_t> values) {
    const CudaUploads::Place place = uploads_->Reserve(values.size_bytes());
    std::memcpy(place.host, values.data(), values.size_bytes());
    uploads_->Send(place);
    return reinterpret_cast<const std::int32_t*>(place.device);
  }
  template <typename Sent>
  bool IsGood(const Sent& sent, const KvBatch& kv) const {
    return kv.batch != 0 && sent.batch == kv.batch && sent.round == uploads_->round();
  }
  // What was sent last for such a call.
  SentTables& TablesOf(const KvBatch& kv);
  SentTurns& TurnsOf(const RopeTable& table, const KvBatch& kv);
  // What is on the GPU for this one, after sending it where it is not.
  CudaKv SendTables(const KvBatch& kv);
  SentTurns SendTurns(const RopeTable& table, const KvBatch& kv);

  CudaDevice& device_;
  const Numerics numerics_;
  const CudaKernels& kernels_;
  CudaStream stream_;
  CudaLaunches launches_;
  std::unique_ptr<FastProducts> fast_;  // Null where numerics are exact.
  std::unique_ptr<CudaUploads> uploads_;
  CudaScratch gated_scratch_, attention_scratch_, attention_out_, draw_scratch_;
  std::unique_ptr<DeviceMemory> drawn_;  // The host's, of the last Draw.
  // Of Repeat.
  bool no_graphs_ = false;  // This GPU's driver makes none.
  CudaGraphs graphs_;
  std::vector<SentTables> tables_;                 // One per layout seen.
  std::vector<SentTurns> turns_;                   // One per rope table and layout seen.
  std::unique_ptr<FastAttention> fast_attention_;  // Null: all is our kernel's. Ends first.
};

void CudaOps::MakeFastAttention() {
  absl::StatusOr<std::unique_ptr<FastAttention>> made =
      FastAttention::Make(device_, stream_, *uploads_);
  if (made.ok()) {
    fast_attention_ = *std::move(made);
  } else {
    LOG_WARNING("prefill_attention", {{"by", "own"}, {"why", ToStd(made.status().message())}});
  }
}

SentTables& CudaOps::TablesOf(const KvBatch& kv) {
  auto sent = std::ranges::find(tables_, kv.layout, &SentTables::layout);
  if (sent == tables_.end()) {
    sent = tables_.insert(sent, SentTables{.layout = kv.layout, .kv = {}});
  }
  return *sent;
}

SentTurns& CudaOps::TurnsOf(const RopeTable& table, const KvBatch& kv) {
  auto sent = std::ranges::find_if(turns_, [&](const SentTurns& t) {
    return t.frequencies == table.inverse_frequency.data() && t.magnitude == table.magnitude &&
           t.layout == kv.layout;
  });
  if (sent == turns_.end()) {
    sent = turns_.insert(sent, SentTurns{.frequencies = table.inverse_frequency.data(),
                                         .magnitude = table.magnitude,
                                         .layout = kv.layout});
  }
  return *sent;
}

CudaKv CudaOps::SendTables(const KvBatch& kv) {
  SentTables& sent = TablesOf(kv);
  if (!IsGood(sent, kv)) {
    sent.kv = UploadTables(kv, *uploads_);
    sent.batch = kv.batch;
    sent.round = uploads_->round();
  }
  CudaKv tables = sent.kv;
  tables.cache_layer = kv.cache_layer;
  return tables;
}

SentTurns CudaOps::SendTurns(const RopeTable& table, const KvBatch& kv) {
  SentTurns& sent = TurnsOf(table, kv);
  if (IsGood(sent, kv)) return sent;
  const std::size_t pairs = table.inverse_frequency.size();
  std::vector<std::int32_t> positions;
  for (const SequenceRows& s : kv.sequences) {
    for (std::int32_t i = 0; i < s.rows; ++i) positions.push_back(s.position + i);
  }
  const std::size_t floats = positions.size() * pairs;
  const CudaUploads::Place place = uploads_->Reserve(TurnBytes(table, kv));
  auto* const cos = reinterpret_cast<float*>(place.host);
  const auto fill = [&](std::int64_t i) {
    const auto row = static_cast<std::size_t>(i);
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const CosSin turn =
          CosSinOf(positions[row] * static_cast<double>(table.inverse_frequency[pair]));
      cos[row * pairs + pair] = turn.cos * table.magnitude;
      cos[floats + row * pairs + pair] = turn.sin * table.magnitude;
    }
  };
  const auto rows = static_cast<std::int64_t>(positions.size());
  if (floats >= kParallelTurns) {
    device_.threads().ForEach(rows, [&](int, std::int64_t i) { fill(i); });
  } else {
    for (std::int64_t i = 0; i < rows; ++i) fill(i);
  }
  uploads_->Send(place);
  sent.batch = kv.batch;
  sent.round = uploads_->round();
  sent.cos = reinterpret_cast<const float*>(place.device);
  sent.sin = sent.cos + floats;
  return sent;
}

// First the step only fills tables and takes down what it would start. It is done by the graph of a
// step that was taken down alike, where there is one.
void CudaOps::Repeat(absl::FunctionRef<void()> step) {
  const CudaGraph* const graph = no_graphs_ ? nullptr : GraphOfStep(step);
  if (graph == nullptr) {
    step();
  } else {
    stream_.Launch(*graph);
  }
}

// With its tables sent, or null.
const CudaGraph* CudaOps::GraphOfStep(absl::FunctionRef<void()> step) {
  uploads_->BeginStep();
  launches_.TakeDown();
  step();
  launches_.EndTakingDown();
  const CudaGraph* graph = nullptr;
  if (uploads_->step_is_whole()) {
    graph = graphs_.Find(launches_.key());
    if (graph == nullptr && graphs_.Wants(launches_.key())) graph = MakeGraph(step);
  }
  uploads_->EndStep(/*send=*/graph != nullptr);
  return graph;
}

// Of the step that was taken down.
const CudaGraph* CudaOps::MakeGraph(absl::FunctionRef<void()> step) {
  uploads_->BeginStep();
  absl::StatusOr<std::unique_ptr<CudaGraph>> graph = stream_.Capture(step);
  if (graph.ok()) return graphs_.Add(launches_.key(), *std::move(graph));
  no_graphs_ = true;
  LOG_WARNING("cuda_graphs_off", {{"error", ToStd(graph.status().message())}});
  return nullptr;
}

std::span<const Drawn> CudaOps::Draw(const float* logits, std::int32_t vocab,
                                     std::span<const RowDraw> draws) {
  if (draws.empty()) return {};
  for (const RowDraw& draw : draws) {
    CHECK_EQ(draw.spec.typical_p, 1);
    CHECK_LE(draw.spec.top_logits, kTopLogitsMax);
  }
  const std::size_t bytes = draws.size() * sizeof(Drawn);
  if (drawn_ == nullptr || drawn_->size_bytes() < bytes) {
    CHECK_OK(stream_.Synchronize());  // It may still be written to.
    absl::StatusOr<std::unique_ptr<DeviceMemory>> larger = device_.AllocateHost(2 * bytes);
    device_.MustHave(larger.status());
    drawn_ = *std::move(larger);
  }
  const DrawKinds kinds = KindsOf(draws);
  const std::size_t scratch_bytes = kernels_.draw_scratch_bytes(vocab, kinds);
  std::byte* const scratch = draw_scratch_.AtLeast(scratch_bytes + bytes);
  auto* const out = reinterpret_cast<Drawn*>(scratch + scratch_bytes);
  const CudaUploads::Place place = uploads_->Reserve(draws.size_bytes());
  std::memcpy(place.host, draws.data(), draws.size_bytes());
  uploads_->Send(place);
  Start("Draw", &CudaKernels::draw, logits, vocab, reinterpret_cast<const RowDraw*>(place.device),
        kinds, out, scratch);
  const auto bring = [&] { stream_.Copy(drawn_->data(), scratch + scratch_bytes, bytes); };
  launches_.Call("Drawn", bring, drawn_->data(), scratch, bytes);
  return {reinterpret_cast<const Drawn*>(drawn_->data()), draws.size()};
}

void CudaOps::PrepareAndStore(const PrepareQkv& qkv, const KvBatch& kv) {
  if (kv.sequences.empty()) return;
  CudaPrepare prepare = {.q = qkv.q,
                         .k = qkv.k,
                         .v = qkv.v,
                         .qo_heads = qkv.qo_heads,
                         .q_norm = qkv.q_norm,
                         .k_norm = qkv.k_norm,
                         .norm_eps = qkv.norm_eps};
  if (qkv.rope != nullptr) {
    prepare.pairs = qkv.rope->pairs;
    prepare.rotary_dim = static_cast<std::int32_t>(2 * qkv.rope->inverse_frequency.size());
    if (!IsGood(TurnsOf(*qkv.rope, kv), kv) || !IsGood(TablesOf(kv), kv)) {
      uploads_->MakeRoom(TurnBytes(*qkv.rope, kv) + TableBytes(kv));  // For both in one round.
    }
    const SentTurns turns = SendTurns(*qkv.rope, kv);
    prepare.cos = turns.cos;
    prepare.sin = turns.sin;
  }
  const CudaKv tables = SendTables(kv);
  Start("PrepareAndStore", &CudaKernels::prepare_and_store, prepare, tables);
}

void CudaOps::Attention(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                        const Activations& out) {
  CHECK_EQ(out.cols, qo_heads * kv.layout->group.v_dim);
  if (kv.sequences.empty()) return;
  std::int32_t rows = 0;
  for (const SequenceRows& s : kv.sequences) rows += s.rows;
  float* y = out.f32;
  if (y == nullptr) {
    y = reinterpret_cast<float*>(attention_out_.AtLeast(
        sizeof(float) * static_cast<std::size_t>(rows) * static_cast<std::size_t>(out.cols)));
  }
  // What is recorded is decode, our kernel's.
  const bool is_fast = fast_attention_ != nullptr && !launches_.taking_down() &&
                       !uploads_->in_step() && fast_attention_->Run(q, qo_heads, scale, kv, y);
  if (!is_fast) {
    const CudaKv tables = SendTables(kv);
    std::byte* const scratch = attention_scratch_.AtLeast(
        std::max<std::size_t>(kernels_.attention_scratch_bytes(tables, qo_heads), 1));
    Start("Attention", &CudaKernels::attention, q, qo_heads, scale, tables, y, scratch);
  }
  if (!out.wants_int8()) return;
  Activations quantized = out;
  quantized.f32 = nullptr;  // It is there already.
  Start("QuantizeRows", &CudaKernels::quantize_rows, y, rows, quantized);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(CudaDevice& device, Numerics numerics) {
  return CudaOps::Make(device, numerics);
}

}  // namespace penstock::kernels
