// SPDX-License-Identifier: Apache-2.0
// Real vocabularies against golden encodings of the tokenizers and sentencepiece packages.
#include <filesystem>

#include "base/file.h"
#include "gtest/gtest.h"
#include "model/model_file.h"
#include "model/tokenizer.h"
#include "model/vocabulary_testing.h"
#include "nlohmann/json.hpp"

namespace penstock::model {
namespace {

const std::string kGolden = PENSTOCK_SOURCE_DIR "/tests/golden/tokenizer/";
const std::string kModels = PENSTOCK_SOURCE_DIR "/.cache/models/";
constexpr char kSmolLm2[] = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr char kGemma3[] = "gemma-3-270m-q4_k_m.gguf";

// Null where there is no such file.
std::unique_ptr<Tokenizer> OpenTokenizer(const char* file) {
  if (!std::filesystem::exists(kModels + file)) return nullptr;
  const auto model = ModelFile::Open(kModels + file);
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) return nullptr;
  auto tokenizer = Tokenizer::Make((*model)->vocabulary());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

void ExpectGoldens(const Tokenizer& tokenizer, const std::string& name) {
  const auto goldens = ReadGoldenEncodings(kGolden + name);
  ASSERT_TRUE(goldens.ok()) << goldens.status();
  ASSERT_GE(goldens->size(), 100u);
  for (const GoldenEncoding& golden : *goldens) {
    EXPECT_EQ(tokenizer.Encode(golden.text, {.add_bos = false}), golden.tokens) << golden.text;
  }
}

TEST(TokenizerModelTest, SmolLm2) {
  const std::unique_ptr<Tokenizer> tokenizer = OpenTokenizer(kSmolLm2);
  if (tokenizer == nullptr) GTEST_SKIP() << "no " << kSmolLm2 << " in .cache/models";
  ExpectGoldens(*tokenizer, "smollm2.goldens.jsonl");
  const auto text = ReadFile(kGolden + "smollm2_tokenizer.json", 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  for (const nlohmann::json& golden : nlohmann::json::parse(*text)) {
    EXPECT_EQ(tokenizer->Encode(golden["text"].get<std::string>(), {}),
              golden["ids"].get<std::vector<TokenId>>())
        << golden["text"];
  }
}

TEST(TokenizerModelTest, Gemma3) {
  const std::unique_ptr<Tokenizer> tokenizer = OpenTokenizer(kGemma3);
  if (tokenizer == nullptr) GTEST_SKIP() << "no " << kGemma3 << " in .cache/models";
  ExpectGoldens(*tokenizer, "gemma3.goldens.jsonl");
  EXPECT_EQ(tokenizer->Encode("a", {}).front(), tokenizer->data().bos);
}

}  // namespace
}  // namespace penstock::model
