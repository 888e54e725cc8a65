// SPDX-License-Identifier: Apache-2.0
#include "engine/weights.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/key.h"
#include "base/sha256.h"
#include "base/status.h"

namespace penstock::engine {
namespace {

using kernels::PackedMatrix;
using kernels::WeightFormat;
using model::Tensor;

// Of file, packed between two looks at the progress.
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
// Packed bytes that go to another device at once.
constexpr std::size_t kStageBytes = std::size_t{16} << 20;

std::size_t Align64(std::size_t n) { return (n + 63) / 64 * 64; }

// Two buffers on the host, one of which is filled while the device copies from the other.
class Stages {
 public:
  explicit Stages(Device& device) : device_(device) {
    for (Stage& stage : stages_) stage.stream = device.NewStream();
  }

  // At least `bytes` to be filled, which no copy reads any more.
  absl::StatusOr<std::byte*> Fill(std::size_t bytes) {
    Stage& stage = stages_[now_];
    RETURN_IF_ERROR(stage.stream->Synchronize());
    if (stage.memory == nullptr || stage.memory->size_bytes() < bytes) {
      ASSIGN_OR_RETURN(stage.memory, device_.AllocateHost(std::max(bytes, kStageBytes)));
    }
    return stage.memory->data();
  }
  // Copies what was filled, and turns to the other one.
  void Send(std::byte* to, std::size_t bytes) {
    Stage& stage = stages_[now_];
    stage.stream->Copy(to, stage.memory->data(), bytes);
    now_ = 1 - now_;
  }
  absl::Status Finish() {
    RETURN_IF_ERROR(stages_[0].stream->Synchronize());
    return stages_[1].stream->Synchronize();
  }

 private:
  struct Stage {
    std::unique_ptr<DeviceMemory> memory;
    std::unique_ptr<Stream> stream;  // After `memory`, of which it may still copy.
  };
  Device& device_;
  Stage stages_[2];
  std::size_t now_ = 0;
};

}  // namespace

// Walks the tensors twice: first to add up the memory they need, then to fill it.
class WeightsLoader {
 public:
  // `threads` may be null where nothing is loaded.
  WeightsLoader(const model::ModelFile& file, ThreadPool* threads, const Weights::Options& options,
                absl::FunctionRef<void(std::size_t, std::size_t)> progress)
      : file_(file), threads_(threads), options_(options), progress_(progress) {}

  std::size_t Measure() {
    Weights weights;
    Walk(weights);
    return used_;
  }

  absl::StatusOr<std::unique_ptr<Weights>> Load(Device& device) {
    auto weights = std::make_unique<Weights>();
    weights->part_ = options_.part;
    ASSIGN_OR_RETURN(weights->memory_, device.Allocate(Measure()));
    if (!weights->memory_->host_visible()) stages_ = std::make_unique<Stages>(device);
    memory_ = weights->memory_->data();
    total_ = used_;
    used_ = 0;
    Walk(*weights);
    CHECK_EQ(used_, total_);
    if (stages_ != nullptr && staged_.ok()) staged_ = stages_->Finish();
    RETURN_IF_ERROR(staged_);
    if (options_.digest) weights->digest_ = ToHex(digest_.Finish());
    return weights;
  }

 private:
  void Walk(Weights& weights) {
    const model::ModelTensors& t = file_.tensors();
    const model::Architecture& a = file_.architecture();
    const TensorShard& shard = options_.part.shard;
    const PipelineStage& stage = options_.part.stage;
    const ShardRange vocab = VocabOf(a, shard);
    const ShardRange q = RowsOf(QoHeadsOf(a, shard), a.head_dim);
    const ShardRange kv = RowsOf(KvHeadsOf(a.kv_heads, shard), a.head_dim);
    const ShardRange ffn = FfnOf(a, shard);
    const bool tied = t.head == nullptr;
    kept_ = stage.first() || (tied && stage.last());
    weights.embedding = Rows(t.embedding, vocab);
    kept_ = stage.last();
    weights.output_norm = Vector(t.output_norm, t.norm_offset);
    if (!tied) weights.head = Rows(t.head, vocab);
    if (tied && kept_) weights.head = weights.embedding;
    const ShardRange layers = LayersOf(static_cast<std::int32_t>(t.layers.size()), stage);
    for (std::size_t i = 0; i < t.layers.size(); ++i) {
      const model::LayerTensors& from = t.layers[i];
      kept_ = std::cmp_greater_equal(i, layers.begin) && std::cmp_less(i, layers.end);
      LayerWeights other;
      LayerWeights& to = kept_ ? weights.layers.emplace_back() : other;
      to.attn_norm = Vector(from.attn_norm, t.norm_offset);
      to.q = Rows(from.q, q);
      to.k = Rows(from.k, kv);
      to.v = Rows(from.v, kv);
      to.o = Sums(from.o);
      to.q_bias = Vector(from.q_bias, 0, q);
      to.k_bias = Vector(from.k_bias, 0, kv);
      to.v_bias = Vector(from.v_bias, 0, kv);
      to.q_norm = Vector(from.q_norm, t.norm_offset);
      to.k_norm = Vector(from.k_norm, t.norm_offset);
      to.post_attn_norm = Vector(from.post_attn_norm, t.norm_offset);
      to.ffn_norm = Vector(from.ffn_norm, t.norm_offset);
      to.gate = Rows(from.gate, ffn);
      to.up = Rows(from.up, ffn);
      to.down = Sums(from.down);
      to.post_ffn_norm = Vector(from.post_ffn_norm, t.norm_offset);
    }
  }

  // Where the next `bytes` go; null on the first walk.
  std::byte* Take(std::size_t bytes) {
    std::byte* place = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += Align64(bytes);
    return place;
  }

  // `tensor` may be null where `offset` and all else are moot.
  const float* Vector(const Tensor* tensor, float offset) {
    if (tensor == nullptr) return nullptr;
    return Vector(tensor, offset, {0, static_cast<std::int32_t>(tensor->cols())});
  }
  const float* Vector(const Tensor* tensor, float offset, const ShardRange& kept) {
    if (tensor == nullptr) return nullptr;
    if (!kept_) {
      AddWholeToDigest(*tensor);
      return nullptr;
    }
    const std::size_t bytes = static_cast<std::size_t>(kept.size()) * sizeof(float);
    auto* to = reinterpret_cast<float*>(Take(bytes));
    if (to == nullptr) return nullptr;
    if (options_.digest) {
      const Sha256Digest digest = Sha256Of(tensor->bytes.data(), tensor->bytes.size());
      AddToDigest(*tensor, {&digest, 1});
    }
    Write(reinterpret_cast<std::byte*>(to), bytes, [&](std::byte* place) {
      std::vector<float> all(static_cast<std::size_t>(tensor->cols()));
      kernels::DequantizeRow(tensor->format, tensor->bytes.data(), all);
      auto* const values = reinterpret_cast<float*>(place);
      for (std::int32_t i = 0; i < kept.size(); ++i) {
        values[i] = all[static_cast<std::size_t>(kept.begin + i)];
        if (offset != 0) values[i] += offset;
      }
    });
    return to;
  }

  // Calls fill(place) so that what it writes there comes to be at `to`.
  template <typename Fill>
  void Write(std::byte* to, std::size_t bytes, const Fill& fill) {
    if (stages_ == nullptr) return fill(to);
    if (!staged_.ok()) return;
    const absl::StatusOr<std::byte*> place = stages_->Fill(bytes);
    if (!place.ok()) {
      staged_ = place.status();
      return;
    }
    fill(*place);
    stages_->Send(to, bytes);
  }

  static ShardRange RowsOf(const ShardRange& heads, std::int32_t head_dim) {
    return {heads.begin * head_dim, heads.end * head_dim};
  }

  // What of a tensor becomes a matrix.
  struct Piece {
    const Tensor* tensor;
    ShardRange rows;
    ShardRange cols;
    bool whole() const { return rows.size() == tensor->rows() && cols.size() == tensor->cols(); }
  };

  PackedMatrix Rows(const Tensor* tensor, const ShardRange& rows) {
    CHECK(tensor != nullptr);
    if (!kept_) {
      AddWholeToDigest(*tensor);
      return {};
    }
    const Piece piece = {tensor, rows, {0, static_cast<std::int32_t>(tensor->cols())}};
    const PackedMatrix m = Matrix(piece);
    if (!piece.whole()) AddWholeToDigest(*tensor);
    return m;
  }

  // The columns of each of the shard's partial sums.
  std::vector<PackedMatrix> Sums(const Tensor* tensor) {
    CHECK(tensor != nullptr);
    if (!kept_) {
      AddWholeToDigest(*tensor);
      return {};
    }
    const TensorShard& shard = options_.part.shard;
    const auto rows = static_cast<std::int32_t>(tensor->rows());
    const auto cols = static_cast<std::int32_t>(tensor->cols()) / shard.sums;
    std::vector<PackedMatrix> sums;
    for (std::int32_t i = 0; i < shard.own_sums(); ++i) {
      const std::int32_t begin = (shard.index * shard.own_sums() + i) * cols;
      sums.push_back(Matrix({tensor, {0, rows}, {begin, begin + cols}}));
    }
    if (shard.sums > 1) AddWholeToDigest(*tensor);
    return sums;
  }

  PackedMatrix Matrix(const Piece& piece) {
    PackedMatrix m;
    m.format = options_.widen_to_f32 ? WeightFormat::kF32 : piece.tensor->format;
    m.rows = piece.rows.size();
    m.cols = piece.cols.size();
    std::byte* to = Take(kernels::PackedBytes(m.format, m.rows, m.cols));
    m.data = to;
    if (to != nullptr) {
      Pack(piece, m, to);
      progress_(used_, total_);
    }
    return m;
  }

  // About a megabyte of file, in whole panels.
  static std::int32_t RowsAtOnce(const Tensor& tensor) {
    const std::size_t row_bytes =
        kernels::BytesOf(tensor.format, 1, static_cast<std::int32_t>(tensor.cols()));
    return static_cast<std::int32_t>(
               std::max<std::size_t>(kPieceBytes / row_bytes / kernels::kPanelRows, 1)) *
           kernels::kPanelRows;
  }

  void Pack(const Piece& piece, const PackedMatrix& m, std::byte* to) {
    const std::int32_t rows_at_once = RowsAtOnce(*piece.tensor);
    const bool digest = options_.digest && piece.whole();
    std::vector<Sha256Digest> digests(
        digest ? static_cast<std::size_t>((m.rows + rows_at_once - 1) / rows_at_once) : 0);
    // In place all at once, else as many as a stage holds.
    std::int32_t rows_of_part = m.rows;
    if (stages_ != nullptr) {
      const std::size_t bytes = kernels::PackedBytes(m.format, rows_at_once, m.cols);
      rows_of_part =
          rows_at_once * static_cast<std::int32_t>(std::max<std::size_t>(kStageBytes / bytes, 1));
    }
    for (std::int32_t row = 0; row < m.rows; row += rows_of_part) {
      const std::int32_t rows = std::min(rows_of_part, m.rows - row);
      const std::size_t bytes = kernels::PackedBytes(m.format, rows, m.cols);
      Write(to, bytes, [&](std::byte* place) {
        PackPart(piece, m, {row, rows, rows_at_once}, digests, place);
      });
      to += bytes;
    }
    if (digest) AddToDigest(*piece.tensor, digests);
  }

  struct Part {
    std::int32_t row_begin;
    std::int32_t rows;  // Whole panels, but for the matrix's last.
    std::int32_t rows_at_once;
  };
  // Packs rows of the matrix as a matrix of their own, on all threads.
  void PackPart(const Piece& piece, const PackedMatrix& m, const Part& part,
                std::span<Sha256Digest> digests, std::byte* to) {
    std::atomic<std::int32_t> next{0};
    threads_->Run([&](int) {
      std::vector<float> wide;
      std::vector<std::byte> cut;
      for (std::int32_t row = next.fetch_add(part.rows_at_once); row < part.rows;
           row = next.fetch_add(part.rows_at_once)) {
        const std::int32_t in_matrix = part.row_begin + row;
        const std::int32_t rows = std::min(part.rows_at_once, part.rows - row);
        const std::span<const std::byte> file_rows =
            FileRows(*piece.tensor, piece.rows.begin + in_matrix, rows);
        if (!digests.empty()) {
          digests[static_cast<std::size_t>(in_matrix / part.rows_at_once)] =
              Sha256Of(file_rows.data(), file_rows.size());
        }
        std::span<const std::byte> from = Columns(piece, file_rows, rows, cut);
        if (m.format != piece.tensor->format) {
          Widen(piece.tensor->format, from, m.cols, wide);
          from = std::as_bytes(std::span(wide));
        }
        kernels::PackRows(m.format, part.rows, m.cols, row, from, to);
        file_.Drop(file_rows);
      }
    });
  }

  static std::span<const std::byte> FileRows(const Tensor& tensor, std::int32_t row_begin,
                                             std::int32_t rows) {
    const std::size_t row_bytes =
        kernels::BytesOf(tensor.format, 1, static_cast<std::int32_t>(tensor.cols()));
    return tensor.bytes.subspan(static_cast<std::size_t>(row_begin) * row_bytes,
                                static_cast<std::size_t>(rows) * row_bytes);
  }

  // Of whole rows the columns that the piece has; `cut` is where they are put together.
  static std::span<const std::byte> Columns(const Piece& piece, std::span<const std::byte> rows,
                                            std::int32_t count, std::vector<std::byte>& cut) {
    if (piece.cols.size() == piece.tensor->cols()) return rows;
    const WeightFormat format = piece.tensor->format;
    const std::size_t before = kernels::BytesOf(format, 1, piece.cols.begin);
    const std::size_t bytes = kernels::BytesOf(format, 1, piece.cols.size());
    const std::size_t row_bytes = rows.size() / static_cast<std::size_t>(count);
    cut.clear();
    for (std::size_t at = before; at < rows.size(); at += row_bytes) {
      const auto from = rows.begin() + static_cast<std::ptrdiff_t>(at);
      cut.insert(cut.end(), from, from + static_cast<std::ptrdiff_t>(bytes));
    }
    return cut;
  }

  // Of a tensor that is not packed whole.
  void AddWholeToDigest(const Tensor& tensor) {
    if (!options_.digest || memory_ == nullptr) return;
    const auto all = static_cast<std::int32_t>(tensor.rows());
    const std::int32_t at_once = RowsAtOnce(tensor);
    std::vector<Sha256Digest> digests(static_cast<std::size_t>((all + at_once - 1) / at_once));
    threads_->ForEach(static_cast<std::int64_t>(digests.size()), [&](int, std::int64_t i) {
      const auto begin = static_cast<std::int32_t>(i) * at_once;
      const std::span<const std::byte> rows =
          FileRows(tensor, begin, std::min(at_once, all - begin));
      digests[static_cast<std::size_t>(i)] = Sha256Of(rows.data(), rows.size());
      file_.Drop(rows);
    });
    AddToDigest(tensor, digests);
  }

  void AddToDigest(const Tensor& tensor, std::span<const Sha256Digest> pieces) {
    const std::string head = absl::StrCat(ToAbsl(kernels::Info(tensor.format).name), " ",
                                          tensor.rows(), "x", tensor.cols(), ";");
    digest_.Add(head.data(), head.size());
    digest_.Add(pieces.data(), pieces.size_bytes());
  }

  static void Widen(WeightFormat format, std::span<const std::byte> rows, std::int32_t cols,
                    std::vector<float>& wide) {
    const std::size_t row_bytes = kernels::BytesOf(format, 1, cols);
    const std::size_t count = rows.size() / row_bytes;
    wide.resize(count * static_cast<std::size_t>(cols));
    for (std::size_t r = 0; r < count; ++r) {
      kernels::DequantizeRow(format, rows.data() + r * row_bytes,
                             std::span(wide).subspan(r * static_cast<std::size_t>(cols),
                                                     static_cast<std::size_t>(cols)));
    }
  }

  const model::ModelFile& file_;
  ThreadPool* const threads_;
  const Weights::Options options_;
  absl::FunctionRef<void(std::size_t, std::size_t)> progress_;
  Sha256 digest_;
  bool kept_ = true;  // Of the tensors at hand: the stage has them.
  std::byte* memory_ = nullptr;
  std::unique_ptr<Stages> stages_;  // Where the host cannot see that memory.
  absl::Status staged_;
  std::size_t used_ = 0;
  std::size_t total_ = 0;
};

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(
    const model::ModelFile& file, Device& device, ThreadPool& threads, const Options& options,
    absl::FunctionRef<void(std::size_t, std::size_t)> progress) {
  return WeightsLoader(file, &threads, options, progress).Load(device);
}

std::size_t Weights::BytesOf(const model::ModelFile& file, const Options& options) {
  return WeightsLoader(file, nullptr, options, [](std::size_t, std::size_t) {}).Measure();
}

}  // namespace penstock::engine
