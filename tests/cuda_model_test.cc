// SPDX-License-Identifier: Apache-2.0
// Whole models on emulated GPUs, as workers load them: named, checked and refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check_ok.h"
#include "device/cuda_standin.h"
#include "engine/engine.h"
#include "engine/local_model.h"
#include "kernels/cuda_kernels.h"
#include "tests/device_harness.h"
#include "tests/forward_harness.h"
#if defined(PENSTOCK_CUDNN_STANDIN)
#include "device/cudnn_standin.h"
#endif
#if defined(PENSTOCK_NCCL_STANDIN)
#include "device/nccl_standin.h"
#endif

namespace penstock::tests {
namespace {

const CudaPlugin* Cuda() { return penstock_cuda_plugin(); }
std::string Tiny(const std::string& name) {
  return absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", name);
}

engine::LocalModel::Options OnOneThread(const CudaPlugin* cuda) {
  engine::LocalModel::Options options;
  options.threads = 1;
  options.cuda = cuda;
  return options;
}

TEST(CudaModelTest, AModelLoadsAndIsNamedAsOnTheCpu) {
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

#if defined(PENSTOCK_NCCL_STANDIN)
// Each shard on a GPU of its own, in one stage and in two.
TEST(CudaModelTest, ShardsExchangeByNccl) {
  cuda_standin::Reset({});
  const auto logits_on = [](const CudaPlugin* cuda, std::int32_t stages) {
    const auto model = *engine::LocalModel::Open(Tiny("llama3"));
    engine::LocalModel::Options options = OnOneThread(cuda);
    options.stages = stages;
    options.shards = options.sums = 2;
    options.gpus = stages == 1 ? std::vector<int>{0, 1} : std::vector<int>{0, 1, 1, 0};
    options.memory.context_tokens = 64;
    options.memory.logit_rows = 40;
    CHECK_OK(model->Load(options, [](std::size_t, std::size_t) {}));
    const auto pool = *model->MakePool();
    const auto runner = *model->MakeRunner(*pool);
    const std::vector<TokenId> tokens = RandomTokens(3, 40, model->architecture().vocab);
    const engine::SlabRef slabs[] = {*pool->Allocate(0), *pool->Allocate(0)};
    const engine::SequenceInput::Blocks blocks = {.slabs = slabs};
    const engine::SequenceInput input = {
        .tokens = tokens, .blocks = {&blocks, 1}, .logit_rows = 40};
    std::int32_t told = 0;
    runner->Run({&input, 1}, {}, [&told](std::int32_t layer) { EXPECT_EQ(layer, told++); });
    EXPECT_EQ(told, 3);
    Logits all;
    for (std::int32_t row = 0; row < 40; ++row) {
      all.emplace_back(runner->logits(row).begin(), runner->logits(row).end());
    }
    return all;
  };
  const Logits want = logits_on(nullptr, 1);
  for (const std::int32_t stages : {1, 2}) {
    SCOPED_TRACE(stages);
    const std::int64_t before = nccl_standin::Now().groups;
    EXPECT_EQ(RowsThatDiffer(logits_on(Cuda(), stages), want), 0);
    // Two in each of three layers, and the embedding, of two shards.
    EXPECT_EQ(nccl_standin::Now().groups - before, 14);
  }
  EXPECT_EQ(nccl_standin::Now().comms, 0);
  // One that cannot be made is done without.
  nccl_standin::Set({.init_error = 2});
  const std::int64_t before = nccl_standin::Now().groups;
  EXPECT_EQ(RowsThatDiffer(logits_on(Cuda(), 1), want), 0);
  EXPECT_EQ(nccl_standin::Now().groups, before);
  nccl_standin::Set({});
}
#endif

#if defined(PENSTOCK_CUDNN_STANDIN)
// A prompt in two chunks, behind which a token is drawn: the chunks are cuDNN's.
TEST(CudaModelTest, FastNumericsAttendByCudnn) {
  cuda_standin::Reset({});
  cudnn_standin::Set({});
  const auto logits_of = [](kernels::Numerics numerics) {
    const auto model = *engine::LocalModel::Open(Tiny("llama3"));
    engine::LocalModel::Options options = OnOneThread(Cuda());
    options.numerics = numerics;
    options.memory.context_tokens = 256;
    options.memory.chunk_tokens = 128;
    CHECK_OK(model->Load(options, [](std::size_t, std::size_t) {}));
    const auto pool = *model->MakePool();
    const auto runner = *model->MakeRunner(*pool);
    const std::vector<TokenId> tokens = RandomTokens(3, 200, model->architecture().vocab);
    std::vector<engine::SlabRef> slabs;
    for (int i = 0; i < 7; ++i) slabs.push_back(*pool->Allocate(0));
    const engine::SequenceInput::Blocks blocks = {.slabs = slabs};
    const std::span<const TokenId> all(tokens);
    for (const auto& [begin, rows] : {std::pair{0, 128}, std::pair{128, 71}, std::pair{199, 1}}) {
      const engine::SequenceInput input = {
          .tokens = all.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(rows)),
          .position = begin,
          .blocks = {&blocks, 1},
          .logit_rows = 1};
      runner->Run({&input, 1}, {}, [](std::int32_t) {});
    }
    return std::vector<float>(runner->logits(0).begin(), runner->logits(0).end());
  };
  const std::vector<float> want = logits_of(kernels::Numerics::kExact);
  EXPECT_EQ(cudnn_standin::Now().runs, 0);
  const std::vector<float> got = logits_of(kernels::Numerics::kFast);
  // The check, and each of two chunks in each of two layers: in the third only rows whose logits
  // are wanted attend.
  EXPECT_EQ(cudnn_standin::Now().runs, 5);
  EXPECT_EQ(cudnn_standin::Now().misuses, 0) << cudnn_standin::Now().last_misuse;
  float apart = 0, largest = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const float distance = std::abs(want[i] - got[i]);
    if (distance > apart || std::isnan(distance)) apart = distance;  // A NaN stays.
    largest = std::max(largest, std::abs(want[i]));
  }
  EXPECT_GT(apart, 0);
  EXPECT_LE(apart, largest / 64);
}
#endif

// Workers on both may serve one model; on the GPU peers see the pool through the host.
TEST(CudaModelTest, AWorkersModelIsThatOfTheCpu) {
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

// A plug-in whose products are off by one bit in batches of 33.
const CudaPlugin& PluginThatMindsItsBatch() {
  static kernels::CudaKernels kernels = *Cuda()->kernels;
  static const CudaPlugin plugin = [] {
    kernels.linear = [](std::span<const kernels::LinearOutput> outputs,
                        const kernels::Activations& x, std::int32_t rows, CudaStreamHandle stream) {
      const int error = Cuda()->kernels->linear(outputs, x, rows, stream);
      const cuda_standin::Work work;
      float& last = outputs[0].y[std::size_t{1} * static_cast<std::size_t>(rows) *
                                     static_cast<std::size_t>(outputs[0].matrix->rows) -
                                 1];
      if (rows == 33) last = std::nextafter(last, 1e30f);
      return error;
    };
    CudaPlugin made = *Cuda();
    made.kernels = &kernels;
    return made;
  }();
  return plugin;
}

TEST(CudaModelTest, AGpuWhoseRowsDependOnTheirBatchIsRefused) {
  cuda_standin::Reset({});
  const absl::Status refused =
      (*engine::LocalModel::Open(Tiny("llama3")))
          ->Load(OnOneThread(&PluginThatMindsItsBatch()), [](std::size_t, std::size_t) {});
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_NE(refused.message().find("as row 32 of 33"), absl::string_view::npos) << refused;
  cuda_standin::Reset({});
}

TEST(CudaModelTest, WhatDoesNotFitIsSaidWithBothNumbers) {
  cuda_standin::Reset({.memory_bytes = std::size_t{4} << 20});
  const auto made = ForwardHarness::Make(Tiny("llama3"), {.cuda = Cuda()});
  EXPECT_EQ(made.status().code(), absl::StatusCode::kResourceExhausted) << made.status();
  EXPECT_NE(made.status().message().find("of 4194304 are free"), absl::string_view::npos)
      << made.status();
  cuda_standin::Reset({});
}

}  // namespace
}  // namespace penstock::tests
