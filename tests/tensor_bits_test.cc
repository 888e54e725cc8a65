// SPDX-License-Identifier: Apache-2.0
// D3 over shards: for the same number of partial sums a model gives the same bits on one device and
// on several, in any batch, cut in any chunks. Reference: token by token, alone, on one device.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "engine/local_model.h"
#include "gtest/gtest.h"
#include "tests/forward_crowd.h"
#include "tests/forward_harness.h"
#include "tests/quantized_model.h"

namespace penstock::tests {
namespace {

using kernels::WeightFormat;

struct Model {
  const char* name;
  // Of a random one; else of the repository, or, where `cached`, of the model cache.
  QuantizedModel random = {};
  bool cached = false;
  std::int32_t sums = 1;
  std::vector<std::int32_t> shards;
  KvDtype kv_dtype = KvDtype::kF16;
};
void PrintTo(const Model& model, std::ostream* out) {
  *out << model.name << " in " << model.sums << " sums, " << ToString(model.kv_dtype);
}

// Two partitions of 256 keys, ending inside a block.
constexpr std::size_t kTokens = 300;

class TensorBitsTest : public testing::TestWithParam<Model> {
 protected:
  static std::string Path() {
    if (GetParam().cached) return CachedModel(GetParam().name);
    if (GetParam().random.formats.empty()) {
      return absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", GetParam().name);
    }
    const std::string path =
        absl::StrCat(testing::TempDir(), "/penstock_tensor_", GetParam().name, ".gguf");
    WriteQuantizedModel(GetParam().random, path);
    return path;
  }
  std::unique_ptr<ForwardHarness> Make(std::int32_t shards, std::int32_t sums) const {
    auto made = ForwardHarness::Make(path_, {.kv_dtype = GetParam().kv_dtype,
                                             .pool_bytes = std::size_t{64} << 20,
                                             .shards = shards,
                                             .sums = sums});
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }
  void SetUp() override {
    path_ = Path();
    if (path_.empty()) GTEST_SKIP() << "no model file; penstock model get fetches it";
    const auto harness = Make(1, GetParam().sums);
    ASSERT_NE(harness, nullptr);
    weights_bytes_ = harness->weights_bytes();
    tokens_ = RandomTokens(1, kTokens, harness->architecture().vocab);
    ForwardHarness::Sequence s = harness->NewSequence();
    reference_ = harness->RunChunked(s, tokens_, 1);
  }

  std::string path_;
  std::vector<TokenId> tokens_;
  Logits reference_;
  std::size_t weights_bytes_ = 0;
};

TEST_P(TensorBitsTest, OnAnyNumberOfShardsInChunksOfAnySize) {
  for (const std::int32_t shards : GetParam().shards) {
    const auto harness = Make(shards, GetParam().sums);
    ASSERT_NE(harness, nullptr);
    for (const std::int32_t chunk : {1, 7, 32, 100, 257}) {
      SCOPED_TRACE(absl::StrCat("shards=", shards, " chunk_tokens=", chunk));
      ForwardHarness::Sequence s = harness->NewSequence();
      EXPECT_EQ(RowsThatDiffer(harness->RunChunked(s, tokens_, chunk), reference_), 0);
      harness->Free(s);
    }
    // Norms and the KV heads that several have are all that is there more than once; and packed
    // matrices are padded to whole panels.
    EXPECT_LT(static_cast<double>(harness->weights_bytes()),
              static_cast<double>(weights_bytes_) * 1.75)
        << "shards=" << shards;
  }
}

TEST_P(TensorBitsTest, InACrowd) {
  for (const std::int32_t shards : GetParam().shards) {
    SCOPED_TRACE(absl::StrCat("shards=", shards));
    const auto harness = Make(shards, GetParam().sums);
    ASSERT_NE(harness, nullptr);
    ExpectACrowdsRows(*harness, tokens_, reference_);
  }
}

// Other bits than one sum's, but the same model.
TEST_P(TensorBitsTest, SumsChangeTheBitsAndLittleElse) {
  const auto harness = Make(1, 1);
  ASSERT_NE(harness, nullptr);
  ForwardHarness::Sequence s = harness->NewSequence();
  const Logits plain = harness->RunChunked(s, tokens_, 100);
  double most = 0, apart = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    for (std::size_t t = 0; t < plain[i].size(); ++t) {
      most = std::max(most, std::abs(static_cast<double>(plain[i][t])));
      apart = std::max(apart, std::abs(static_cast<double>(plain[i][t]) - reference_[i][t]));
    }
  }
  EXPECT_GT(apart, 0);
  EXPECT_LT(apart, most * 0.1);
}

const QuantizedModel kBlocks32 = {
    .heads = 8,
    .kv_heads = 2,
    .head_dim = 32,
    .ffn = 512,
    .formats = {WeightFormat::kQ4_1, WeightFormat::kQ8_0, WeightFormat::kQ4_0, WeightFormat::kQ5_0,
                WeightFormat::kQ5_1}};
const QuantizedModel kBlocks256 = {
    .heads = 4,
    .kv_heads = 1,
    .head_dim = 128,
    .ffn = 512,
    .formats = {WeightFormat::kQ4_K, WeightFormat::kQ6_K, WeightFormat::kQ5_K, WeightFormat::kQ2_K,
                WeightFormat::kQ3_K}};

std::string Name(const testing::TestParamInfo<Model>& info) {
  std::string name(info.param.name);
  name = name.substr(0, name.find('-'));
  return absl::StrCat(name, "_", std::string(ToString(info.param.kv_dtype)), "_", info.param.sums);
}
INSTANTIATE_TEST_SUITE_P(
    Tiny, TensorBitsTest,
    testing::Values(
        Model{.name = "llama3", .sums = 4, .shards = {2, 4}},  // Two KV heads.
        Model{.name = "qwen2", .sums = 2, .shards = {2}},      // Biases.
        Model{.name = "qwen3", .sums = 4, .shards = {4}},      // Norms per head.
        Model{
            .name = "gemma3", .sums = 4, .shards = {2, 4}, .kv_dtype = KvDtype::kBF16},  // Windows.
        Model{.name = "blocks32", .random = kBlocks32, .sums = 8, .shards = {1, 2, 4, 8}},
        Model{.name = "blocks32",
              .random = kBlocks32,
              .sums = 8,
              .shards = {8},
              .kv_dtype = KvDtype::kInt8},
        Model{.name = "blocks256", .random = kBlocks256, .sums = 2, .shards = {2}}),
    Name);
INSTANTIATE_TEST_SUITE_P(
    Real, TensorBitsTest,
    testing::Values(
        Model{.name = "SmolLM2-135M-Instruct.Q4_1.gguf", .cached = true, .sums = 3, .shards = {3}},
        Model{.name = "SmolLM2-135M-Instruct.Q4_1.gguf", .cached = true, .sums = 6, .shards = {3}}),
    Name);

// Of the whole file: it names the model, whatever of it is loaded.
TEST(TensorSplitTest, EveryShardHasTheDigestOfTheWhole) {
  const std::string path = absl::StrCat(testing::TempDir(), "/penstock_tensor_digest.gguf");
  WriteQuantizedModel(kBlocks32, path);
  const auto file = *model::ModelFile::Open(path);
  const auto whole = ModelHarness::Make(*file, {.weights = {.digest = true}});
  ASSERT_TRUE(whole.ok()) << whole.status();
  const auto split =
      ModelHarness::Make(*file, {.shards = 4, .sums = 8, .weights = {.digest = true}});
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(whole->weights[0]->digest().size(), 64u);
  for (const auto& shard : split->weights) {
    EXPECT_EQ(shard->digest(), whole->weights[0]->digest());
    EXPECT_EQ(shard->bytes(),
              engine::Weights::BytesOf(*file, {.digest = true, .part = shard->part()}));
  }
}

// What is shipped while the next layer computes must be there.
TEST(TensorSplitTest, ALayerIsToldWhenAllShardsHaveStoredIt) {
  const auto file =
      *model::ModelFile::Open(absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/llama3"));
  const ModelHarness model = *ModelHarness::Make(*file, {.shards = 2, .sums = 2});
  const auto pool = *engine::MakePool(file->architecture(), model.parts, KvDtype::kF16,
                                      {.pool_bytes = std::size_t{1} << 20});
  const auto runner = *engine::MakeRunner(file->architecture(), model.parts, *pool, {});
  const std::vector<TokenId> tokens = RandomTokens(5, 20, file->architecture().vocab);
  for (int run = 0; run < 20; ++run) {
    const engine::SlabRef slab = *pool->Allocate(0);  // Of zeros.
    const auto stored = [&](std::int32_t layer) {
      std::vector<std::byte> bytes;
      for (std::int32_t shard = 0; shard < 2; ++shard) {
        const PageLayout& layout = pool->layout_on(shard, 0);
        const std::byte* const at = pool->pools(0, shard).At(slab);
        bytes.insert(bytes.end(), at + layout.PageOffset(layer, 0, 0),
                     at + layout.PageOffset(layer + 1, 0, 0));
      }
      return bytes;
    };
    const engine::SequenceInput::Blocks blocks = {.slabs = {&slab, 1}};
    const engine::SequenceInput input = {.tokens = tokens, .blocks = {&blocks, 1}};
    std::vector<std::vector<std::byte>> told;
    runner->Run({&input, 1}, {}, [&](std::int32_t layer) {
      EXPECT_EQ(static_cast<std::size_t>(layer), told.size());
      told.push_back(stored(layer));
    });
    ASSERT_EQ(told.size(), file->architecture().layers.size());
    for (std::size_t layer = 0; layer < told.size(); ++layer) {
      EXPECT_EQ(told[layer], stored(static_cast<std::int32_t>(layer))) << "layer " << layer;
      EXPECT_NE(told[layer], std::vector<std::byte>(told[layer].size()));
    }
  }
}

// The child that the death test forks has none of its parent's other threads: the second shard is
// dead there.
TEST(TensorSplitTest, AShardThatDiedEndsTheOthersWithItsNumber) {
  const auto file =
      *model::ModelFile::Open(absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/llama3"));
  const ModelHarness model = *ModelHarness::Make(*file, {.shards = 2, .sums = 2});
  const auto pool = *engine::MakePool(file->architecture(), model.parts, KvDtype::kF16,
                                      {.pool_bytes = std::size_t{1} << 20});
  const auto runner = *engine::MakeRunner(
      file->architecture(), model.parts, *pool,
      {.patience = std::chrono::milliseconds(20), .exchange_failed = [](const absl::Status& why) {
         std::fprintf(stderr, "told: %s\n", why.ToString().c_str());
       }});
  const engine::SlabRef slab = *pool->Allocate(0);
  const engine::SequenceInput::Blocks blocks = {.slabs = {&slab, 1}};
  const TokenId token = 1;
  const engine::SequenceInput input = {.tokens = {&token, 1}, .blocks = {&blocks, 1}};
  EXPECT_DEATH(
      runner->Run({&input, 1}, {}, {}),
      "^told: DEADLINE_EXCEEDED: rank 1 of 2 did not come to gather 1 within 20 ms of rank 0");
}

// Rows of the vocabulary need not divide: some shards have one more.
TEST(TensorSplitTest, MemoryIsPlannedForTheLargestShard) {
  const std::string path = absl::StrCat(testing::TempDir(), "/penstock_tensor_plan.gguf");
  WriteQuantizedModel(kBlocks32, path);
  const auto model = *engine::LocalModel::Open(path);
  engine::LocalModel::Options options;
  options.threads = 1;
  options.shards = options.sums = 8;
  std::size_t loaded = 0, all = 0;
  const auto progress = [&](std::size_t done, std::size_t of) {
    EXPECT_GT(done, loaded);
    loaded = done;
    all = of;
  };
  ASSERT_TRUE(model->Load(options, progress).ok());
  std::size_t least = ~std::size_t{0}, most = 0, sum = 0;
  for (std::int32_t shard = 0; shard < 8; ++shard) {
    const std::size_t bytes =
        engine::Weights::BytesOf(model->file(), {.part = engine::PartOf(shard, 1, 8, 8)});
    least = std::min(least, bytes);
    most = std::max(most, bytes);
    sum += bytes;
  }
  EXPECT_LT(least, most);
  EXPECT_EQ(model->plan().weights_bytes, most);
  EXPECT_EQ(loaded, sum);
  EXPECT_EQ(all, sum);
}

TEST(TensorSplitTest, AModelThatDoesNotDivideIsRefusedWithBothNumbers) {
  const std::string path = absl::StrCat(testing::TempDir(), "/penstock_tensor_refused.gguf");
  WriteQuantizedModel(kBlocks256, path);
  EXPECT_EQ(ForwardHarness::Make(path, {.shards = 4, .sums = 4}).status().message(),
            "tensor parallel: 4 partial sums do not divide the 512 columns of "
            "blk.0.attn_output.weight into whole blocks of 256 (q3_k)");
}

}  // namespace
}  // namespace penstock::tests
