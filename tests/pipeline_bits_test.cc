// SPDX-License-Identifier: Apache-2.0
// D3 over stages: a model gives the same bits on one device and in any number of stages, of any
// number of shards, in any batch, cut in any chunks and portions. Reference: token by token, alone,
// on one device.
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/local_model.h"
#include "gtest/gtest.h"
#include "tests/forward_crowd.h"
#include "tests/forward_harness.h"
#include "tests/quantized_model.h"

namespace penstock::tests {
namespace {

using kernels::WeightFormat;

struct Split {
  std::int32_t stages = 1;
  std::int32_t shards = 1;
};
struct Model {
  const char* name;
  // Of a random one; else of the repository, or, where `cached`, of the model cache.
  QuantizedModel random = {};
  bool cached = false;
  std::int32_t sums = 1;
  std::vector<Split> splits;
  KvDtype kv_dtype = KvDtype::kF16;
};
void PrintTo(const Model& model, std::ostream* out) {
  *out << model.name << " in " << model.sums << " sums, " << ToString(model.kv_dtype);
}

// Two partitions of 256 keys, ending inside a block.
constexpr std::size_t kTokens = 300;

const QuantizedModel kTenLayers = {.layers = 10,
                                   .heads = 4,
                                   .kv_heads = 2,
                                   .head_dim = 32,
                                   .ffn = 256,
                                   .formats = {WeightFormat::kQ4_1, WeightFormat::kQ8_0}};

class PipelineBitsTest : public testing::TestWithParam<Model> {
 protected:
  static std::string Path() {
    if (GetParam().cached) return CachedModel(GetParam().name);
    if (GetParam().random.formats.empty()) {
      return absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", GetParam().name);
    }
    const std::string path =
        absl::StrCat(testing::TempDir(), "/penstock_pipeline_", GetParam().name, ".gguf");
    WriteQuantizedModel(GetParam().random, path);
    return path;
  }
  std::unique_ptr<ForwardHarness> Make(const Split& split, std::int32_t portion_rows_min) const {
    auto made = ForwardHarness::Make(path_, {.kv_dtype = GetParam().kv_dtype,
                                             .pool_bytes = std::size_t{64} << 20,
                                             .stages = split.stages,
                                             .shards = split.shards,
                                             .sums = GetParam().sums,
                                             .portion_rows_min = portion_rows_min});
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }
  void SetUp() override {
    path_ = Path();
    if (path_.empty()) GTEST_SKIP() << "no model file; penstock model get fetches it";
    const auto harness = Make({}, 1);
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

TEST_P(PipelineBitsTest, InAnyStagesChunksAndPortions) {
  for (const Split& split : GetParam().splits) {
    // As one portion, and in as many as a batch is ever cut into.
    for (const std::int32_t portion : {kTokens, std::size_t{3}}) {
      const auto harness = Make(split, portion);
      ASSERT_NE(harness, nullptr);
      for (const std::int32_t chunk : GetParam().cached
                                          ? std::vector<std::int32_t>{32, 257}
                                          : std::vector<std::int32_t>{1, 32, 100, 257}) {
        SCOPED_TRACE(absl::StrCat("stages=", split.stages, " shards=", split.shards,
                                  " portion_rows_min=", portion, " chunk_tokens=", chunk));
        ForwardHarness::Sequence s = harness->NewSequence();
        EXPECT_EQ(RowsThatDiffer(harness->RunChunked(s, tokens_, chunk), reference_), 0);
        harness->Free(s);
      }
      // No stage holds another one's layers. A tied head is there twice, and so are norms of shards.
      EXPECT_LT(static_cast<double>(harness->weights_bytes()),
                static_cast<double>(weights_bytes_) * 1.75);
    }
  }
}

// A portion ends wherever it does.
TEST_P(PipelineBitsTest, InACrowd) {
  for (const Split& split : GetParam().splits) {
    SCOPED_TRACE(absl::StrCat("stages=", split.stages, " shards=", split.shards));
    const auto harness = Make(split, 2);
    ASSERT_NE(harness, nullptr);
    ExpectACrowdsRows(*harness, tokens_, reference_);
  }
}

std::string Name(const testing::TestParamInfo<Model>& info) {
  std::string name(info.param.name);
  name = name.substr(0, name.find('-'));
  return absl::StrCat(name, "_", std::string(ToString(info.param.kv_dtype)), "_", info.param.sums);
}
INSTANTIATE_TEST_SUITE_P(
    Tiny, PipelineBitsTest,
    testing::Values(
        Model{.name = "llama3", .splits = {{2}, {3}}},
        Model{.name = "llama3", .sums = 4, .splits = {{3, 2}, {2, 4}}},  // Two KV heads.
        Model{.name = "qwen2", .splits = {{2}}},
        // A tied head; stages of windows alone.
        Model{.name = "gemma3", .splits = {{2}, {3}, {5}, {7}}, .kv_dtype = KvDtype::kBF16},
        Model{.name = "gemma3", .sums = 2, .splits = {{3, 2}}, .kv_dtype = KvDtype::kInt8},
        Model{.name = "ten", .random = kTenLayers, .splits = {{2}, {3}, {5}}},
        Model{.name = "ten", .random = kTenLayers, .sums = 2, .splits = {{3, 2}}}),
    Name);
INSTANTIATE_TEST_SUITE_P(Real, PipelineBitsTest,
                         testing::Values(Model{.name = "SmolLM2-135M-Instruct.Q4_1.gguf",
                                               .cached = true,
                                               .splits = {{2}, {3}, {5}}},
                                         Model{.name = "SmolLM2-135M-Instruct.Q4_1.gguf",
                                               .cached = true,
                                               .sums = 3,
                                               .splits = {{2, 3}}}),
                         Name);

std::string LlamaPath() { return absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/llama3"); }

// Of the whole file, whatever of it is loaded; and each stage has its own part alone.
TEST(PipelineSplitTest, EveryStageHasTheDigestOfTheWhole) {
  for (const char* name : {"llama3", "gemma3"}) {  // One head of its own, one tied.
    SCOPED_TRACE(name);
    const auto file =
        *model::ModelFile::Open(absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", name));
    const auto whole = *ModelHarness::Make(*file, {.weights = {.digest = true}});
    const auto split = *ModelHarness::Make(
        *file, {.stages = 3, .shards = 2, .sums = 2, .weights = {.digest = true}});
    ASSERT_EQ(split.weights.size(), 6u);
    for (const auto& part : split.weights) {
      EXPECT_EQ(part->digest(), whole.weights[0]->digest());
      EXPECT_EQ(part->bytes(),
                engine::Weights::BytesOf(*file, {.digest = true, .part = part->part()}));
      EXPECT_EQ(part->head.data != nullptr, part->part().stage.last());
    }
    EXPECT_EQ(split.weights[2]->embedding.data, nullptr);  // Of the second stage.
  }
}

// What is shipped while later layers compute must be there, on every device, and of all portions.
TEST(PipelineSplitTest, ALayerIsToldWhenItsStageHasStoredIt) {
  const auto file =
      *model::ModelFile::Open(absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/gemma3"));
  const auto layers = static_cast<std::int32_t>(file->architecture().layers.size());
  for (const Split& split : {Split{3, 1}, Split{2, 2}, Split{7, 1}}) {
    SCOPED_TRACE(absl::StrCat("stages=", split.stages, " shards=", split.shards));
    const ModelHarness model = *ModelHarness::Make(
        *file, {.stages = split.stages, .shards = split.shards, .sums = split.shards});
    const auto pool =
        *engine::MakePool(file->architecture(), model.parts, KvDtype::kF16,
                          {.pool_bytes = std::size_t{4} << 20, .stages = split.stages});
    const auto runner =
        *engine::MakeRunner(file->architecture(), model.parts, *pool, {.portion_rows_min = 3});
    const std::vector<TokenId> tokens = RandomTokens(5, 20, file->architecture().vocab);
    for (int run = 0; run < 20; ++run) {
      std::vector<engine::SlabRef> slabs;  // Of zeros, one per group.
      std::vector<engine::SequenceInput::Blocks> blocks;
      slabs.reserve(static_cast<std::size_t>(pool->groups()));
      for (std::int32_t g = 0; g < pool->groups(); ++g) {
        slabs.push_back(*pool->Allocate(g));
        blocks.push_back({.slabs = {&slabs.back(), 1}});
      }
      const auto stored = [&](std::int32_t layer) {
        const KvLayerRef cache = pool->spec().layers[static_cast<std::size_t>(layer)];
        std::vector<std::byte> bytes;
        for (const auto& weights : model.weights) {
          const engine::ModelPart& part = weights->part();
          const engine::ShardRange own = engine::LayersOf(layers, part.stage);
          if (layer < own.begin || layer >= own.end) continue;
          const PageLayout& layout = pool->layout_on(part.device(), cache.group);
          const std::int32_t there = pool->cache_layer_on(part.device(), cache);
          const std::byte* const at = pool->pools(cache.group, part.device())
                                          .At(slabs[static_cast<std::size_t>(cache.group)]);
          bytes.insert(bytes.end(), at + layout.PageOffset(there, 0, 0),
                       at + layout.PageOffset(there + 1, 0, 0));
        }
        return bytes;
      };
      const engine::SequenceInput input = {.tokens = tokens, .blocks = blocks};
      std::vector<std::vector<std::byte>> told;
      runner->Run({&input, 1}, {}, [&](std::int32_t layer) {
        EXPECT_EQ(static_cast<std::size_t>(layer), told.size());
        told.push_back(stored(layer));
      });
      ASSERT_EQ(told.size(), static_cast<std::size_t>(layers));
      for (std::int32_t layer = 0; layer < layers; ++layer) {
        const auto& then = told[static_cast<std::size_t>(layer)];
        EXPECT_EQ(then, stored(layer)) << "layer " << layer;
        EXPECT_NE(then, std::vector<std::byte>(then.size()));
      }
      for (std::int32_t g = 0; g < pool->groups(); ++g) {
        pool->Release(g, slabs[static_cast<std::size_t>(g)]);
      }
    }
  }
}

// The child that the death test forks has none of its parent's other threads: the second stage is
// dead there.
TEST(PipelineSplitTest, AStageThatDiedEndsTheOthersWithItsNumber) {
  const auto file = *model::ModelFile::Open(LlamaPath());
  const ModelHarness model = *ModelHarness::Make(*file, {.stages = 2});
  const auto pool = *engine::MakePool(file->architecture(), model.parts, KvDtype::kF16,
                                      {.pool_bytes = std::size_t{1} << 20, .stages = 2});
  const auto runner = *engine::MakeRunner(file->architecture(), model.parts, *pool,
                                          {.patience = std::chrono::milliseconds(20)});
  const engine::SlabRef slab = *pool->Allocate(0);
  const engine::SequenceInput::Blocks blocks = {.slabs = {&slab, 1}};
  const TokenId token = 1;
  const engine::SequenceInput input = {.tokens = {&token, 1}, .blocks = {&blocks, 1}};
  EXPECT_DEATH(runner->Run({&input, 1}, {}, {}), "stage 1 took nothing from stage 0 for 40 ms");
}

// The stage that holds least decides for all.
TEST(PipelineSplitTest, MemoryIsPlannedForEveryStage) {
  const auto model =
      *engine::LocalModel::Open(absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/gemma3"));
  engine::LocalModel::Options options;
  options.threads = 1;
  options.stages = 3;
  options.memory.context_tokens = 256;
  const auto plans = model->PlanMemory(options, std::size_t{1} << 30);
  ASSERT_TRUE(plans.ok()) << plans.status();
  ASSERT_EQ(plans->size(), 3u);
  ASSERT_TRUE(model->Load(options, [](std::size_t, std::size_t) {}).ok());
  std::size_t weights = 0;
  for (const engine::MemoryPlan& plan : *plans) {
    EXPECT_EQ(plan.context_tokens, 256);
    EXPECT_EQ(plan.pool_bytes, model->plan().pool_bytes);
    EXPECT_GT(plan.kv_bytes, 0u);
    EXPECT_LE(plan.weights_bytes, model->plan().weights_bytes);
    weights += plan.weights_bytes;
  }
  EXPECT_GT(weights, engine::Weights::BytesOf(model->file(), {})) << "the tied head is there twice";
  EXPECT_LT(plans->front().kv_bytes, model->plan().pool_bytes / 2) << "two of six window layers";
  const auto pool = model->MakePool();
  EXPECT_TRUE(pool.ok()) << pool.status();
}

TEST(PipelineSplitTest, MoreStagesThanLayersAreRefusedWithBothNumbers) {
  EXPECT_EQ(ForwardHarness::Make(LlamaPath(), {.stages = 4}).status().message(),
            "pipeline parallel: 4 stages are more than the 3 layers");
  const auto model = *engine::LocalModel::Open(LlamaPath());
  engine::LocalModel::Options options;
  options.stages = 2;
  options.pace.emplace();
  EXPECT_EQ(model->Load(options, [](std::size_t, std::size_t) {}).message(),
            "a paced model computes nothing: it takes 1 stage, got 2");
}

}  // namespace
}  // namespace penstock::tests
