// SPDX-License-Identifier: Apache-2.0
// tokenizer_compare VOCABULARY.json GOLDENS.jsonl: encodes every golden text and decodes it again,
// prints what differs and how fast it went; exit code 1 if anything was encoded differently. The
// large comparison that tests/make_tokenizer_goldens.py --large prepares. Texts that are not
// decoded back are no fault where the vocabulary lacks bytes or, with SentencePiece, the text has
// U+2581.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/time.h"
#include "model/tokenizer.h"
#include "model/vocabulary_testing.h"
#include "nlohmann/json.hpp"

namespace penstock::model {
namespace {

std::string Join(const std::vector<TokenId>& tokens) {
  std::string text;
  for (const TokenId token : tokens) absl::StrAppend(&text, " ", token);
  return text;
}

int Run(const std::string& vocabulary_path, const std::string& goldens_path) {
  absl::StatusOr<VocabularyData> data = ReadVocabularyJson(vocabulary_path);
  const absl::StatusOr<std::vector<GoldenEncoding>> goldens = ReadGoldenEncodings(goldens_path);
  if (!data.ok() || !goldens.ok()) {
    std::fprintf(stderr, "%s %s\n", data.status().ToString().c_str(),
                 goldens.status().ToString().c_str());
    return 2;
  }
  const bool normalizes = data->normalize_nfc;
  const Clock& clock = SteadyClock();
  const MonoTime start = clock.Now();
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Make(*std::move(data));
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 2;
  }
  const MonoTime made = clock.Now();
  std::size_t bytes = 0, wrong = 0, lost = 0;
  Duration spent{};
  for (const GoldenEncoding& golden : *goldens) {
    const MonoTime before = clock.Now();
    const std::vector<TokenId> tokens = (*tokenizer)->Encode(golden.text, {.add_bos = false});
    spent += clock.Now() - before;
    bytes += golden.text.size();
    if (tokens != golden.tokens && ++wrong <= 10) {
      std::printf("text  %.300s\nours %.300s\nwant %.300s\n",
                  nlohmann::json(golden.text).dump(-1, ' ', true).c_str(), Join(tokens).c_str(),
                  Join(golden.tokens).c_str());
    }
    if (!normalizes && (*tokenizer)->Decode(tokens, true) != golden.text && ++lost <= 10) {
      std::printf("lost  %.300s\n", nlohmann::json(golden.text).dump(-1, ' ', true).c_str());
    }
  }
  std::printf(
      "%zu texts, %zu encoded differently, %zu not decoded back; made in %.1f ms, "
      "%.1f MB at %.1f MB/s\n",
      goldens->size(), wrong, lost, ToMillis(made - start), bytes / 1e6,
      bytes / 1e6 / ToSeconds(spent));
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace penstock::model

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_compare VOCABULARY.json GOLDENS.jsonl\n");
    return 2;
  }
  return penstock::model::Run(argv[1], argv[2]);
}
