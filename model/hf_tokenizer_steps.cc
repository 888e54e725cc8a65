// SPDX-License-Identifier: Apache-2.0
#include "model/hf_tokenizer_steps.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/vocabulary_parts.h"

namespace penstock::model {
namespace {

constexpr std::string_view kSpaceMark = "\u2581";

// Calls `each` for the steps of a normalizer, pre-tokenizer or post-processor, unrolling sequences.
template <typename Each>
absl::Status ForEachStep(const Json* step, const char* list, Each each) {
  if (step == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string type, GetJsonString(*step, "type"));
  if (type != "Sequence") return each(*step, type);
  const Json* steps = Member(*step, list);
  if (steps == nullptr || !steps->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: a Sequence must have an array of ", list));
  }
  for (const Json& inner : *steps) {
    RETURN_IF_ERROR(ForEachStep(&inner, list, each));  // Depth is bounded by the parser.
  }
  return absl::OkStatus();
}

// {"String": ...} or {"Regex": ...}.
absl::StatusOr<std::string> ReadPattern(const Json& step, const char* kind) {
  const Json* pattern = ObjectMember(step, "pattern");
  if (pattern == nullptr) {
    return absl::InvalidArgumentError("tokenizer.json: pattern must be an object");
  }
  return GetJsonString(*pattern, kind, "");
}

absl::Status ReadSplit(const Json& step, VocabularyData* out) {
  ASSIGN_OR_RETURN(const std::string regex, ReadPattern(step, "Regex"));
  ASSIGN_OR_RETURN(const std::string text, ReadPattern(step, "String"));
  ASSIGN_OR_RETURN(const std::string behavior, GetJsonString(step, "behavior"));
  ASSIGN_OR_RETURN(const bool invert, GetJsonBool(step, "invert", false));
  // Gemma splits at spaces, of which its normalizer leaves none.
  if (text == " " && out->escape_whitespace) return absl::OkStatus();
  if (behavior != "Isolated" || invert) {
    return UnsupportedStep(
        invert ? "inverted pre_tokenizer Split with" : "pre_tokenizer Split with", behavior);
  }
  if (regex.empty()) return UnsupportedStep("pre_tokenizer Split at the text", text);
  out->splits.push_back({.pattern = regex, .digits_individually = false});
  return absl::OkStatus();
}

absl::Status ReadMetaspace(const Json& step, VocabularyData* out) {
  ASSIGN_OR_RETURN(const std::string mark,
                   GetJsonString(step, "replacement", std::string(kSpaceMark)));
  ASSIGN_OR_RETURN(const bool split, GetJsonBool(step, "split", true));
  if (mark != kSpaceMark || split)
    return UnsupportedStep("pre_tokenizer Metaspace that splits or marks spaces with", mark);
  ASSIGN_OR_RETURN(const std::string prepend, GetJsonString(step, "prepend_scheme", "always"));
  out->escape_whitespace = true;
  out->add_space_prefix = prepend != "never";
  return absl::OkStatus();
}

}  // namespace

absl::Status UnsupportedStep(std::string_view what, std::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.json: ", ToAbsl(what), " ", Quoted(value), " is not supported"));
}

absl::Status ReadNormalizer(const Json& tokenizer, VocabularyData* out) {
  out->escape_whitespace = false;
  out->add_space_prefix = false;
  return ForEachStep(Member(tokenizer, "normalizer"), "normalizers",
                     [out](const Json& step, const std::string& type) -> absl::Status {
                       if (type == "NFC") {
                         out->normalize_nfc = true;
                         return absl::OkStatus();
                       }
                       if (type == "Prepend") {
                         ASSIGN_OR_RETURN(const std::string text, GetJsonString(step, "prepend"));
                         if (text != kSpaceMark)
                           return UnsupportedStep("normalizer Prepend of", text);
                         out->add_space_prefix = true;
                         return absl::OkStatus();
                       }
                       if (type == "Replace") {
                         ASSIGN_OR_RETURN(const std::string from, ReadPattern(step, "String"));
                         ASSIGN_OR_RETURN(const std::string to, GetJsonString(step, "content"));
                         if (from != " " || to != kSpaceMark) {
                           return UnsupportedStep("normalizer Replace", from);
                         }
                         out->escape_whitespace = true;
                         return absl::OkStatus();
                       }
                       return UnsupportedStep("normalizer", type);
                     });
}

absl::Status ReadPreTokenizer(const Json& tokenizer, bool* byte_level, VocabularyData* out) {
  return ForEachStep(
      Member(tokenizer, "pre_tokenizer"), "pretokenizers",
      [out, byte_level](const Json& step, const std::string& type) -> absl::Status {
        if (type == "Split") return ReadSplit(step, out);
        if (type == "Metaspace") return ReadMetaspace(step, out);
        if (type == "Digits") {
          ASSIGN_OR_RETURN(const bool each, GetJsonBool(step, "individual_digits", false));
          out->splits.push_back({.pattern = each ? "" : R"(\p{N}+)", .digits_individually = each});
          return absl::OkStatus();
        }
        if (type == "ByteLevel") {
          ASSIGN_OR_RETURN(const bool prefix, GetJsonBool(step, "add_prefix_space", true));
          if (prefix) return UnsupportedStep("pre_tokenizer ByteLevel with", "add_prefix_space");
          ASSIGN_OR_RETURN(const bool regex, GetJsonBool(step, "use_regex", true));
          if (regex) {
            out->splits.push_back(
                {.pattern = std::string(kGpt2Pattern), .digits_individually = false});
          }
          *byte_level = true;
          return absl::OkStatus();
        }
        return UnsupportedStep("pre_tokenizer", type);
      });
}

std::optional<TokenId> FindPiece(const VocabularyData& data, std::string_view piece) {
  const auto it = std::find(data.pieces.begin(), data.pieces.end(), piece);
  if (piece.empty() || it == data.pieces.end()) return std::nullopt;
  return static_cast<TokenId>(it - data.pieces.begin());
}

absl::Status ReadPostProcessor(const Json& tokenizer, VocabularyData* out) {
  return ForEachStep(Member(tokenizer, "post_processor"), "processors",
                     [out](const Json& step, const std::string& type) -> absl::Status {
                       if (type == "ByteLevel")
                         return absl::OkStatus();  // Moves offsets, which we have none of.
                       if (type != "TemplateProcessing")
                         return UnsupportedStep("post_processor", type);
                       const Json* parts = Member(step, "single");
                       if (parts == nullptr || !parts->is_array())
                         return UnsupportedStep("post_processor without single,", type);
                       bool before_text = true;
                       for (const Json& part : *parts) {
                         const Json* special = ObjectMember(part, "SpecialToken");
                         if (special == nullptr) {
                           before_text = false;
                           continue;
                         }
                         ASSIGN_OR_RETURN(const std::string piece, GetJsonString(*special, "id"));
                         bool& add = before_text ? out->add_bos : out->add_eos;
                         if (add)
                           return UnsupportedStep("post_processor with a second token,", piece);
                         add = true;
                         (before_text ? out->bos : out->eos) = FindPiece(*out, piece);
                       }
                       return absl::OkStatus();
                     });
}

}  // namespace penstock::model
