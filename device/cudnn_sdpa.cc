// SPDX-License-Identifier: Apache-2.0
// The graph is the one that cuDNN's fused engines look for: load K, multiply, scale, hide what is
// beyond the lengths, hide what is later, softmax step by step, load V, multiply.
#include "device/cudnn_sdpa.h"

#include <limits>

namespace penstock {
namespace {

using Descriptor = CudnnGraph::Descriptor;
using Dims = CudnnGraph::Dims;

enum Uid : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kBlocksOfK,
  kBlocksOfV,
  kQLengths,
  kKvLengths,
  kQOffsets,
  kOOffsets,
  kScale,
  kHiddenByLength,
  kHiddenByOrder,
};

class Builder {
 public:
  Builder(CudnnGraph& graph, const CudnnSdpaShape& shape) : graph_(graph), shape_(shape) {
    const std::int64_t keys = std::int64_t{1} * shape.kv_blocks * shape.block_tokens;
    scores_ = {{shape.sequences, shape.qo_heads, shape.q_tokens, keys}};
    rows_ = {{shape.sequences, shape.qo_heads, shape.q_tokens, 1}};
    const Dims lengths = {{shape.sequences, 1, 1, 1}};
    q_lengths_ = graph.Tensor(kQLengths, CUDNN_DATA_INT32, lengths, CudnnGraph::Packed(lengths));
    kv_lengths_ = graph.Tensor(kKvLengths, CUDNN_DATA_INT32, lengths, CudnnGraph::Packed(lengths));
  }

  void Build() {
    const cudnnDataType_t type = Half();
    const std::int64_t keys = scores_.n[3];
    const Dims k = {{shape_.sequences, shape_.kv_heads, shape_.k_dim, keys}};
    const Dims k_strides = {
        {shape_.kv_heads * keys * shape_.k_dim, keys * shape_.k_dim, 1, shape_.k_dim}};
    const Descriptor keys_of = Load(kK, kBlocksOfK, shape_.k_dim, k, k_strides);
    const Descriptor products = Score();
    graph_.Matmul(Rows(kQ, kQOffsets, shape_.k_dim), keys_of,
                  {.m = q_lengths_, .n = kv_lengths_, .pads = true}, products);
    const Descriptor scaled = Score();
    graph_.Pointwise(CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT,
                     {.x = products, .b = graph_.Scalar(kScale, CUDNN_DATA_FLOAT)}, scaled);
    const Descriptor weights = Softmax(HideLater(HideBeyond(scaled)), type);
    const Dims v = {{shape_.sequences, shape_.kv_heads, keys, shape_.v_dim}};
    const Descriptor values = Load(kV, kBlocksOfV, shape_.v_dim, v, CudnnGraph::Packed(v));
    graph_.Matmul(weights, values, {.m = q_lengths_, .k = kv_lengths_},
                  Rows(kO, kOOffsets, shape_.v_dim));
  }

 private:
  cudnnDataType_t Half() const { return shape_.bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF; }
  Descriptor Score(cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return graph_.Virtual(type, scores_, CudnnGraph::Packed(scores_));
  }

  // [rows, heads, dim], where each sequence begins at its offset.
  Descriptor Rows(Uid uid, Uid offsets_uid, std::int64_t dim) {
    const Dims offset_dims = {{shape_.sequences + 1, 1, 1, 1}};
    const Descriptor offsets =
        graph_.Tensor(offsets_uid, CUDNN_DATA_INT32, offset_dims, CudnnGraph::Packed(offset_dims));
    const std::int64_t token = shape_.qo_heads * dim;
    return graph_.Tensor(uid, Half(), {{shape_.sequences, shape_.qo_heads, shape_.q_tokens, dim}},
                         {{shape_.q_tokens * token, dim, token, 1}}, offsets);
  }

  Descriptor Load(Uid uid, Uid blocks_uid, std::int64_t dim, const Dims& out, const Dims& strides) {
    const Descriptor pool = graph_.Tensor(
        uid, Half(), {{shape_.pool_blocks, shape_.kv_heads, shape_.block_tokens, dim}},
        {{shape_.block_stride, shape_.head_stride, dim, 1}});
    const Dims table = {{shape_.sequences, 1, shape_.kv_blocks, 1}};
    const Descriptor blocks =
        graph_.Tensor(blocks_uid, CUDNN_DATA_INT32, table, CudnnGraph::Packed(table));
    const Descriptor loaded = graph_.Virtual(Half(), out, strides);
    graph_.LoadPages(pool, blocks, kv_lengths_, loaded);
    return loaded;
  }

  Descriptor Index(Descriptor x, std::int64_t axis) {
    const Descriptor index = Score(CUDNN_DATA_INT32);
    graph_.Pointwise(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, {.x = x, .axis = axis}, index);
    return index;
  }
  Descriptor Of(cudnnPointwiseMode_t mode, cudnnDataType_t type, Descriptor x, Descriptor b) {
    const Descriptor result = Score(type);
    graph_.Pointwise(mode, type, {.x = x, .b = b}, result);
    return result;
  }
  // x where `shown`, else minus infinity.
  Descriptor Select(Descriptor x, Uid hidden, Descriptor shown) {
    const Descriptor result = Score();
    graph_.Pointwise(CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT,
                     {.x = x, .b = graph_.Scalar(hidden, CUDNN_DATA_FLOAT), .mask = shown}, result);
    return result;
  }

  Descriptor HideBeyond(Descriptor x) {
    const Descriptor row = Index(x, 2);
    const Descriptor column = Index(x, 3);
    const Descriptor is_row = Of(CUDNN_POINTWISE_CMP_LT, CUDNN_DATA_BOOLEAN, row, q_lengths_);
    const Descriptor is_column =
        Of(CUDNN_POINTWISE_CMP_LT, CUDNN_DATA_BOOLEAN, column, kv_lengths_);
    return Select(x, kHiddenByLength,
                  Of(CUDNN_POINTWISE_LOGICAL_AND, CUDNN_DATA_BOOLEAN, is_row, is_column));
  }
  // Row t sees up to column kv_length - q_length + t.
  Descriptor HideLater(Descriptor x) {
    const Descriptor row = Index(x, 2);
    const Descriptor column = Index(x, 3);
    const Descriptor beyond = Of(CUDNN_POINTWISE_ADD, CUDNN_DATA_INT32, row, kv_lengths_);
    const Descriptor last = Of(CUDNN_POINTWISE_SUB, CUDNN_DATA_INT32, beyond, q_lengths_);
    return Select(x, kHiddenByOrder, Of(CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, last, column));
  }
  Descriptor Softmax(Descriptor x, cudnnDataType_t type) {
    const Descriptor largest = graph_.Virtual(CUDNN_DATA_FLOAT, rows_, CudnnGraph::Packed(rows_));
    graph_.Reduce(CUDNN_REDUCE_TENSOR_MAX, x, largest);
    const Descriptor distance = Of(CUDNN_POINTWISE_SUB, CUDNN_DATA_FLOAT, x, largest);
    const Descriptor powers = Of(CUDNN_POINTWISE_EXP, CUDNN_DATA_FLOAT, distance, nullptr);
    const Descriptor sum = graph_.Virtual(CUDNN_DATA_FLOAT, rows_, CudnnGraph::Packed(rows_));
    graph_.Reduce(CUDNN_REDUCE_TENSOR_ADD, powers, sum);
    const Descriptor weights = Score(type);
    graph_.Pointwise(CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, {.x = powers, .b = sum}, weights);
    return weights;
  }

  CudnnGraph& graph_;
  const CudnnSdpaShape& shape_;
  Dims scores_, rows_;
  Descriptor q_lengths_ = nullptr;
  Descriptor kv_lengths_ = nullptr;
};

}  // namespace

std::unique_ptr<CudnnSdpa> CudnnSdpa::Make(const CudnnSymbols& cudnn, cudnnHandle_t handle,
                                           const CudnnSdpaShape& shape, std::string* why) {
  std::unique_ptr<CudnnSdpa> made(new CudnnSdpa(cudnn, handle));
  CudnnGraph& graph = made->graph_;
  Builder(graph, shape).Build();
  const CudnnGraph::Gpu gpu = {.handle = handle};
  made->plan_ = graph.Plan(gpu, graph.Configs(gpu), &made->workspace_bytes_);
  if (graph.why().empty()) return made;
  *why = graph.why();
  return nullptr;
}

std::string WhyNotCudnnSdpa(const CudnnSymbols& cudnn, const std::string& properties_json,
                            const CudnnSdpaShape& shape) {
  CudnnGraph graph(cudnn);
  Builder(graph, shape).Build();
  (void)graph.Configs({.properties = graph.Properties(properties_json)});
  return graph.why();
}

int CudnnSdpa::Run(const CudnnSdpaData& data, cudaStream_t stream) {
  if (const cudnnStatus_t status = cudnn_.set_stream(handle_, stream);
      status != CUDNN_STATUS_SUCCESS) {
    return status;
  }
  const float hidden = -std::numeric_limits<float>::infinity();
  CudnnGraph call(cudnn_);
  const Descriptor pack =
      call.Pack({kQ, kK, kV, kO, kBlocksOfK, kBlocksOfV, kQLengths, kKvLengths, kQOffsets,
                 kOOffsets, kScale, kHiddenByLength, kHiddenByOrder},
                {data.q, data.k, data.v, data.o, data.blocks, data.blocks, data.q_lengths,
                 data.kv_lengths, data.q_offsets, data.o_offsets, &data.scale, &hidden, &hidden},
                data.workspace);
  if (!call.why().empty()) return CUDNN_STATUS_BAD_PARAM;
  return cudnn_.execute(handle_, plan_, pack);
}

}  // namespace penstock
