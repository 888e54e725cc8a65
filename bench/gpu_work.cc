// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu_work.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/kv_spec.h"
#include "base/status.h"
#include "bench/gpu_work_parts.h"
#include "kernels/cuda_kernels.h"
#include "kernels/packed_matrix.h"
#include "model/rope_frequencies.h"

namespace penstock::bench {
namespace {

using kernels::Activations;
using kernels::PackedMatrix;

// ---- Rows.

struct RowsWork : WorkBase {
  float* in = nullptr;
  float* w = nullptr;
  float* out_floats = nullptr;
  Activations out;
  std::vector<std::int32_t> index;
};

absl::StatusOr<std::unique_ptr<GpuWork>> MakeRows(const GpuCase& c, CudaDevice& device,
                                                  CudaStream& stream, kernels::Ops& ops) {
  auto work = std::make_unique<RowsWork>();
  RETURN_IF_ERROR(work->Take(device, stream, Floats(c.rows, c.cols), work->in));
  if (c.kernel == "gather") {
    RETURN_IF_ERROR(work->Take(device, stream, Floats(c.rows, c.cols), work->out_floats));
    for (std::int32_t i = 0; i < c.rows; ++i) work->index.push_back(c.rows - 1 - i);
    work->start = [w = work.get(), cols = c.cols, &ops](std::int64_t) {
      ops.GatherRows(w->in, cols, w->index, w->out_floats);
    };
    return work;
  }
  RETURN_IF_ERROR(work->Take(device, stream, static_cast<std::size_t>(c.cols), work->w));
  RETURN_IF_ERROR(work->TakeRows(device, stream, c.rows, c.cols, work->out));
  work->start = [w = work.get(), rows = c.rows, &ops](std::int64_t) {
    ops.RmsNorm(w->in, w->w, 1e-5f, rows, w->out);
  };
  return work;
}

// ---- Tokens.

struct DrawWork : WorkBase {
  std::vector<float> row;
  float* logits = nullptr;  // [copies, rows, vocab]
  std::vector<kernels::RowDraw> draws;
};

absl::StatusOr<std::unique_ptr<GpuWork>> MakeDraw(const GpuCase& c, CudaDevice& device,
                                                  CudaStream& stream, kernels::Ops& ops,
                                                  std::size_t round_bytes) {
  auto work = std::make_unique<DrawWork>();
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);  // About as wide as a model's.
  for (std::int32_t i = 0; i < c.cols; ++i) work->row.push_back(normal(random));
  const std::size_t floats = Floats(c.rows, c.cols);
  const std::size_t copies = Copies(floats * sizeof(float), round_bytes);
  RETURN_IF_ERROR(work->Take(device, stream, copies * floats, work->logits));
  for (std::size_t i = 0; i < copies * static_cast<std::size_t>(c.rows); ++i) {
    stream.Copy(reinterpret_cast<std::byte*>(work->logits + i * work->row.size()),
                reinterpret_cast<const std::byte*>(work->row.data()),
                work->row.size() * sizeof(float));
  }
  RETURN_IF_ERROR(stream.Synchronize());
  for (std::int32_t row = 0; row < c.rows; ++row) {
    kernels::DrawSpec spec = {.temperature = 1, .uniform = (row + 0.5) / c.rows};
    if (c.filters) {
      spec.top_k = 40;
      spec.top_p = 0.9;
    }
    work->draws.push_back({row, spec});
  }
  work->start = [w = work.get(), vocab = c.cols, floats, copies, &ops](std::int64_t call) {
    const std::size_t copy = static_cast<std::size_t>(call) % copies;
    (void)ops.Draw(w->logits + copy * floats, vocab, w->draws);
  };
  return work;
}

// ---- Products.

struct MatrixWork : WorkBase {
  Activations in;
  std::vector<PackedMatrix> matrices;  // Those of one call after those of another.
  std::vector<float*> y;               // One per matrix of a call.
  Activations out;
  std::vector<TokenId> tokens;
};

absl::Status TakeMatrices(const GpuCase& c, CudaDevice& device, CudaStream& stream,
                          std::size_t round_bytes, MatrixWork& work) {
  for (const std::int32_t outputs : c.outputs) {
    work.weights_bytes += kernels::PackedBytes(c.format, outputs, c.cols);
  }
  const std::size_t copies = Copies(work.weights_bytes, round_bytes);
  ASSIGN_OR_RETURN(std::byte * at, work.Take(device, stream, copies * work.weights_bytes));
  for (std::size_t i = 0; i < copies; ++i) {
    for (const std::int32_t outputs : c.outputs) {
      work.matrices.push_back({c.format, outputs, c.cols, at});
      at += kernels::PackedBytes(c.format, outputs, c.cols);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GpuWork>> MakeMatrices(const GpuCase& c, CudaDevice& device,
                                                      CudaStream& stream, kernels::Ops& ops,
                                                      std::size_t round_bytes) {
  const std::size_t per_call = c.outputs.size();
  auto work = std::make_unique<MatrixWork>();
  RETURN_IF_ERROR(TakeMatrices(c, device, stream, round_bytes, *work));
  if (c.kernel == "embed") {
    // Spread over the whole table.
    for (std::int32_t i = 0; i < c.rows; ++i) {
      work->tokens.push_back(static_cast<TokenId>(std::int64_t{i} * 7919 % c.outputs[0]));
    }
    RETURN_IF_ERROR(work->Take(device, stream, Floats(c.rows, c.cols), work->y.emplace_back()));
    work->weights_bytes = work->weights_bytes / static_cast<std::size_t>(c.outputs[0]) *
                          static_cast<std::size_t>(c.rows);
    work->start = [w = work.get(), &ops](std::int64_t call) {
      ops.Embed(w->matrices[static_cast<std::size_t>(call) % w->matrices.size()], w->tokens, 1,
                w->y[0]);
    };
    return work;
  }
  RETURN_IF_ERROR(work->TakeRows(device, stream, c.rows, c.cols, work->in));
  if (!work->matrices[0].takes_int8()) {
    RETURN_IF_ERROR(work->Take(device, stream, Floats(c.rows, c.cols), work->in.f32));
  }
  if (c.kernel == "gated") {
    RETURN_IF_ERROR(work->TakeRows(device, stream, c.rows, c.outputs[0], work->out));
    work->start = [w = work.get(), rows = c.rows, &ops](std::int64_t call) {
      const PackedMatrix* const pair =
          &w->matrices[2 * static_cast<std::size_t>(call) % w->matrices.size()];
      ops.GatedLinear(w->in, rows, pair[0], pair[1], kernels::Activation::kSilu, w->out);
    };
    return work;
  }
  for (const std::int32_t outputs : c.outputs) {
    RETURN_IF_ERROR(work->Take(device, stream, Floats(c.rows, outputs), work->y.emplace_back()));
  }
  work->start = [w = work.get(), rows = c.rows, add = c.add, per_call, &ops](std::int64_t call) {
    const PackedMatrix* const first =
        &w->matrices[per_call * static_cast<std::size_t>(call) % w->matrices.size()];
    std::vector<kernels::LinearOutput> outputs;
    for (std::size_t i = 0; i < per_call; ++i) {
      outputs.push_back({.matrix = first + i, .y = w->y[i], .add = add});
    }
    ops.Linear(w->in, rows, outputs);
  };
  return work;
}

struct UnpackWork : MatrixWork {
  explicit UnpackWork(CudaDevice& device)
      : stream(device.plugin(), device.gpu()), plugin(device.plugin()) {
    wait = [this] { return stream.Synchronize(); };
  }
  CudaStream stream;
  const CudaPlugin& plugin;
  float* dense = nullptr;  // [outputs, cols], of floats where the format is one.
};

absl::StatusOr<std::unique_ptr<GpuWork>> MakeUnpack(const GpuCase& c, CudaDevice& device,
                                                    std::size_t round_bytes) {
  auto work = std::make_unique<UnpackWork>(device);
  RETURN_IF_ERROR(TakeMatrices(c, device, work->stream, round_bytes, *work));
  RETURN_IF_ERROR(work->Take(device, work->stream, Floats(c.outputs[0], c.cols), work->dense));
  work->start = [w = work.get(), cols = c.cols](std::int64_t call) {
    const PackedMatrix& matrix = w->matrices[static_cast<std::size_t>(call) % w->matrices.size()];
    w->stream.Expect(w->plugin.kernels->unpack_rows(matrix, reinterpret_cast<std::byte*>(w->dense),
                                                    cols, w->stream.handle()),
                     "unpack");
  };
  return work;
}

// ---- Attention.

struct AttentionWork : WorkBase {
  PageLayout layout;
  std::byte* pool = nullptr;
  std::size_t slab_bytes = 0;
  std::vector<kernels::SlabRef> slabs;
  std::vector<kernels::SequenceRows> sequences;
  float *q = nullptr, *k = nullptr, *v = nullptr;
  std::vector<float> frequencies;
  kernels::RopeTable rope;
  Activations out;
  kernels::KvBatch kv;
};

// Sequences of `rows` rows from `position` on, whose neighbouring blocks lie apart.
absl::Status TakePool(const GpuCase& c, CudaDevice& device, CudaStream& stream,
                      std::size_t round_bytes, AttentionWork& work) {
  const std::int32_t blocks = (c.position + c.rows + kBlockTokens - 1) / kBlockTokens;
  const auto slabs = static_cast<std::size_t>(blocks) * static_cast<std::size_t>(c.sequences);
  KvGroup group = {.cache_layers = 1,
                   .kv_heads = c.kv_heads,
                   .k_dim = c.head_dim,
                   .v_dim = c.head_dim,
                   .dtype = c.kv_dtype};
  ASSIGN_OR_RETURN(const PageLayout one, PageLayout::Make(group, kBlockTokens, kBlockTokens));
  group.cache_layers = static_cast<std::int32_t>(Copies(one.block_bytes() * slabs, round_bytes));
  ASSIGN_OR_RETURN(work.layout, PageLayout::Make(group, kBlockTokens, kBlockTokens));
  work.slab_bytes = work.layout.slab_bytes();
  RETURN_IF_ERROR(work.Take(device, stream, work.slab_bytes * slabs, work.pool));
  for (std::int32_t s = 0; s < c.sequences; ++s) {
    for (std::int32_t b = 0; b < blocks; ++b) {
      work.slabs.push_back({.index = static_cast<std::uint32_t>(b * c.sequences + s) & 0xffffff});
    }
  }
  for (std::int32_t s = 0; s < c.sequences; ++s) {
    work.sequences.push_back(
        {.row_begin = s * c.rows,
         .rows = c.rows,
         .position = c.position,
         .slabs = std::span(work.slabs)
                      .subspan(static_cast<std::size_t>(s) * static_cast<std::size_t>(blocks),
                               static_cast<std::size_t>(blocks))});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GpuWork>> MakeAttention(const GpuCase& c, CudaDevice& device,
                                                       CudaStream& stream, kernels::Ops& ops,
                                                       std::size_t round_bytes) {
  auto work = std::make_unique<AttentionWork>();
  RETURN_IF_ERROR(TakePool(c, device, stream, round_bytes, *work));
  const std::int64_t rows = std::int64_t{1} * c.sequences * c.rows;
  RETURN_IF_ERROR(
      work->Take(device, stream, Floats(rows, std::int64_t{c.qo_heads} * c.head_dim), work->q));
  const std::size_t kv_floats = Floats(rows, std::int64_t{c.kv_heads} * c.head_dim);
  RETURN_IF_ERROR(work->Take(device, stream, kv_floats, work->k));
  RETURN_IF_ERROR(work->Take(device, stream, kv_floats, work->v));
  RETURN_IF_ERROR(work->TakeRows(device, stream, static_cast<std::int32_t>(rows),
                                 c.qo_heads * c.head_dim, work->out));
  work->kv = {.layout = &work->layout,
              .pools = {std::span(&work->pool, 1), std::span(&work->slab_bytes, 1)},
              .sequences = work->sequences,
              .batch = ops.NewBatch()};
  const auto of_layer = [w = work.get()](std::int64_t call) -> const kernels::KvBatch& {
    w->kv.cache_layer = static_cast<std::int32_t>(call % w->layout.group.cache_layers);
    return w->kv;
  };
  if (c.kernel == "attention") {
    const float scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
    work->start = [w = work.get(), qo_heads = c.qo_heads, scale, of_layer,
                   &ops](std::int64_t call) {
      ops.Attention(w->q, qo_heads, scale, of_layer(call), w->out);
    };
    return work;
  }
  work->frequencies = model::InverseFrequencies(5e5f, c.head_dim, 1);
  work->rope.inverse_frequency = work->frequencies;
  work->start = [w = work.get(), qo_heads = c.qo_heads, of_layer, &ops](std::int64_t call) {
    ops.PrepareAndStore({.q = w->q, .k = w->k, .v = w->v, .qo_heads = qo_heads, .rope = &w->rope},
                        of_layer(call));
  };
  return work;
}

absl::StatusOr<std::unique_ptr<GpuWork>> MakeAny(const GpuCase& c, CudaDevice& device,
                                                 CudaStream& stream, kernels::Ops& ops,
                                                 std::size_t round_bytes) {
  if (c.kernel == "rms_norm" || c.kernel == "gather") return MakeRows(c, device, stream, ops);
  if (c.kernel == "draw") return MakeDraw(c, device, stream, ops, round_bytes);
  if (c.kernel == "prepare" || c.kernel == "attention") {
    return MakeAttention(c, device, stream, ops, round_bytes);
  }
  if (c.kernel == "copy" || c.kernel == "copy_both") return MakeCopy(c, device, stream);
  if (c.kernel == "copy_units") return MakeUnits(c, device, round_bytes);
  if (c.kernel == "encode_kv" || c.kernel == "decode_kv") {
    return MakeCoded(c, device, stream, ops, round_bytes);
  }
  if (c.kernel == "unpack") return MakeUnpack(c, device, round_bytes);
  return MakeMatrices(c, device, stream, ops, round_bytes);
}

}  // namespace

absl::Status Fill(CudaStream& stream, std::byte* data, std::size_t bytes) {
  std::vector<std::uint16_t> numbers(std::size_t{1} << 19);
  std::uint32_t state = 1;
  for (std::uint16_t& x : numbers) {
    state = state * 1664525 + 1013904223;
    x = static_cast<std::uint16_t>(((state >> 16) & 0x83ff) | 0x3800);
  }
  std::size_t done = std::min(bytes, numbers.size() * 2);
  stream.Copy(data, reinterpret_cast<const std::byte*>(numbers.data()), done);
  while (done < bytes) {
    const std::size_t more = std::min(done, bytes - done);
    stream.Copy(data + done, data, more);
    done += more;
  }
  return stream.Synchronize();
}

absl::StatusOr<std::unique_ptr<GpuWork>> MakeGpuWork(const GpuCase& c, CudaDevice& device,
                                                     kernels::Ops& ops, std::size_t round_bytes) {
  CudaStream stream(device.plugin(), device.gpu());  // For filling memory.
  ASSIGN_OR_RETURN(std::unique_ptr<GpuWork> work, MakeAny(c, device, stream, ops, round_bytes));
  if (!work->wait) work->wait = [&ops] { return ops.stream().Synchronize(); };
  return work;
}

}  // namespace penstock::bench
