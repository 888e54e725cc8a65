// SPDX-License-Identifier: Apache-2.0
#include "engine/tensor_shard.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/weight_format.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kShardsMax = 64;
// Whole loads of 16 bytes in each float type.
constexpr std::int32_t kFloatColumns = 8;

ShardRange Part(std::int32_t whole, std::int32_t index, std::int32_t parts) {
  const auto at = [&](std::int64_t i) { return static_cast<std::int32_t>(whole * i / parts); };
  return {at(index), at(index + 1)};
}

absl::Status CheckDivides(std::int32_t divisor, const char* of_what, std::int32_t count,
                          const char* what) {
  if (count % divisor == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tensor parallel: ", divisor, " ", of_what,
                                                 " do not divide ", count, " ", what));
}

absl::Status CheckBlocks(const model::Tensor& tensor, std::int32_t sums) {
  const kernels::WeightFormatInfo& info = kernels::Info(tensor.format);
  const std::int32_t columns = std::max(info.block, kFloatColumns);
  if (tensor.cols() % (std::int64_t{columns} * sums) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor parallel: ", sums, " partial sums do not divide the ", tensor.cols(), " columns of ",
      tensor.name, " into whole blocks of ", columns, " (", ToAbsl(info.name), ")"));
}

}  // namespace

absl::Status CheckSplit(const model::Architecture& a, const model::ModelTensors& tensors,
                        std::int32_t shards, std::int32_t sums) {
  RETURN_IF_ERROR(CheckRange("tensor parallel: the number of shards", shards, 1, kShardsMax));
  RETURN_IF_ERROR(CheckRange("tensor parallel: the number of partial sums", sums, 1, kShardsMax));
  RETURN_IF_ERROR(CheckDivides(shards, "shards", sums, "partial sums"));
  RETURN_IF_ERROR(CheckDivides(shards, "shards", a.qo_heads, "query heads"));
  RETURN_IF_ERROR(CheckDivides(shards, "shards", a.ffn_dim, "columns of the MLP"));
  if (a.kv_heads % shards != 0 && shards % a.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor parallel: ", shards,
                                                   " shards neither divide ", a.kv_heads,
                                                   " KV heads nor are divided by them"));
  }
  if (a.vocab < shards) {
    return absl::InvalidArgumentError(absl::StrCat("tensor parallel: a vocabulary of ", a.vocab,
                                                   " is less than ", shards, " shards"));
  }
  if (sums == 1) return absl::OkStatus();
  for (const model::LayerTensors& layer : tensors.layers) {
    RETURN_IF_ERROR(CheckBlocks(*layer.o, sums));
    RETURN_IF_ERROR(CheckBlocks(*layer.down, sums));
  }
  return absl::OkStatus();
}

ShardRange QoHeadsOf(const model::Architecture& a, const TensorShard& shard) {
  return Part(a.qo_heads, shard.index, shard.shards);
}

ShardRange KvHeadsOf(std::int32_t kv_heads, const TensorShard& shard) {
  if (shard.shards <= kv_heads) return Part(kv_heads, shard.index, shard.shards);
  const std::int32_t sharers = shard.shards / kv_heads;
  return {shard.index / sharers, shard.index / sharers + 1};
}

ShardRange FfnOf(const model::Architecture& a, const TensorShard& shard) {
  return Part(a.ffn_dim, shard.index, shard.shards);
}

ShardRange VocabOf(const model::Architecture& a, const TensorShard& shard) {
  return Part(a.vocab, shard.index, shard.shards);
}

std::int32_t VocabShardOf(std::int32_t token, std::int32_t vocab, std::int32_t shards) {
  // The last shard i that begins, at vocab * i / shards rounded down, no later than the token.
  return static_cast<std::int32_t>(((std::int64_t{token} + 1) * shards - 1) / vocab);
}

model::Architecture ArchitectureOf(const model::Architecture& whole, const TensorShard& shard) {
  model::Architecture own = whole;
  own.qo_heads = QoHeadsOf(whole, shard).size();
  own.kv_heads = KvHeadsOf(whole.kv_heads, shard).size();
  own.ffn_dim = FfnOf(whole, shard).size();
  return own;
}

std::string NumericsSuffix(std::int32_t sums) {
  return sums == 1 ? std::string() : absl::StrCat("-tp", sums);
}

}  // namespace penstock::engine
