// SPDX-License-Identifier: Apache-2.0
#include "bench/work.h"

#include <algorithm>

namespace penstock::bench {
namespace {

double LayerMacsPerRow(const model::Architecture& a) {
  const double heads = a.qo_heads + 2.0 * a.kv_heads + a.qo_heads;  // Q, K, V and O.
  return static_cast<double>(a.d_model) * (heads * a.head_dim + 3.0 * a.ffn_dim);
}

// Positions that rows context..context + rows - 1 see, added up.
double VisibleTokens(std::int64_t context, std::int64_t rows, std::int64_t window) {
  double sum = 0;
  for (std::int64_t row = context; row < context + rows; ++row) {
    sum += static_cast<double>(window > 0 ? std::min(row + 1, window) : row + 1);
  }
  return sum;
}

}  // namespace

Work& Work::operator+=(const Work& other) {
  read_bytes += other.read_bytes;
  linear_macs += other.linear_macs;
  attention_macs += other.attention_macs;
  return *this;
}

Work KvAndRows(const model::Architecture& a, KvDtype kv_dtype, std::int64_t context,
               std::int64_t rows) {
  Work work;
  const double head_macs = static_cast<double>(a.vocab) * a.d_model;
  work.linear_macs = head_macs + static_cast<double>(rows) * LayerMacsPerRow(a) *
                                     static_cast<double>(a.layers.size());
  const double kv_token_bytes =
      2.0 * a.kv_heads *
      static_cast<double>(static_cast<std::size_t>(a.head_dim) * BytesPerElement(kv_dtype) +
                          ScaleBytes(kv_dtype));
  for (const model::LayerSpec& layer : a.layers) {
    const std::int64_t window = layer.window_tokens;
    work.attention_macs += 2.0 * a.qo_heads * a.head_dim * VisibleTokens(context, rows, window);
    const std::int64_t kept = window > 0 ? std::min(context, window) : context;
    work.read_bytes += kv_token_bytes * static_cast<double>(kept);
  }
  return work;
}

Work PassWork(const model::Architecture& a, KvDtype kv_dtype, std::size_t weights_bytes,
              std::int64_t context, std::int64_t rows) {
  Work work = KvAndRows(a, kv_dtype, context, rows);
  double read_share = 1;
  if (!a.tied_head) {
    // Embedding and head are alike in size, and of the former a few rows are read.
    const double table = static_cast<double>(a.vocab) * a.d_model;
    const double layers = LayerMacsPerRow(a) * static_cast<double>(a.layers.size());
    read_share = (table + layers) / (2 * table + layers);
  }
  work.read_bytes += read_share * static_cast<double>(weights_bytes);
  return work;
}

LeastTime TimeAtLimits(const Work& work, const MachineLimits& limits) {
  const double read = work.read_bytes / limits.read_bytes_per_s;
  const double multiply =
      work.linear_macs / limits.int_dot_per_s + work.attention_macs / limits.fma_per_s;
  return read > multiply ? LeastTime{read, "read"} : LeastTime{multiply, "multiply"};
}

}  // namespace penstock::bench
