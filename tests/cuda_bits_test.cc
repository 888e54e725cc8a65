// SPDX-License-Identifier: Apache-2.0
// D3 across devices: the engine on a GPU gives the bits of the engine on the CPU. Two programs of one
// source: the unit test runs the GPU's kernels emulated, over a stand-in for cudart that keeps the
// host away from device memory; cuda_bits_test_gpu loads the plug-in beside it, from the repository's
// root.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/check_ok.h"
#include "device/cpu_device.h"
#include "device/cuda_device.h"
#include "engine/engine.h"
#include "engine/local_model.h"
#include "tests/engine_harness.h"
#include "tests/forward_harness.h"
#include "tests/quantized_model.h"
#if !defined(PENSTOCK_REAL_GPU)
#include "device/cuda_standin.h"
#endif

namespace penstock::tests {
namespace {

#if defined(PENSTOCK_REAL_GPU)
const CudaPlugin* Cuda() {
  static const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin("");
  CHECK_OK(loaded.status());
  return loaded->plugin;
}
std::string Tiny(const std::string& name) { return "tests/golden/tiny/" + name; }
#else
const CudaPlugin* Cuda() { return penstock_cuda_plugin(); }
std::string Tiny(const std::string& name) {
  return absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", name);
}
#endif

struct Shape {
  KvDtype kv_dtype = KvDtype::kF16;
  std::int32_t block_tokens = 32;
  std::int32_t page_tokens = 32;
  bool float_activations = false;
  std::int32_t sums = 1;
  std::size_t tokens = 70;  // Of the first sequence.
  std::int32_t chunk = 23;
};

// A prompt in chunks, then three sequences that decode together, one of which shares blocks with the
// first and brings a chunk of its own. All logits.
Logits LogitsOf(const std::string& path, const Shape& shape, const CudaPlugin* cuda) {
  auto made = ForwardHarness::Make(path, {.threads = 2,
                                          .float_activations = shape.float_activations,
                                          .kv_dtype = shape.kv_dtype,
                                          .block_tokens = shape.block_tokens,
                                          .page_tokens = shape.page_tokens,
                                          .rows_max = 128,
                                          .pool_bytes = std::size_t{8} << 20,
                                          .cuda = cuda,
                                          .sums = shape.sums});
  EXPECT_TRUE(made.ok()) << made.status();
  if (!made.ok()) return {};
  ForwardHarness& harness = **made;
  const std::int32_t vocab = harness.architecture().vocab;
  const std::vector<TokenId> prompt = RandomTokens(1, shape.tokens, vocab);
  ForwardHarness::Sequence first = harness.NewSequence();
  Logits all = harness.RunChunked(first, prompt, shape.chunk);
  ForwardHarness::Sequence shared = harness.Share(first, 2 * shape.block_tokens);
  ForwardHarness::Sequence fresh = harness.NewSequence();
  std::vector<TokenId> next = RandomTokens(2, 3, vocab);
  for (int step = 0; step < 3; ++step) {
    Logits rows = harness.Run(
        {{&first, {next[0]}},
         {&shared, step == 0 ? RandomTokens(3, 11, vocab) : std::vector<TokenId>{next[1]}},
         {&fresh, {next[2]}, step == 1 ? 0 : 1}});
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto best = std::ranges::max_element(rows[i]) - rows[i].begin();
      next[i] = static_cast<TokenId>(best);
    }
    std::ranges::move(rows, std::back_inserter(all));
  }
  for (ForwardHarness::Sequence* s : {&first, &shared, &fresh}) harness.Free(*s);
  return all;
}

void ExpectTheCpusBits(const std::string& path, const Shape& shape) {
  const Logits want = LogitsOf(path, shape, nullptr);
  const Logits got = LogitsOf(path, shape, Cuda());
  ASSERT_EQ(got.size(), want.size());
  ASSERT_GT(want.size(), shape.tokens);
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(RowsThatDiffer({got[i]}, want, i), 0) << "row " << i;
  }
}

TEST(CudaBitsTest, EveryFamily) {
  for (const char* name : {"llama3", "mistral", "qwen2", "qwen3", "gemma3"}) {
    SCOPED_TRACE(name);
    ExpectTheCpusBits(Tiny(name), {});
  }
}

TEST(CudaBitsTest, EveryShapeOfTheCache) {
  ExpectTheCpusBits(Tiny("llama3"),
                    {.kv_dtype = KvDtype::kBF16, .block_tokens = 16, .page_tokens = 8});
  ExpectTheCpusBits(Tiny("gemma3"),
                    {.kv_dtype = KvDtype::kF32, .block_tokens = 32, .page_tokens = 16});
  for (const char* name : {"llama3", "mistral", "gemma3"}) {
    SCOPED_TRACE(name);
    ExpectTheCpusBits(Tiny(name),
                      {.kv_dtype = KvDtype::kInt8, .block_tokens = 16, .page_tokens = 4});
  }
  // Over the first partition's end.
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    ExpectTheCpusBits(Tiny("mistral"), {.kv_dtype = dtype, .tokens = 270, .chunk = 100});
  }
}

TEST(CudaBitsTest, PartialSums) {
  ExpectTheCpusBits(Tiny("llama3"), {.sums = 4});
  ExpectTheCpusBits(Tiny("gemma3"), {.sums = 2});
  const std::string path = absl::StrCat(testing::TempDir(), "/penstock_sums.gguf");
  WriteQuantizedModel({.formats = {kernels::WeightFormat::kQ4_1, kernels::WeightFormat::kQ8_0}},
                      path);
  ExpectTheCpusBits(path, {.sums = 4});
}

TEST(CudaBitsTest, EveryFormatOfWeights) {
  for (const auto& [name, path] : WriteQuantizedModels(testing::TempDir())) {
    SCOPED_TRACE(name);
    ExpectTheCpusBits(path, {.block_tokens = 16, .page_tokens = 16, .tokens = 40});
  }
  ExpectTheCpusBits(Tiny("llama3"), {.float_activations = true, .tokens = 64});
}

// ---- The batching engine.

std::vector<engine::Request> RandomRequests(std::uint32_t seed, std::size_t count,
                                            std::int32_t vocab) {
  std::mt19937 random(seed);
  const std::vector<TokenId> common = RandomTokens(seed, 40, vocab);
  std::vector<engine::Request> requests(count);
  for (engine::Request& r : requests) {
    r.prompt.assign(common.begin(), common.begin() + static_cast<std::ptrdiff_t>(random() % 40));
    for (const TokenId t : RandomTokens(random(), 1 + random() % 30, vocab)) r.prompt.push_back(t);
    r.sampling.temperature = random() % 3 == 0 ? 0 : 0.9;
    r.sampling.seed = random();
    r.sampling.logprobs = 0;
    r.max_tokens = static_cast<std::int32_t>(15 + random() % 20);
    r.n = static_cast<std::int32_t>(1 + random() % 2);
  }
  return requests;
}

struct EngineRun {
  Answers answers;
  std::string digest;
  bool preempted;
  bool swapped;
};

EngineRun RunEngine(const model::ModelFile& file, const CudaPlugin* cuda,
                    const engine::Engine::Options& options, int host_threads = 1,
                    KvDtype kv_dtype = KvDtype::kF16) {
  EngineHarness harness(file, {.kv_dtype = kv_dtype, .threads = host_threads, .cuda = cuda},
                        options);
  return {.answers = harness.Run(RandomRequests(5, 8, file.architecture().vocab)),
          .digest = harness.weights().digest(),
          .preempted = harness.preempted(),
          .swapped = harness.swapped()};
}

void ExpectACrowdsAnswers(KvDtype kv_dtype) {
  auto file = model::ModelFile::Open(Tiny("llama3"));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::size_t block_bytes = 16 * (*file)->architecture().MakeKvSpec(kv_dtype).BytesPerToken();
  // 13 blocks, of slabs that are padded to 4 KiB.
  const engine::KvPool::Options small = {.pool_bytes = 13 * ((block_bytes + 4095) / 4096 * 4096),
                                         .block_tokens = 16,
                                         .page_tokens = 16};
  const engine::Engine::Options roomy = {
      .step_tokens = 64, .chunk_tokens = 24, .pool = {.pool_bytes = std::size_t{16} << 20}};
  engine::Engine::Options recompute = roomy;
  recompute.pool = small;
  engine::Engine::Options swap = recompute;
  swap.swap_bytes = std::size_t{16} << 20;
  swap.compute_tokens_per_s = 1;
  const EngineRun want = RunEngine(**file, nullptr, roomy, 1, kv_dtype);
  ASSERT_FALSE(want.answers.empty());
  for (const engine::Engine::Options& options : {roomy, recompute, swap}) {
    const EngineRun got = RunEngine(**file, Cuda(), options, 1, kv_dtype);
    EXPECT_EQ(got.answers, want.answers);
    EXPECT_EQ(got.digest, want.digest);
    EXPECT_EQ(got.preempted, options.pool.pool_bytes == small.pool_bytes);
    EXPECT_EQ(got.swapped, options.swap_bytes > 0);
  }
}

TEST(CudaBitsTest, ACrowdThatSharesIsSwappedAndRecomputed) { ExpectACrowdsAnswers(KvDtype::kF16); }
TEST(CudaBitsTest, ACrowdInInt8) { ExpectACrowdsAnswers(KvDtype::kInt8); }

#if defined(PENSTOCK_REAL_GPU)
TEST(CudaBitsTest, ARealModel) {
  const auto file = model::ModelFile::Open(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!file.ok()) GTEST_SKIP() << file.status();
  const engine::Engine::Options options = {.pool = {.pool_bytes = std::size_t{256} << 20}};
  const EngineRun want = RunEngine(**file, nullptr, options, 8);
  const EngineRun got = RunEngine(**file, Cuda(), options, 8);
  EXPECT_EQ(got.answers, want.answers);
  EXPECT_FALSE(got.answers.empty());
}
#else
TEST(CudaBitsTest, TheStandInGetsEverythingBack) {
  cuda_standin::Reset({});
  ASSERT_FALSE(LogitsOf(Tiny("llama3"), {.tokens = 64}, Cuda()).empty());
  const cuda_standin::Counts counts = cuda_standin::Now();
  EXPECT_EQ(counts.device_bytes, 0);
  EXPECT_EQ(counts.pinned_bytes, 0);
  EXPECT_EQ(counts.streams, 0);
  EXPECT_EQ(counts.events, 0);
}

TEST(CudaBitsTest, ALostGpuEndsTheProcessWithItsName) {
  cuda_standin::Reset({});
  const auto harness =
      *ForwardHarness::Make(Tiny("llama3"), {.pool_bytes = std::size_t{1} << 20, .cuda = Cuda()});
  ForwardHarness::Sequence sequence = harness->NewSequence();
  EXPECT_DEATH(
      {
        cuda_standin::Change({.synchronizes = 0});
        (void)harness->Run({{&sequence, {1, 2, 3}}});
      },
      "cuda: .*: cudaErrorLaunchFailure \\(719\\)");
}

engine::LocalModel::Options OnOneThread(const CudaPlugin* cuda) {
  engine::LocalModel::Options options;
  options.threads = 1;
  options.cuda = cuda;
  return options;
}

TEST(CudaBitsTest, AModelLoadsAndIsNamedAsOnTheCpu) {
  constexpr auto kNoProgress = [](std::size_t, std::size_t) {};
  cuda_standin::Reset({});
  {
    const auto model = *engine::LocalModel::Open(Tiny("gemma3"));
    ASSERT_TRUE(model->Load(OnOneThread(Cuda()), kNoProgress).ok());
    EXPECT_EQ(model->device().kind(), "cuda");
    const auto on_cpu = *engine::LocalModel::Open(Tiny("gemma3"));
    ASSERT_TRUE(on_cpu->Load(OnOneThread(nullptr), kNoProgress).ok());
    EXPECT_EQ(model->Identity(), on_cpu->Identity());
    const absl::StatusOr<std::unique_ptr<engine::Engine>> engine = model->MakeEngine();
    ASSERT_TRUE(engine.ok()) << engine.status();
    // Each of the two groups takes what the plan grants, in whole slabs.
    EXPECT_GT(cuda_standin::Now().device_bytes,
              static_cast<std::int64_t>(model->plan().kv_bytes * 3 / 2));
  }
  cuda_standin::Reset({.memory_bytes = std::size_t{300} << 20});
  const absl::Status refused =
      (*engine::LocalModel::Open(Tiny("llama3")))->Load(OnOneThread(Cuda()), kNoProgress);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find(" beside, and "), absl::string_view::npos) << refused;
  EXPECT_NE(refused.message().find(" MiB of the GPU's memory is free"), absl::string_view::npos)
      << refused;
  cuda_standin::Reset({});
}

// Workers on both may serve one model; on the GPU peers see the pool through the host.
TEST(CudaBitsTest, AWorkersModelIsThatOfTheCpu) {
  constexpr auto kNoProgress = [](std::size_t, std::size_t) {};
  cuda_standin::Reset({});
  for (const KvDtype kv_dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    std::vector<std::unique_ptr<engine::LocalModel>> models;
    for (const CudaPlugin* const cuda : {Cuda(), static_cast<const CudaPlugin*>(nullptr)}) {
      engine::LocalModel::Options options = OnOneThread(cuda);
      options.for_peers = true;
      options.gpus = {1};
      options.memory.kv_dtype = kv_dtype;
      models.push_back(*engine::LocalModel::Open(Tiny("llama3")));
      ASSERT_TRUE(models.back()->Load(options, kNoProgress).ok());
      const auto engine = models.back()->MakeEngine();
      ASSERT_TRUE(engine.ok()) << engine.status();
      EXPECT_EQ((*engine)->pool().staged(), cuda != nullptr);
      EXPECT_GE((*engine)->pool().memory(0).shared_fd(), 0);
    }
    EXPECT_EQ(models[0]->Identity(), models[1]->Identity());
  }
  cuda_standin::Reset({});
}

TEST(CudaBitsTest, WhatDoesNotFitIsSaidWithBothNumbers) {
  cuda_standin::Reset({.memory_bytes = std::size_t{4} << 20});
  const auto made = ForwardHarness::Make(Tiny("llama3"), {.cuda = Cuda()});
  EXPECT_EQ(made.status().code(), absl::StatusCode::kResourceExhausted) << made.status();
  EXPECT_NE(made.status().message().find("of 4194304 are free"), absl::string_view::npos)
      << made.status();
  cuda_standin::Reset({});
}
#endif

}  // namespace
}  // namespace penstock::tests
