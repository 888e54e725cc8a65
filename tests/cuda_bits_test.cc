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
  std::int32_t stages = 1;  // All on one GPU.
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
                                          .stages = shape.stages,
                                          .sums = shape.sums,
                                          .portion_rows_min = 5});
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

// Streams of several stages wait for one another, portion by portion.
TEST(CudaBitsTest, Stages) {
  ExpectTheCpusBits(Tiny("llama3"), {.stages = 3});
  ExpectTheCpusBits(Tiny("gemma3"), {.stages = 2, .tokens = 64, .chunk = 40});
}

TEST(CudaBitsTest, EveryFormatOfWeights) {
  for (const auto& [name, path] : WriteQuantizedModels(testing::TempDir())) {
    SCOPED_TRACE(name);
    ExpectTheCpusBits(path, {.block_tokens = 16, .page_tokens = 16, .tokens = 40});
  }
  ExpectTheCpusBits(Tiny("llama3"), {.float_activations = true, .tokens = 64});
}

// ---- The batching engine.

// Each parameter is off half of the time.
engine::SamplingParams RandomSampling(std::mt19937& random) {
  const auto chance = [&random] { return random() % 2 == 0; };
  engine::SamplingParams params;
  params.temperature = random() % 3 == 0 ? 0 : 0.9;
  params.seed = random();
  params.logprobs = chance() ? 0 : static_cast<std::int32_t>(random() % 21);
  if (chance()) params.top_k = static_cast<std::int32_t>(1 + random() % 200);
  if (chance()) params.top_p = 0.8;
  if (chance()) params.min_p = 0.01;
  // These take the row to the host.
  if (random() % 4 == 0) params.typical_p = 0.9;
  if (random() % 4 == 0) params.presence_penalty = 0.5;
  return params;
}

std::vector<engine::Request> RandomRequests(std::uint32_t seed, std::size_t count,
                                            std::int32_t vocab) {
  std::mt19937 random(seed);
  const std::vector<TokenId> common = RandomTokens(seed, 40, vocab);
  std::vector<engine::Request> requests(count);
  for (engine::Request& r : requests) {
    r.prompt.assign(common.begin(), common.begin() + static_cast<std::ptrdiff_t>(random() % 40));
    for (const TokenId t : RandomTokens(random(), 1 + random() % 30, vocab)) r.prompt.push_back(t);
    r.sampling = RandomSampling(random);
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

// A prompt's KV goes from one GPU pool to another as links of kind nccl bring it, but for its first
// block, which comes to the host.
TEST(CudaBitsTest, WhatComesOnTheDeviceIsNotBroughtFromTheHost) {
  auto file = model::ModelFile::Open(Tiny("llama3"));
  ASSERT_TRUE(file.ok()) << file.status();
  const engine::Engine::Options options = {.step_tokens = 64,
                                           .chunk_tokens = 24,
                                           .pool = {.pool_bytes = std::size_t{8} << 20,
                                                    .block_tokens = 16,
                                                    .page_tokens = 16,
                                                    .shared = true}};
  engine::Request request = RandomRequests(9, 1, (*file)->architecture().vocab)[0];
  request.prompt = RandomTokens(4, 70, (*file)->architecture().vocab);
  const Answers want = EngineHarness(**file, {}, options).Run({&request, 1});
  EngineHarness one(**file, {.cuda = Cuda()}, options), two(**file, {.cuda = Cuda()}, options);
  engine::Engine& prefill = one.engine();
  engine::Engine& decode = two.engine();

  const std::span<const TokenId> moved = std::span(request.prompt).first(69);
  const auto to = decode.Reserve(69, ChainsFrom(RootChain({}, 16), moved, 16));
  ASSERT_TRUE(to.ok()) << to.status();
  std::map<std::int32_t, std::uint32_t> told;  // Block to slab.
  prefill.set_layer_done([&](std::int32_t, std::span<const engine::PrefillBlocks> prefills) {
    EXPECT_NE(prefill.pool().Written(), nullptr);
    const engine::SequenceInput::Blocks& blocks = prefills[0].blocks[0];
    for (std::int32_t b = prefills[0].first_block; b < prefills[0].end_block; ++b) {
      told[b] = blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)].index;
    }
  });
  const auto id = prefill.SubmitPrefill({.tokens = {moved.begin(), moved.end()}, .to_host = false});
  ASSERT_TRUE(id.ok()) << id.status();
  while (!prefill.idle()) prefill.Step();
  EXPECT_EQ(prefill.pool().last_copy(), 0u) << "something went to the host";

  ASSERT_EQ(to->blocks.size(), 1u);
  ASSERT_EQ(told.size(), to->blocks[0].slabs.size());
  const std::size_t slab_bytes = prefill.pool().slab_bytes(0);
  CudaStream stream(*Cuda(), 0);
  for (const auto& [block, from] : told) {
    const engine::SlabRef slab = to->blocks[0].slabs[static_cast<std::size_t>(block)];
    std::byte* const there =
        block == 0 ? decode.pool().Address(0, slab) : decode.pool().shard(0, 0).At(slab.index);
    stream.Copy(there, prefill.pool().shard(0, 0).At(from), slab_bytes);
  }
  ASSERT_TRUE(stream.Synchronize().ok());
  prefill.EndPrefill(*id);
  decode.CameOnDevice(to->id, 0, 1);
  ASSERT_TRUE(decode.Adopt(to->id, request).ok());
  EXPECT_EQ(decode.pool().last_copy(), 1u) << "one block came to the host";

  Answers got;
  while (!decode.idle()) {
    for (const engine::TokenOutput& output : decode.Step().outputs) {
      got[{0, output.choice}].push_back({output.token->token, *output.token->logprob});
    }
  }
  EXPECT_EQ(got, want);
  EXPECT_EQ(prefill.PoolStats().bytes_held + decode.PoolStats().bytes_held, 0u);
}

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

// Four answers whose tokens are drawn in all ways, over two partitions of attention; then without
// graphs.
TEST(CudaBitsTest, DecodeStepsAreGraphs) {
  const auto file = *model::ModelFile::Open(Tiny("llama3"));
  std::vector<engine::Request> requests = RandomRequests(8, 2, file->architecture().vocab);
  for (engine::Request& r : requests) {
    r.prompt.resize(230, 7);
    r.n = 2;
    r.max_tokens = 60;
    r.ignore_eos = true;
  }
  const engine::Engine::Options options = {.pool = {.pool_bytes = std::size_t{4} << 20}};
  const Answers want = EngineHarness(*file, {}, options).Run(requests);
  for (const bool graphs : {true, false}) {
    SCOPED_TRACE(absl::StrCat("graphs=", graphs));
    cuda_standin::Reset({.graphs = graphs});
    const std::int64_t before = cuda_standin::Now().graph_launches;
    {
      EngineHarness harness(*file, {.cuda = Cuda()}, options);
      EXPECT_EQ(harness.Run(requests), want);
      const cuda_standin::Counts counts = cuda_standin::Now();
      // Of some 59 decode steps, those that are the first or second of their kind are not.
      const std::int64_t launches = counts.graph_launches - before;
      EXPECT_GE(launches, graphs ? 45 : 0);
      EXPECT_LE(launches, graphs ? 59 : 0);
      EXPECT_LE(counts.graphs, 6);
    }
    EXPECT_EQ(cuda_standin::Now().graphs, 0);
  }
  cuda_standin::Reset({});
}

// Bytes to the host for each of ten tokens, over two answers of the same prompt, and their vocabulary.
std::pair<std::int64_t, std::int64_t> BytesPerToken(const engine::SamplingParams& sampling) {
  const auto file = *model::ModelFile::Open(Tiny("llama3"));
  EngineHarness harness(*file, {.cuda = Cuda()}, {.pool = {.pool_bytes = std::size_t{1} << 20}});
  engine::Request request;
  request.prompt = {1, 2, 3, 4};
  request.n = 2;
  request.max_tokens = 10;
  request.ignore_eos = true;
  request.sampling = sampling;
  const std::int64_t before = cuda_standin::Now().bytes_to_host;
  (void)harness.Run({&request, 1});
  return {(cuda_standin::Now().bytes_to_host - before) / 20, file->architecture().vocab};
}

TEST(CudaBitsTest, RowsOfLogitsStayOnTheGpu) {
  cuda_standin::Reset({});
  struct Case {
    const char* name;
    engine::SamplingParams sampling;
    bool stay;
  };
  for (const Case& c : {
           Case{"greedy", {.temperature = 0, .logprobs = 0}, true},
           Case{"top-p", {.top_k = 40, .top_p = 0.9, .logprobs = 5}, true},
           Case{"greedy is never typical",
                {.temperature = 0, .typical_p = 0.9, .logprobs = 0},
                true},
           Case{"typical", {.typical_p = 0.9, .logprobs = 0}, false},
           Case{"penalty", {.presence_penalty = 1, .logprobs = 0}, false},
           Case{"bias", {.logit_bias = {{3, 1.0}}, .logprobs = 0}, false},
       }) {
    SCOPED_TRACE(c.name);
    const auto [bytes, vocab] = BytesPerToken(c.sampling);
    if (c.stay) {
      EXPECT_EQ(bytes, static_cast<std::int64_t>(sizeof(kernels::Drawn)));
    } else {
      // The first tokens of both answers are drawn from one row.
      EXPECT_EQ(bytes, vocab * 4 * 19 / 20);
    }
  }
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
#endif

}  // namespace
}  // namespace penstock::tests
