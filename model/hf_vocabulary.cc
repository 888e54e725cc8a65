// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/hf_model.h"
#include "model/hf_tokenizer_steps.h"
#include "model/vocabulary_parts.h"

namespace penstock::model {
namespace {

using Scheme = VocabularyData::Scheme;

constexpr std::size_t kTokenizerBytesMax = 64u << 20;  // Gemma 3's has 33 MB, the largest known.
constexpr std::size_t kSmallBytesMax = 16u << 20;

absl::Status CheckBpe(const Json& model) {
  ASSIGN_OR_RETURN(const std::string type, GetJsonString(model, "type", "BPE"));
  if (type != "BPE") return UnsupportedStep("model", type);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const std::string value, GetJsonString(model, key, ""));
    if (!value.empty()) return UnsupportedStep(absl::StrCat("model ", key), value);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::size_t> ReadId(const std::string& piece, const Json& id, std::int32_t vocab) {
  if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocab)) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: the id of ", Quoted(piece),
                                                   " must be below the embedding table's ", vocab,
                                                   " rows, got ", Brief(id)));
  }
  return id.get<std::size_t>();
}

// Makes room for `id` and puts `piece` there; two different pieces cannot share an id.
absl::Status SetPiece(std::size_t id, const std::string& piece, TokenKind kind,
                      VocabularyData* out) {
  if (out->pieces.size() <= id) {
    out->pieces.resize(id + 1);
    out->kinds.resize(id + 1, TokenKind::kUnused);
  }
  if (out->kinds[id] != TokenKind::kUnused && out->pieces[id] != piece) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: id ", id, " is given to ",
                                                   Quoted(out->pieces[id]), " and ",
                                                   Quoted(piece)));
  }
  out->pieces[id] = piece;
  out->kinds[id] = piece.empty() ? TokenKind::kUnused : kind;
  return absl::OkStatus();
}

bool IsBytePiece(std::string_view piece) {
  return piece.size() == 6 && piece.substr(0, 3) == "<0x" && piece[5] == '>' &&
         absl::ascii_isxdigit(static_cast<unsigned char>(piece[3])) &&
         absl::ascii_isxdigit(static_cast<unsigned char>(piece[4]));
}

absl::Status ReadPieces(const Json& model, std::int32_t vocab, VocabularyData* out) {
  const Json* pieces = ObjectMember(model, "vocab");
  if (pieces == nullptr || pieces->empty()) {
    return absl::InvalidArgumentError("tokenizer.json: model.vocab must be an object with pieces");
  }
  for (const auto& [piece, id] : pieces->items()) {
    ASSIGN_OR_RETURN(const std::size_t at, ReadId(piece, id, vocab));
    const bool byte = out->byte_fallback && IsBytePiece(piece);
    RETURN_IF_ERROR(SetPiece(at, piece, byte ? TokenKind::kByte : TokenKind::kNormal, out));
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const Json& model, VocabularyData* out) {
  const Json* merges = Member(model, "merges");
  if (merges == nullptr || !merges->is_array() || merges->empty()) {
    return absl::InvalidArgumentError("tokenizer.json: model.merges must be an array with merges");
  }
  out->merges.reserve(merges->size());
  for (const Json& merge : *merges) {
    if (merge.is_string()) {
      out->merges.push_back(merge.get<std::string>());
      continue;
    }
    const bool pair =
        merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    if (!pair) return UnsupportedStep("merge", Brief(merge));
    const auto& left = merge[0].get_ref<const std::string&>();
    const auto& right = merge[1].get_ref<const std::string&>();
    if (left.find(' ') != std::string::npos || right.find(' ') != std::string::npos) {
      return UnsupportedStep("merge of a piece with a space,", left);
    }
    out->merges.push_back(absl::StrCat(left, " ", right));
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const Json& tokenizer, std::int32_t vocab, VocabularyData* out) {
  const Json* added = Member(tokenizer, "added_tokens");
  if (added == nullptr) return absl::OkStatus();
  if (!added->is_array()) return UnsupportedStep("added_tokens", Brief(*added));
  for (const Json& token : *added) {
    ASSIGN_OR_RETURN(const std::string content, GetJsonString(token, "content"));
    ASSIGN_OR_RETURN(const bool special, GetJsonBool(token, "special", false));
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      ASSIGN_OR_RETURN(const bool value, GetJsonBool(token, key, false));
      if (value) return UnsupportedStep(absl::StrCat("added token with ", key, ","), content);
    }
    ASSIGN_OR_RETURN(const std::int32_t id, GetJsonInt(token, "id"));
    if (id >= vocab) continue;
    RETURN_IF_ERROR(SetPiece(static_cast<std::size_t>(id), content,
                             special ? TokenKind::kControl : TokenKind::kUserDefined, out));
  }
  return absl::OkStatus();
}

// A token id or a list of them, from config.json or generation_config.json.
absl::Status ReadEndIds(const Json& config, std::vector<TokenId>* ends) {
  const Json* ids = Member(config, "eos_token_id");
  if (ids == nullptr) return absl::OkStatus();
  const bool list = ids->is_array();
  for (std::size_t i = 0; i < (list ? ids->size() : 1); ++i) {
    const Json& id = list ? (*ids)[i] : *ids;
    constexpr std::uint64_t kMax = 1 << 30;
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > kMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("eos_token_id must be a token id, got ", Brief(id)));
    }
    ends->push_back(id.get<TokenId>());
  }
  return absl::OkStatus();
}

// A piece given as text or as {"content": text}.
std::string TokenText(const Json& config, const char* key) {
  const Json* value = Member(config, key);
  if (value != nullptr && value->is_object()) value = Member(*value, "content");
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

absl::StatusOr<Json> ParseOptional(std::string_view text, std::string_view what) {
  if (text.empty()) return Json::object();
  return ParseJsonObject(text, what, kSmallBytesMax);
}

absl::Status ReadSpecialIds(const HfTexts& texts, const Json& config, VocabularyData* out) {
  ASSIGN_OR_RETURN(const Json own, ParseOptional(texts.tokenizer_config, "tokenizer_config.json"));
  ASSIGN_OR_RETURN(const Json generation,
                   ParseOptional(texts.generation_config, "generation_config.json"));
  std::vector<TokenId> ends;
  RETURN_IF_ERROR(ReadEndIds(config, &ends));
  RETURN_IF_ERROR(ReadEndIds(generation, &ends));
  if (const auto bos = FindPiece(*out, TokenText(own, "bos_token"))) out->bos = bos;
  if (const auto eos = FindPiece(*out, TokenText(own, "eos_token"))) out->eos = eos;
  out->padding = FindPiece(*out, TokenText(own, "pad_token"));
  if (!out->bos && Member(config, "bos_token_id") != nullptr) {
    ASSIGN_OR_RETURN(out->bos, GetJsonInt(config, "bos_token_id"));
  }
  if (!out->eos && !ends.empty()) out->eos = ends[0];
  ASSIGN_OR_RETURN(out->add_bos, GetJsonBool(own, "add_bos_token", out->add_bos));
  ASSIGN_OR_RETURN(out->add_eos, GetJsonBool(own, "add_eos_token", out->add_eos));
  FillEndOfGeneration(ends, out);
  return CheckIds(*out);
}

}  // namespace

absl::StatusOr<VocabularyData> ReadHfVocabulary(const HfTexts& texts, const Json& config,
                                                std::int32_t vocab) {
  ASSIGN_OR_RETURN(const Json tokenizer,
                   ParseJsonObject(texts.tokenizer, "tokenizer.json", kTokenizerBytesMax));
  const Json* model = ObjectMember(tokenizer, "model");
  if (model == nullptr) {
    return absl::InvalidArgumentError("tokenizer.json: model must be an object");
  }
  VocabularyData out;
  RETURN_IF_ERROR(CheckBpe(*model));
  RETURN_IF_ERROR(ReadNormalizer(tokenizer, &out));
  bool byte_level = false;
  RETURN_IF_ERROR(ReadPreTokenizer(tokenizer, &byte_level, &out));
  ASSIGN_OR_RETURN(out.byte_fallback, GetJsonBool(*model, "byte_fallback", false));
  ASSIGN_OR_RETURN(out.ignore_merges, GetJsonBool(*model, "ignore_merges", false));
  out.scheme = byte_level ? Scheme::kByteLevelBpe : Scheme::kSentencePiece;
  if (!byte_level && !out.byte_fallback) {
    return absl::InvalidArgumentError(
        "tokenizer.json: a BPE model must be byte-level or have byte_fallback");
  }
  if (byte_level && (out.escape_whitespace || out.add_space_prefix || out.byte_fallback)) {
    return absl::InvalidArgumentError(
        "tokenizer.json: a byte-level model must not rewrite spaces or fall back to bytes");
  }
  if (!byte_level && !out.splits.empty()) {
    return UnsupportedStep("pre_tokenizer Split without ByteLevel,", out.splits[0].pattern);
  }
  RETURN_IF_ERROR(ReadPieces(*model, vocab, &out));
  RETURN_IF_ERROR(ReadMerges(*model, &out));
  RETURN_IF_ERROR(ReadAddedTokens(tokenizer, vocab, &out));
  ASSIGN_OR_RETURN(const std::string unknown, GetJsonString(*model, "unk_token", ""));
  out.unknown = FindPiece(out, unknown);
  for (std::size_t i = 0; i < out.pieces.size(); ++i) {
    if (out.pieces[i].empty()) out.pieces[i] = absl::StrCat("[EMPTY_", i, "]");  // Unused ids.
  }
  RETURN_IF_ERROR(ReadPostProcessor(tokenizer, &out));
  RETURN_IF_ERROR(ReadSpecialIds(texts, config, &out));
  return out;
}

}  // namespace penstock::model
