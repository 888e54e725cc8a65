// SPDX-License-Identifier: Apache-2.0
// D3: the logits of a sequence are the same bits however it runs. Reference: token by token, alone,
// one thread.
#include <algorithm>
#include <ostream>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "gtest/gtest.h"
#include "tests/forward_harness.h"

namespace penstock::tests {
namespace {

struct Model {
  const char* name;
  bool tiny;  // Committed, float weights: every chunk size. Else a real quantized one, from the
              // model cache.
  KvDtype kv_dtype = KvDtype::kF16;
};

void PrintTo(const Model& model, std::ostream* out) {
  *out << model.name << " " << ToString(model.kv_dtype);
}

// Long enough for three partitions of 256 keys and for every window, ending inside a block.
constexpr std::size_t kTokens = 600;

class BitsTest : public testing::TestWithParam<Model> {
 protected:
  static std::string Path() {
    if (!GetParam().tiny) return CachedModel(GetParam().name);
    return absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", GetParam().name);
  }
  static std::unique_ptr<ForwardHarness> Make(ForwardHarness::Options options) {
    options.kv_dtype = GetParam().kv_dtype;
    auto harness = ForwardHarness::Make(Path(), options);
    CHECK(harness.ok());
    return *std::move(harness);
  }
  void SetUp() override {
    if (Path().empty()) GTEST_SKIP() << "no model file; penstock model get fetches it";
    harness_ = Make({});
    tokens_ = RandomTokens(1, kTokens, harness_->architecture().vocab);
    ForwardHarness::Sequence s = harness_->NewSequence();
    reference_ = harness_->RunChunked(s, tokens_, 1);
    harness_->Free(s);
  }
  static std::vector<std::int32_t> ChunkSizes() {
    if (!GetParam().tiny) return {7, 64, 257, 512};
    return {2, 3, 7, 16, 31, 32, 33, 64, 100, 255, 256, 257, 512};
  }
  // The last logits of every chunk from `begin` on: rows before it can only be wrong if later ones
  // are.
  int ChunksThatDiffer(ForwardHarness& harness, ForwardHarness::Sequence& s, std::size_t begin,
                       std::size_t chunk) {
    int differ = 0;
    for (std::size_t end = begin; end < tokens_.size();) {
      begin = end;
      end = std::min(begin + chunk, tokens_.size());
      const auto first = tokens_.begin();
      const Logits logits = harness.Run(
          {{&s,
            {first + static_cast<std::ptrdiff_t>(begin), first + static_cast<std::ptrdiff_t>(end)},
            1}});
      differ += RowsThatDiffer(logits, reference_, end - 1);
    }
    return differ;
  }

  std::unique_ptr<ForwardHarness> harness_;
  std::vector<TokenId> tokens_;
  Logits reference_;
};

TEST_P(BitsTest, ChunksOfEverySize) {
  for (const std::int32_t chunk : ChunkSizes()) {
    SCOPED_TRACE(absl::StrCat("chunk_tokens=", chunk));
    ForwardHarness::Sequence s = harness_->NewSequence();
    EXPECT_EQ(ChunksThatDiffer(*harness_, s, 0, static_cast<std::size_t>(chunk)), 0);
    harness_->Free(s);
  }
}

TEST_P(BitsTest, ThreadsAndPageSizes) {
  struct Case {
    int threads;
    std::int32_t block_tokens, page_tokens;
    std::size_t chunk_tokens;
  };
  for (const Case& c : {Case{2, 32, 32, 1}, Case{2, 32, 32, 512}, Case{3, 64, 16, 128},
                        Case{2, 16, 4, 50}, Case{1, 256, 64, 300}}) {
    SCOPED_TRACE(
        absl::StrCat("threads=", c.threads, " block=", c.block_tokens, " page=", c.page_tokens));
    auto other =
        Make({.threads = c.threads, .block_tokens = c.block_tokens, .page_tokens = c.page_tokens});
    ForwardHarness::Sequence s = other->NewSequence();
    EXPECT_EQ(ChunksThatDiffer(*other, s, 0, c.chunk_tokens), 0);
  }
}

TEST_P(BitsTest, AnyCompanyInTheBatch) {
  for (const std::size_t others : {1u, 2u, 7u, 15u, 63u}) {
    SCOPED_TRACE(absl::StrCat("others=", others));
    std::vector<ForwardHarness::Sequence> sequences(others + 1);
    for (auto& s : sequences) s = harness_->NewSequence();
    std::mt19937 random(static_cast<std::uint32_t>(others));
    std::size_t done = 0;
    // Ours goes in random chunks; the others decode or bring small chunks of their own.
    for (int pass = 0; pass < 6; ++pass) {
      std::vector<ForwardHarness::Append> batch;
      const std::size_t mine = random() % (others + 1);
      std::size_t my_row = 0;
      std::size_t my_tokens = 0;
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        if (i == mine) {
          my_row = batch.size();
          my_tokens = 1 + random() % 60;
          batch.push_back({&sequences[0],
                           {tokens_.begin() + static_cast<std::ptrdiff_t>(done),
                            tokens_.begin() + static_cast<std::ptrdiff_t>(done + my_tokens)},
                           1});
        }
        if (i > 0) {
          batch.push_back({&sequences[i],
                           RandomTokens(static_cast<std::uint32_t>(random()), 1 + random() % 6,
                                        harness_->architecture().vocab),
                           1});
        }
      }
      const Logits logits = harness_->Run(batch);
      done += my_tokens;
      EXPECT_EQ(RowsThatDiffer({reference_[done - 1]}, logits, my_row), 0)
          << "after " << done << " tokens";
    }
    for (auto& s : sequences) harness_->Free(s);
  }
}

TEST_P(BitsTest, SharedPrefix) {
  ForwardHarness::Sequence whole = harness_->NewSequence();
  (void)harness_->Run({{&whole, {tokens_.begin(), tokens_.begin() + 512}, 1}});
  for (const std::int32_t shared : {32, 256, 512}) {
    SCOPED_TRACE(absl::StrCat("shared=", shared));
    ForwardHarness::Sequence s = harness_->Share(whole, shared);
    EXPECT_EQ(ChunksThatDiffer(*harness_, s, static_cast<std::size_t>(shared), 17), 0);
    harness_->Free(s);
  }
}

std::string Name(const testing::TestParamInfo<Model>& info) {
  std::string name(info.param.name);
  name = name.substr(0, name.find('-'));
  if (info.param.kv_dtype != KvDtype::kF16)
    name += "_" + std::string(ToString(info.param.kv_dtype));
  return name;
}
INSTANTIATE_TEST_SUITE_P(Tiny, BitsTest,
                         testing::Values(Model{"llama2", true}, Model{"llama3", true},
                                         Model{"mistral", true}, Model{"qwen2", true},
                                         Model{"qwen3", true}, Model{"gemma3", true},
                                         Model{"llama3", true, KvDtype::kInt8},
                                         Model{"gemma3", true, KvDtype::kInt8}),
                         Name);
INSTANTIATE_TEST_SUITE_P(Real, BitsTest,
                         testing::Values(Model{"SmolLM2-135M-Instruct.Q4_1.gguf", false},
                                         Model{"gemma-3-270m-q4_k_m.gguf", false},
                                         Model{"SmolLM2-135M-Instruct.Q4_1.gguf", false,
                                               KvDtype::kInt8}),
                         Name);

}  // namespace
}  // namespace penstock::tests
