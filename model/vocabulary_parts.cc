// SPDX-License-Identifier: Apache-2.0
#include "model/vocabulary_parts.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::model {
namespace {

// The patterns as the models' own tokenizer.json have them.
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

VocabularyData::Split Pattern(std::string_view pattern) {
  return {.pattern = std::string(pattern), .digits_individually = false};
}
VocabularyData::Split Digits() { return {.pattern = "", .digits_individually = true}; }

template <std::size_t n>
bool OneOf(std::string_view name, const std::array<std::string_view, n>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// As llama.cpp collects them, without those that only code-infill models use.
constexpr std::array<std::string_view, 13> kEndPieces = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",   "</s>",
    "<|eom_id|>", "<EOT>",      "[EOT]",   "[EOS]",         "<|end_of_text|>", "<end_of_utterance>",
    "<eos>"};

}  // namespace

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::StatusOr<PreTokenizer> FindPreTokenizer(std::string_view name) {
  PreTokenizer out;
  if (OneOf<3>(name, {"llama3", "llama-v3", "llama-bpe"})) {
    out.splits = {Pattern(kLlama3Pattern)};
    out.ignore_merges = true;
    out.add_bos = true;
  } else if (OneOf<2>(name, {"qwen2", "deepseek-r1-qwen"})) {
    out.splits = {Pattern(kQwen2Pattern)};
    out.normalize_nfc = true;
  } else if (OneOf<4>(name, {"smollm", "starcoder", "refact", "codeshell"})) {
    out.splits = {Digits(), Pattern(kGpt2Pattern)};
  } else if (OneOf<5>(name, {"gpt-2", "gpt2", "mpt", "olmo", "phi-2"})) {
    out.splits = {Pattern(kGpt2Pattern)};
  } else if (name == "tekken") {
    out.splits = {Pattern(kTekkenPattern)};
    out.ignore_merges = true;
    out.add_bos = true;
  } else if (name == "default") {  // llama.cpp's rule for files that name none.
    out.splits = {Pattern(R"([\p{P}\$\+<=>\^~\|]+)"), Pattern(kGpt2Pattern), Pattern(R"(\p{N}+)"),
                  Pattern("[0-9][0-9][0-9]")};
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata tokenizer.ggml.pre: unknown pre-tokenizer \"",
                     absl::CHexEscape(ToAbsl(name.substr(0, 100))),
                     "\"; known are default, gpt-2, llama-bpe, qwen2, smollm, starcoder, tekken"));
  }
  return out;
}

void FillEndOfGeneration(const std::vector<TokenId>& named, VocabularyData* vocabulary) {
  std::vector<TokenId>& ends = vocabulary->end_of_generation;
  ends = named;
  if (vocabulary->eos) ends.push_back(*vocabulary->eos);
  for (std::size_t i = 0; i < vocabulary->pieces.size(); ++i) {
    if (vocabulary->kinds[i] == TokenKind::kControl &&
        std::find(kEndPieces.begin(), kEndPieces.end(), vocabulary->pieces[i]) !=
            kEndPieces.end()) {
      ends.push_back(static_cast<TokenId>(i));
    }
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
}

absl::Status CheckIds(const VocabularyData& v) {
  const auto size = static_cast<std::int64_t>(v.pieces.size());
  const auto check = [size](const char* field, TokenId id) -> absl::Status {
    if (id >= 0 && id < size) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer: ", field, " must be a token id below ", size, ", got ", id));
  };
  for (const auto& [field, id] :
       {std::pair("bos", v.bos), std::pair("eos", v.eos), std::pair("unknown", v.unknown),
        std::pair("padding", v.padding)}) {
    if (id) RETURN_IF_ERROR(check(field, *id));
  }
  for (const TokenId id : v.end_of_generation) RETURN_IF_ERROR(check("end of generation", id));
  return absl::OkStatus();
}

}  // namespace penstock::model
