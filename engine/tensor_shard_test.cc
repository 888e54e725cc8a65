// SPDX-License-Identifier: Apache-2.0
#include "engine/tensor_shard.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace penstock::engine {
namespace {

model::Architecture Heads(std::int32_t qo, std::int32_t kv, std::int32_t ffn = 1536) {
  model::Architecture a;
  a.qo_heads = qo;
  a.kv_heads = kv;
  a.head_dim = 64;
  a.ffn_dim = ffn;
  a.vocab = 1000;
  return a;
}

// Tensors of one layer in one format.
struct OneLayer {
  OneLayer(const model::Architecture& a, kernels::WeightFormat format)
      : o{.name = "attn_output",
          .format = format,
          .shape = {576, std::int64_t{a.qo_heads} * a.head_dim},
          .bytes = {}},
        down{.name = "ffn_down", .format = format, .shape = {576, a.ffn_dim}, .bytes = {}} {
    all.layers.resize(1);
    all.layers[0].o = &o;
    all.layers[0].down = &down;
  }
  model::Tensor o, down;
  model::ModelTensors all;
};

TEST(TensorShardTest, WhatCannotBeSplitIsSaidWithBothNumbers) {
  using kernels::WeightFormat;
  struct Case {
    const char* name;
    model::Architecture model;
    WeightFormat format;
    std::int32_t shards, sums;
    const char* want;  // Null: it can.
  };
  const Case cases[] = {
      {"whole", Heads(9, 3), WeightFormat::kQ4_1, 1, 1, nullptr},
      {"three of nine heads", Heads(9, 3), WeightFormat::kQ4_1, 3, 3, nullptr},
      {"two sums each, inside a head", Heads(9, 3), WeightFormat::kQ4_1, 3, 6, nullptr},
      {"sums alone", Heads(9, 3), WeightFormat::kQ4_1, 1, 6, nullptr},
      {"more shards than KV heads", Heads(8, 2), WeightFormat::kBF16, 8, 8, nullptr},
      {"none", Heads(9, 3), WeightFormat::kQ4_1, 0, 1,
       "tensor parallel: the number of shards must be from 1 to 64, got 0"},
      {"too many", Heads(9, 3), WeightFormat::kQ4_1, 1, 65,
       "tensor parallel: the number of partial sums must be from 1 to 64, got 65"},
      {"sums that differ", Heads(9, 3), WeightFormat::kQ4_1, 3, 4,
       "tensor parallel: 3 shards do not divide 4 partial sums"},
      {"heads", Heads(9, 3), WeightFormat::kQ4_1, 2, 2,
       "tensor parallel: 2 shards do not divide 9 query heads"},
      {"MLP", Heads(8, 2, 1001), WeightFormat::kF32, 2, 2,
       "tensor parallel: 2 shards do not divide 1001 columns of the MLP"},
      {"KV heads", Heads(12, 6), WeightFormat::kF32, 4, 4,
       "tensor parallel: 4 shards neither divide 6 KV heads nor are divided by them"},
      {"blocks of 32", Heads(9, 3), WeightFormat::kQ4_1, 1, 4,
       "tensor parallel: 4 partial sums do not divide the 576 columns of attn_output into whole "
       "blocks of 32 (q4_1)"},
      {"blocks of 256", Heads(9, 3), WeightFormat::kQ4_K, 3, 3,
       "tensor parallel: 3 partial sums do not divide the 576 columns of attn_output into whole "
       "blocks of 256 (q4_k)"},
      {"floats", Heads(8, 2, 1216), WeightFormat::kBF16, 4, 8, nullptr},
      {"pieces of floats", Heads(8, 2, 1208), WeightFormat::kBF16, 8, 8,
       "tensor parallel: 8 partial sums do not divide the 1208 columns of ffn_down into whole "
       "blocks of 8 (bf16)"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const OneLayer layer(c.model, c.format);
    const absl::Status status = CheckSplit(c.model, layer.all, c.shards, c.sums);
    if (c.want == nullptr) {
      EXPECT_TRUE(status.ok()) << status;
    } else {
      EXPECT_EQ(status, absl::InvalidArgumentError(c.want));
    }
  }
}

TEST(TensorShardTest, ShardsTileTheModel) {
  for (const std::int32_t shards : {1, 2, 4, 8}) {
    SCOPED_TRACE(absl::StrCat("shards=", shards));
    const model::Architecture whole = Heads(16, 4);
    ShardRange last;
    for (std::int32_t i = 0; i < shards; ++i) {
      const TensorShard shard = {.index = i, .shards = shards, .sums = shards};
      const ShardRange qo = QoHeadsOf(whole, shard), kv = KvHeadsOf(whole.kv_heads, shard);
      EXPECT_EQ(qo.begin, 16 / shards * i);
      EXPECT_EQ(qo.size(), 16 / shards);
      // The KV heads that its query heads read, and no other.
      EXPECT_EQ(kv.begin, qo.begin / 4);
      EXPECT_EQ(kv.end, (qo.end + 3) / 4);
      const ShardRange vocab = VocabOf(whole, shard);
      EXPECT_EQ(vocab.begin, last.end);
      for (const std::int32_t token : {vocab.begin, vocab.end - 1}) {
        EXPECT_EQ(VocabShardOf(token, whole.vocab, shards), i) << "token " << token;
      }
      last = vocab;
      const model::Architecture own = ArchitectureOf(whole, shard);
      EXPECT_EQ(own.qo_heads, qo.size());
      EXPECT_EQ(own.kv_heads, kv.size());
      EXPECT_EQ(own.ffn_dim, 1536 / shards);
      EXPECT_EQ(own.vocab, whole.vocab);
    }
    EXPECT_EQ(last.end, whole.vocab);
  }
  // No even split: 1000 rows over 7 shards.
  for (std::int32_t token = 0; token < 1000; ++token) {
    const std::int32_t shard = VocabShardOf(token, 1000, 7);
    const ShardRange rows = VocabOf(Heads(7, 7), {.index = shard, .shards = 7, .sums = 7});
    EXPECT_TRUE(rows.begin <= token && token < rows.end) << token;
  }
}

TEST(TensorShardTest, SumsAreOfTheNumericsName) {
  EXPECT_EQ(NumericsSuffix(1), "");
  EXPECT_EQ(NumericsSuffix(6), "-tp6");
}

}  // namespace
}  // namespace penstock::engine
