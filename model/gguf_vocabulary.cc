// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/gguf_model.h"
#include "model/vocabulary_parts.h"

namespace penstock::model {
namespace {

constexpr const char* kTokens = "tokenizer.ggml.tokens";

absl::Status CheckSize(const char* key, std::size_t got, std::size_t tokens) {
  if (got == tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "metadata ", key, " must have one value for each of ", tokens, " tokens, got ", got));
}

TokenKind ToKind(std::int64_t type) {
  switch (type) {
    case 2:
      return TokenKind::kUnknown;
    case 3:
      return TokenKind::kControl;
    case 4:
      return TokenKind::kUserDefined;
    case 5:
      return TokenKind::kUnused;
    case 6:
      return TokenKind::kByte;
    default:
      return TokenKind::kNormal;
  }
}

absl::Status ReadPieces(const Gguf& gguf, std::int32_t vocab, VocabularyData* out) {
  ASSIGN_OR_RETURN(out->pieces, gguf.GetStrings(kTokens));
  if (out->pieces.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", kTokens, " is missing or empty"));
  }
  const std::size_t tokens = out->pieces.size();
  if (tokens > static_cast<std::size_t>(vocab)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "metadata ", kTokens, " has ", tokens, " tokens, the embedding table ", vocab, " rows"));
  }
  ASSIGN_OR_RETURN(const std::vector<std::int64_t> types,
                   gguf.GetInts("tokenizer.ggml.token_type"));
  if (!types.empty()) RETURN_IF_ERROR(CheckSize("tokenizer.ggml.token_type", types.size(), tokens));
  out->kinds.assign(tokens, TokenKind::kNormal);
  for (std::size_t i = 0; i < types.size(); ++i) out->kinds[i] = ToKind(types[i]);
  for (std::size_t i = 0; i < tokens; ++i) {
    if (!out->pieces[i].empty()) continue;
    out->pieces[i] = absl::StrCat("[EMPTY_", i, "]");  // Keeps pieces unique.
    out->kinds[i] = TokenKind::kUnused;
  }
  return absl::OkStatus();
}

absl::Status ReadScheme(const Gguf& gguf, VocabularyData* out) {
  ASSIGN_OR_RETURN(const std::string model, gguf.GetString("tokenizer.ggml.model"));
  if (model == "gpt2") {
    out->scheme = VocabularyData::Scheme::kByteLevelBpe;
    ASSIGN_OR_RETURN(const std::string pre, gguf.GetString("tokenizer.ggml.pre", "default"));
    ASSIGN_OR_RETURN(PreTokenizer found, FindPreTokenizer(pre));
    out->splits = std::move(found.splits);
    out->normalize_nfc = found.normalize_nfc;
    out->ignore_merges = found.ignore_merges;
    out->add_bos = found.add_bos;
    out->escape_whitespace = false;
    out->byte_fallback = false;
    ASSIGN_OR_RETURN(out->merges, gguf.GetStrings("tokenizer.ggml.merges"));
    if (out->merges.empty()) {
      return absl::InvalidArgumentError(
          "metadata tokenizer.ggml.merges is missing or empty: a gpt2 tokenizer needs merges");
    }
    return absl::OkStatus();
  }
  if (model == "llama") {
    out->scheme = VocabularyData::Scheme::kSentencePiece;
    out->add_space_prefix = true;
    out->add_bos = true;
    out->bos = 1;  // What llama 2's files, which may leave them out, mean.
    out->eos = 2;
    out->unknown = 0;
    ASSIGN_OR_RETURN(out->scores, gguf.GetFloats("tokenizer.ggml.scores"));
    return CheckSize("tokenizer.ggml.scores", out->scores.size(), out->pieces.size());
  }
  return absl::InvalidArgumentError(
      absl::StrCat("metadata tokenizer.ggml.model must be gpt2 or llama, got \"",
                   absl::CHexEscape(model.substr(0, 100)), "\""));
}

absl::Status ReadId(const Gguf& gguf, const char* key, std::optional<TokenId>* id) {
  if (gguf.Find(key) == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(*id, gguf.GetInt(key));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VocabularyData> ReadGgufVocabulary(const Gguf& gguf, std::int32_t vocab) {
  VocabularyData out;
  RETURN_IF_ERROR(ReadPieces(gguf, vocab, &out));
  RETURN_IF_ERROR(ReadScheme(gguf, &out));
  RETURN_IF_ERROR(ReadId(gguf, "tokenizer.ggml.bos_token_id", &out.bos));
  RETURN_IF_ERROR(ReadId(gguf, "tokenizer.ggml.eos_token_id", &out.eos));
  RETURN_IF_ERROR(ReadId(gguf, "tokenizer.ggml.unknown_token_id", &out.unknown));
  RETURN_IF_ERROR(ReadId(gguf, "tokenizer.ggml.padding_token_id", &out.padding));
  ASSIGN_OR_RETURN(out.add_bos, gguf.GetBool("tokenizer.ggml.add_bos_token", out.add_bos));
  ASSIGN_OR_RETURN(out.add_eos, gguf.GetBool("tokenizer.ggml.add_eos_token", false));
  ASSIGN_OR_RETURN(const bool prefix,
                   gguf.GetBool("tokenizer.ggml.add_space_prefix", out.add_space_prefix));
  // Byte-level vocabularies have no use for it; some of their files set it all the same.
  out.add_space_prefix = prefix && out.scheme == VocabularyData::Scheme::kSentencePiece;
  std::vector<TokenId> ends;
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    std::optional<TokenId> id;
    RETURN_IF_ERROR(ReadId(gguf, key, &id));
    if (id) ends.push_back(*id);
  }
  FillEndOfGeneration(ends, &out);
  RETURN_IF_ERROR(CheckIds(out));
  return out;
}

}  // namespace penstock::model
