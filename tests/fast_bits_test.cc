// SPDX-License-Identifier: Apache-2.0
// Fast numerics on emulated GPUs, over a stand-in for cuBLASLt whose sums depend on how many rows a
// batch has: answers are near those of exact numerics, no two of their bits are promised, and nothing
// of one is taken for the other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check_ok.h"
#include "base/loss_class.h"
#include "device/cublas_lt_standin.h"
#include "device/cuda_standin.h"
#include "engine/local_model.h"
#include "kernels/cuda_kernels.h"
#include "kernels/fast_products.h"
#include "tests/engine_harness.h"
#include "tests/forward_harness.h"
#include "tests/quantized_model.h"

namespace penstock::tests {
namespace {

using kernels::Numerics;

const CudaPlugin* Cuda() { return penstock_cuda_plugin(); }
std::string Tiny(const std::string& name) {
  return absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", name);
}

std::unique_ptr<ForwardHarness> Make(const std::string& path, Numerics numerics) {
  cuda_standin::Reset({});
  return *ForwardHarness::Make(path, {.threads = 1,
                                      .rows_max = 256,
                                      .pool_bytes = std::size_t{8} << 20,
                                      .cuda = Cuda(),
                                      .numerics = numerics});
}

// Of a prompt in chunks; all logits.
Logits LogitsOf(const std::string& path, Numerics numerics, std::size_t tokens,
                std::int32_t chunk) {
  const auto harness = Make(path, numerics);
  ForwardHarness::Sequence s = harness->NewSequence();
  Logits all =
      harness->RunChunked(s, RandomTokens(1, tokens, harness->architecture().vocab), chunk);
  harness->Free(s);
  return all;
}

// The root of the mean square of what two rows differ by, of that of the second.
double Apart(const std::vector<float>& got, const std::vector<float>& want) {
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    apart += std::pow(got[i] - want[i], 2.0);
    size += std::pow(want[i], 2.0);
  }
  return std::sqrt(apart / size);
}

void ExpectNear(const std::string& path, std::size_t tokens, double apart_max) {
  const std::int64_t before = cublas_lt_standin::Now().products;
  const auto chunk = static_cast<std::int32_t>(tokens);
  const Logits want = LogitsOf(path, Numerics::kExact, tokens, chunk);
  EXPECT_EQ(cublas_lt_standin::Now().products, before);
  const Logits got = LogitsOf(path, Numerics::kFast, tokens, chunk);
  EXPECT_GT(cublas_lt_standin::Now().products, before);
  ASSERT_EQ(got.size(), tokens);
  double apart = 0;
  for (std::size_t i = 0; i < tokens; ++i) {
    const double of_row = Apart(got[i], want[i]);
    if (of_row > apart || std::isnan(of_row)) apart = of_row;  // A NaN stays.
  }
  EXPECT_LT(apart, apart_max);
  EXPECT_GT(apart, 0) << "the same products";
}

// Activations lose all but 8 bits (BF16) or 11 (F16) in each of four products of each layer.
TEST(FastBitsTest, IsNearExact) {
  struct Case {
    const char* name;
    double apart_max;
  };
  for (const Case& c : {Case{"llama3", 0x1p-5},
                        {"mistral", 0x1p-5},
                        {"gemma3", 0x1p-5},
                        {"qwen2", 0x1p-8},
                        {"qwen3", 0x1p-5}}) {
    SCOPED_TRACE(c.name);
    ExpectNear(Tiny(c.name), 60, c.apart_max);
  }
}

// Theirs are rounded to int8 in both.
TEST(FastBitsTest, QuantizedWeightsAreNearExact) {
  using kernels::WeightFormat;
  for (const auto& formats :
       {std::vector{WeightFormat::kQ4_1, WeightFormat::kQ8_0, WeightFormat::kQ5_0},
        std::vector{WeightFormat::kQ4_K, WeightFormat::kQ6_K, WeightFormat::kQ2_K}}) {
    SCOPED_TRACE(std::string(kernels::Info(formats[0]).name));
    const std::string path = absl::StrCat(testing::TempDir(), "/penstock_fast.gguf");
    WriteQuantizedModel({.layers = 1, .formats = formats}, path);
    ExpectNear(path, kernels::FastProducts::kInt8RowsMin, 0x1p-6);
  }
}

// The D3 matrix: one prompt in chunks of many sizes, and in company. How many of its last rows are not
// what they are in one chunk?
int RowsUnlike(Numerics numerics) {
  constexpr std::size_t kTokens = 60;
  const auto harness = Make(Tiny("llama3"), numerics);
  const std::int32_t vocab = harness->architecture().vocab;
  const std::vector<TokenId> tokens = RandomTokens(1, kTokens, vocab);
  ForwardHarness::Sequence s = harness->NewSequence();
  const Logits whole = harness->RunChunked(s, tokens, kTokens);
  harness->Free(s);
  int unlike = 0;
  for (const std::int32_t chunk : {1, 7, 17, 20, 32, 33, 48}) {
    s = harness->NewSequence();
    const Logits got = harness->RunChunked(s, tokens, chunk);
    unlike += RowsThatDiffer({got.back()}, whole, kTokens - 1);
    harness->Free(s);
  }
  for (const std::size_t others : {1u, 5u, 70u, 150u}) {
    s = harness->NewSequence();
    ForwardHarness::Sequence other = harness->NewSequence();
    const Logits got = harness->Run({{&s, tokens, 1}, {&other, RandomTokens(2, others, vocab), 0}});
    unlike += RowsThatDiffer(got, whole, kTokens - 1);
    harness->Free(s);
    harness->Free(other);
  }
  return unlike;
}

TEST(FastBitsTest, TheMatrixOfEqualBitsFailsOnFastAlone) {
  EXPECT_EQ(RowsUnlike(Numerics::kExact), 0);
  EXPECT_GE(RowsUnlike(Numerics::kFast), 6);
}

// Twenty answers decode together, so that products of a step's graph are cuBLASLt's.
TEST(FastBitsTest, GraphsHaveTheProductsInThem) {
  const auto file = *model::ModelFile::Open(Tiny("qwen2"));
  engine::Request request;
  request.prompt = RandomTokens(4, 20, file->architecture().vocab);
  request.n = 20;
  request.max_tokens = 12;
  request.ignore_eos = true;
  request.sampling.temperature = 0.9;
  request.sampling.logprobs = 0;
  std::vector<Answers> answers;
  for (const bool graphs : {true, false}) {
    SCOPED_TRACE(absl::StrCat("graphs=", graphs));
    cuda_standin::Reset({.graphs = graphs});
    const std::int64_t launches = cuda_standin::Now().graph_launches;
    const std::int64_t products = cublas_lt_standin::Now().products;
    const std::int64_t searches = cublas_lt_standin::Now().searches;
    {
      EngineHarness harness(
          *file, {.cuda = Cuda(), .numerics = Numerics::kFast},
          {.step_tokens = 64, .sequences_max = 32, .pool = {.pool_bytes = std::size_t{4} << 20}});
      answers.push_back(harness.Run({&request, 1}));
    }
    EXPECT_EQ(cuda_standin::Now().graph_launches - launches >= 6, graphs);
    // Q, K, V, output, gate, up and down of each layer, and the head, in each of eleven steps at least.
    const auto layers = static_cast<std::int64_t>(file->architecture().layers.size());
    EXPECT_GE(cublas_lt_standin::Now().products - products, 11 * (7 * layers + 1));
    EXPECT_LT(cublas_lt_standin::Now().searches - searches, 40);
  }
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[0].size(), 20u);
  EXPECT_EQ(cublas_lt_standin::Now().handles, 0);
  EXPECT_EQ(cublas_lt_standin::Now().objects, 0);
  cuda_standin::Reset({});
}

TEST(FastBitsTest, NothingIsSharedWithExact) {
  cuda_standin::Reset({});
  const auto load = [](Numerics numerics) {
    auto model = *engine::LocalModel::Open(Tiny("llama3"));
    engine::LocalModel::Options options;
    options.threads = 1;
    options.cuda = Cuda();
    options.for_peers = true;
    options.numerics = numerics;
    CHECK_OK(model->Load(options, [](std::size_t, std::size_t) {}));
    return model;
  };
  const auto exact = load(Numerics::kExact), fast = load(Numerics::kFast);
  NamespaceFields of_exact = exact->namespace_fields(), of_fast = fast->namespace_fields();
  EXPECT_EQ(of_exact.numerics, "cpu-1");
  EXPECT_EQ(of_fast.numerics, "fast-1");
  EXPECT_NE(MakeNamespace(of_exact), MakeNamespace(of_fast));
  EXPECT_NE(exact->Identity(), fast->Identity()) << "workers of both would not be refused";
  of_fast.numerics = of_exact.numerics;
  EXPECT_EQ(MakeNamespace(of_exact), MakeNamespace(of_fast)) << "something else differs";
  // Room and workspace are part of what a worker says it takes.
  EXPECT_GE(fast->plan().scratch_bytes, exact->plan().scratch_bytes +
                                            kernels::FastProducts::kRoomBytes +
                                            kernels::FastProducts::kWorkspaceBytes);
}

TEST(FastBitsTest, IsRefusedWithWhatToDo) {
  const auto load = [](const engine::LocalModel::Options& options) {
    return (*engine::LocalModel::Open(Tiny("llama3")))->Load(options, [](std::size_t, std::size_t) {
    });
  };
  engine::LocalModel::Options options;
  options.threads = 1;
  options.numerics = Numerics::kFast;
  absl::Status refused = load(options);
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_NE(refused.message().find("the device is the CPU"), absl::string_view::npos) << refused;
  EXPECT_NE(refused.message().find("--numerics exact"), absl::string_view::npos) << refused;
  CudaPlugin without = *Cuda();
  without.cublas_lt = nullptr;
  options.cuda = &without;
  refused = load(options);
  EXPECT_TRUE(absl::IsUnimplemented(refused)) << refused;
  EXPECT_NE(refused.message().find("numerics fast need cuBLASLt"), absl::string_view::npos)
      << refused;
  options.numerics = Numerics::kExact;
  EXPECT_TRUE(load(options).ok());
  cuda_standin::Reset({});
}

}  // namespace
}  // namespace penstock::tests
