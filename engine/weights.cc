// SPDX-License-Identifier: Apache-2.0
#include "engine/weights.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>
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

// Weight rows packed between two looks at the progress: about a megabyte of file, in whole panels.
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
  WeightsLoader(const model::ModelFile& file, ThreadPool& threads, const Weights::Options& options,
                absl::FunctionRef<void(std::size_t, std::size_t)> progress)
      : file_(file), threads_(threads), options_(options), progress_(progress) {}

  absl::StatusOr<std::unique_ptr<Weights>> Load(Device& device) {
    auto weights = std::make_unique<Weights>();
    Walk(*weights);
    ASSIGN_OR_RETURN(weights->memory_, device.Allocate(used_));
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
    weights.embedding = Matrix(t.embedding);
    weights.output_norm = Vector(t.output_norm, t.norm_offset);
    weights.head = t.head != nullptr ? Matrix(t.head) : weights.embedding;
    weights.layers.resize(t.layers.size());
    for (std::size_t i = 0; i < t.layers.size(); ++i) {
      const model::LayerTensors& from = t.layers[i];
      LayerWeights& to = weights.layers[i];
      to.attn_norm = Vector(from.attn_norm, t.norm_offset);
      to.q = Matrix(from.q);
      to.k = Matrix(from.k);
      to.v = Matrix(from.v);
      to.o = Matrix(from.o);
      to.q_bias = Vector(from.q_bias, 0);
      to.k_bias = Vector(from.k_bias, 0);
      to.v_bias = Vector(from.v_bias, 0);
      to.q_norm = Vector(from.q_norm, t.norm_offset);
      to.k_norm = Vector(from.k_norm, t.norm_offset);
      to.post_attn_norm = Vector(from.post_attn_norm, t.norm_offset);
      to.ffn_norm = Vector(from.ffn_norm, t.norm_offset);
      to.gate = Matrix(from.gate);
      to.up = Matrix(from.up);
      to.down = Matrix(from.down);
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
    const auto n = static_cast<std::size_t>(tensor->cols());
    auto* to = reinterpret_cast<float*>(Take(n * sizeof(float)));
    if (to == nullptr) return nullptr;
    if (options_.digest) {
      const Sha256Digest digest = Sha256Of(tensor->bytes.data(), tensor->bytes.size());
      AddToDigest(*tensor, {&digest, 1});
    }
    Write(reinterpret_cast<std::byte*>(to), n * sizeof(float), [&](std::byte* place) {
      const std::span<float> values(reinterpret_cast<float*>(place), n);
      kernels::DequantizeRow(tensor->format, tensor->bytes.data(), values);
      if (offset == 0) return;
      for (float& value : values) value += offset;
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

  PackedMatrix Matrix(const Tensor* tensor) {
    CHECK(tensor != nullptr);
    PackedMatrix m;
    m.format = options_.widen_to_f32 ? WeightFormat::kF32 : tensor->format;
    m.rows = static_cast<std::int32_t>(tensor->rows());
    m.cols = static_cast<std::int32_t>(tensor->cols());
    std::byte* to = Take(kernels::PackedBytes(m.format, m.rows, m.cols));
    m.data = to;
    if (to != nullptr) {
      Pack(*tensor, m, to);
      progress_(used_, total_);
    }
    return m;
  }

  void Pack(const Tensor& tensor, const PackedMatrix& m, std::byte* to) {
    const std::size_t row_bytes = kernels::BytesOf(tensor.format, 1, m.cols);
    const auto rows_of_piece = static_cast<std::int32_t>(std::max<std::size_t>(
                                   kPieceBytes / row_bytes / kernels::kPanelRows, 1)) *
                               kernels::kPanelRows;
    std::vector<Sha256Digest> digests(
        options_.digest ? static_cast<std::size_t>((m.rows + rows_of_piece - 1) / rows_of_piece)
                        : 0);
    // In place all at once, else as many pieces as a stage holds.
    std::int32_t rows_of_part = m.rows;
    if (stages_ != nullptr) {
      const std::size_t piece = kernels::PackedBytes(m.format, rows_of_piece, m.cols);
      rows_of_part =
          rows_of_piece * static_cast<std::int32_t>(std::max<std::size_t>(kStageBytes / piece, 1));
    }
    for (std::int32_t row = 0; row < m.rows; row += rows_of_part) {
      const std::int32_t rows = std::min(rows_of_part, m.rows - row);
      const std::size_t bytes = kernels::PackedBytes(m.format, rows, m.cols);
      Write(to, bytes, [&](std::byte* place) {
        PackPart(tensor, m, {row, rows, rows_of_piece}, digests, place);
      });
      to += bytes;
    }
    if (options_.digest) AddToDigest(tensor, digests);
  }

  struct Part {
    std::int32_t row_begin;
    std::int32_t rows;  // Whole panels, but for the matrix's last.
    std::int32_t rows_of_piece;
  };
  // Packs rows of the matrix as a matrix of their own, on all threads.
  void PackPart(const Tensor& tensor, const PackedMatrix& m, const Part& part,
                std::span<Sha256Digest> digests, std::byte* to) {
    const std::size_t row_bytes = kernels::BytesOf(tensor.format, 1, m.cols);
    std::atomic<std::int32_t> next{0};
    threads_.Run([&](int) {
      std::vector<float> wide;
      for (std::int32_t row = next.fetch_add(part.rows_of_piece); row < part.rows;
           row = next.fetch_add(part.rows_of_piece)) {
        const std::int32_t in_matrix = part.row_begin + row;
        const std::int32_t rows = std::min(part.rows_of_piece, part.rows - row);
        const auto piece = tensor.bytes.subspan(static_cast<std::size_t>(in_matrix) * row_bytes,
                                                static_cast<std::size_t>(rows) * row_bytes);
        if (options_.digest) {
          digests[static_cast<std::size_t>(in_matrix / part.rows_of_piece)] =
              Sha256Of(piece.data(), piece.size());
        }
        std::span<const std::byte> from = piece;
        if (m.format != tensor.format) {
          Widen(tensor.format, piece, m.cols, wide);
          from = std::as_bytes(std::span(wide));
        }
        kernels::PackRows(m.format, part.rows, m.cols, row, from, to);
        file_.Drop(piece);
      }
    });
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
  ThreadPool& threads_;
  const Weights::Options options_;
  absl::FunctionRef<void(std::size_t, std::size_t)> progress_;
  Sha256 digest_;
  std::byte* memory_ = nullptr;
  std::unique_ptr<Stages> stages_;  // Where the host cannot see that memory.
  absl::Status staged_;
  std::size_t used_ = 0;
  std::size_t total_ = 0;
};

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(
    const model::ModelFile& file, Device& device, ThreadPool& threads, const Options& options,
    absl::FunctionRef<void(std::size_t, std::size_t)> progress) {
  return WeightsLoader(file, threads, options, progress).Load(device);
}

}  // namespace penstock::engine
