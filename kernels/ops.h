// SPDX-License-Identifier: Apache-2.0
// The operations that a forward pass is made of, on whole batches, in the order of a stream. The
// engine is written against this interface alone; each device has one implementation (cpu_ops.cc,
// cuda_ops.cc).
//
// All pointers are device addresses. Calls return when the work is queued in stream(); on the CPU
// when it is done, spread over the device's threads. Shapes are CHECKed. An Ops object belongs to one stream's
// thread; it owns scratch memory that grows to the largest batch seen.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/kv_spec.h"
#include "device/device.h"
#include "kernels/activations.h"
#include "kernels/draw.h"
#include "kernels/elementwise.h"
#include "kernels/kv_quant_way.h"
#include "kernels/numerics.h"
#include "kernels/packed_matrix.h"

namespace penstock {
class CpuDevice;
class CudaDevice;
}  // namespace penstock

namespace penstock::kernels {

// Names a slab: which pool, and where in it.
struct SlabRef {
  std::uint32_t pool : 8 = 0;  // 0 is the worker's own, the only one that is written. Others are
                               // mapped memory of other processes.
  std::uint32_t index : 24 = 0;
  bool operator==(const SlabRef&) const = default;
};

// Where the slabs of one group lie. Slab i of pool p starts at base[p] + i * stride_bytes[p]: of the
// own pool the stride is a slab's bytes, of a mapped one a page's of 4 KiB, since slabs lie there
// wherever a page begins.
struct SlabPools {
  std::span<std::byte* const> base;
  std::span<const std::size_t> stride_bytes;  // As many.

  const std::byte* At(SlabRef slab) const {
    return base[slab.pool] + slab.index * stride_bytes[slab.pool];
  }
};

// The rows of a batch that belong to one sequence, and the blocks that hold its KV in the group at
// hand.
struct SequenceRows {
  std::int32_t row_begin = 0;
  std::int32_t rows = 0;
  std::int32_t position = 0;  // Of the first row.
  std::span<const SlabRef>
      slabs;  // slabs[i] holds block first_block + i. Covers all rows' positions.
  std::int32_t first_block = 0;  // Above 0 where a window group has let old blocks go.
};

// One cache layer of a batch.
struct KvBatch {
  const PageLayout* layout = nullptr;
  SlabPools pools;
  std::int32_t cache_layer = 0;
  std::span<const SequenceRows> sequences;
  // Ops::NewBatch()'s: calls that have it in common, and the layout, have the same pools and
  // sequences, so that tables made from those serve all layers. 0: in common with no other call.
  std::uint64_t batch = 0;
};

struct RopeTable {
  RopePairs pairs = RopePairs::kHalves;
  std::span<const float> inverse_frequency;  // [rotary_dim / 2], on the host.
  float magnitude = 1;  // cos and sin are multiplied by this (YaRN); 1 otherwise.
};

// Per-head work between the QKV product and attention.
struct PrepareQkv {
  float* q = nullptr;        // [rows, qo_heads * k_dim], changed in place
  float* k = nullptr;        // [rows, kv_heads * k_dim], changed in place
  const float* v = nullptr;  // [rows, kv_heads * v_dim]
  std::int32_t qo_heads = 0;
  const float* q_norm = nullptr;  // [k_dim] RMS norm weights per head, or null
  const float* k_norm = nullptr;  // [k_dim] or null
  float norm_eps = 0;
  const RopeTable* rope = nullptr;  // null: no positions.
};

class Ops {
 public:
  virtual ~Ops() = default;

  // Part of every block's namespace: equal names promise equal bits. "cpu-1" names the orders fixed
  // in linear.h, attention.h and elementwise.h, which every CPU target keeps, and so do the GPU
  // kernels: the name is that of the orders, not of the device. "fast-1" promises nothing: it keeps
  // apart what Numerics::kFast computed.
  virtual std::string numerics() const = 0;

  // Where all work of this object goes.
  virtual Stream& stream() = 0;
  // step(), which calls operations of this object and NewBatch, nothing else that would show if it
  // were called twice; not EncodeBlock. A device may do it by a recording of an earlier step that started the same.
  virtual void Repeat(absl::FunctionRef<void()> step) { step(); }
  // A number for KvBatch::batch that no call has had.
  std::uint64_t NewBatch() { return ++batches_; }

  // x[r] = table row tokens[r] * scale. tokens (on the host) are in range. x: [tokens.size(),
  // table.cols].
  virtual void Embed(const PackedMatrix& table, std::span<const TokenId> tokens, float scale,
                     float* x) = 0;

  // out row i = x row row_index[i]; `row_index` is on the host, `out` apart from x. x: [*, cols].
  virtual void GatherRows(const float* x, std::int32_t cols,
                          std::span<const std::int32_t> row_index, float* out) = 0;
  // out = RmsNorm(x) * w, in each form that `out` has. x: [rows, out.cols].
  virtual void RmsNorm(const float* x, const float* w, float eps, std::int32_t rows,
                       const Activations& out) = 0;
  // x += RmsNorm(y) * w. x, y: [rows, cols].
  virtual void RmsNormAdd(const float* y, const float* w, float eps, std::int32_t rows,
                          std::int32_t cols, float* x) = 0;

  // Several products of the same input, side by side (Q, K and V). x: [rows, matrix->cols].
  virtual void Linear(const Activations& x, std::int32_t rows,
                      std::span<const LinearOutput> outputs) = 0;
  // out = activation(x * gate^T) * (x * up^T), in each form that `out` has. out.cols = gate.rows.
  virtual void GatedLinear(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                           const PackedMatrix& up, Activation activation,
                           const Activations& out) = 0;

  // Norms and rotates q and k, then writes k and v of every row into its page. Slabs written belong
  // to one sequence.
  virtual void PrepareAndStore(const PrepareQkv& qkv, const KvBatch& kv) = 0;
  // Says which pages Attention will be asked for, before the first time: what a device has to find out
  // about them may take seconds.
  virtual void WillAttend(const PageLayout& /*layout*/, std::int32_t /*qo_heads*/) {}
  // Attention of all rows over the pages; q as PrepareAndStore left it. out: [rows, qo_heads *
  // v_dim].
  virtual void Attention(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv,
                         const Activations& out) = 0;

  // As Draw of kernels/draw.h, without typical_p, from rows of `logits`: [*, vocab]. What came of
  // draws[i] is at i of the result when the stream has gone past, until the next call.
  virtual std::span<const Drawn> Draw(const float* logits, std::int32_t vocab,
                                      std::span<const RowDraw> draws) = 0;

  // What EncodeBlock of kernels/kv_encoding.h makes of one slab; aligned to 16, as `out` is. Blocks
  // of 8 tokens at least.
  virtual void EncodeBlock(const KvEncoding& encoding, const PageLayout& layout,
                           const std::byte* slab, std::byte* out) = 0;
  // DecodeBlock of kernels/kv_encoding.h, where OpsEncode takes the layout; `encoded` and `slab` are
  // aligned to 16. On any thread: goes to `stream`, which is of this device and that thread's.
  virtual void DecodeBlock(const KvEncoding& encoding, const PageLayout& layout,
                           std::span<const std::byte> encoded, std::byte* slab, Stream& stream) = 0;

  // ---- Products that are made as sums of parts, each of some of the columns.

  // out row r = columns [first, first + out.cols) of row r of x, in each form that `out` has. x:
  // [rows, cols], apart from `out`.
  virtual void TakeColumns(const float* x, std::int32_t cols, std::int32_t first, std::int32_t rows,
                           const Activations& out) = 0;
  // sum = parts[0]; then sum += parts[1], parts[2], ..., each rounded once. y = sum, or, with
  // `add`, y += sum. parts: [count, n], count at least 1. y: [n], apart.
  virtual void SumParts(const float* parts, std::int32_t count, std::int64_t n, bool add,
                        float* y) = 0;

 private:
  std::uint64_t batches_ = 0;
};

// `device` must outlive the result. The caller's thread is worker 0 of the device.
std::unique_ptr<Ops> MakeCpuOps(CpuDevice& device);
// The same; RESOURCE_EXHAUSTED when the GPU has no room for what it always keeps: 1 MiB, with kFast
// cuBLASLt's workspace, too. kFast: UNIMPLEMENTED without cuBLASLt, INTERNAL where it does not start.
absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(CudaDevice& device, Numerics numerics);

}  // namespace penstock::kernels
