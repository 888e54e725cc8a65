// SPDX-License-Identifier: Apache-2.0
#include "model/vocabulary_testing.h"

#include <sstream>

#include "base/file.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace penstock::model {
namespace {

constexpr std::size_t kFileBytesMax = std::size_t{1} << 30;

}  // namespace

absl::StatusOr<VocabularyData> ReadVocabularyJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kFileBytesMax));
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    VocabularyData data;
    data.scheme = json.at("scheme") == "bpe" ? VocabularyData::Scheme::kByteLevelBpe
                                             : VocabularyData::Scheme::kSentencePiece;
    data.pieces = json.at("pieces").get<std::vector<std::string>>();
    for (const int kind : json.at("kinds")) data.kinds.push_back(static_cast<TokenKind>(kind));
    data.merges = json.value("merges", std::vector<std::string>());
    data.scores = json.value("scores", std::vector<float>());
    for (const nlohmann::json& split : json.value("splits", nlohmann::json::array())) {
      data.splits.push_back({.pattern = split.is_null() ? "" : split.get<std::string>(),
                             .digits_individually = split.is_null()});
    }
    data.normalize_nfc = json.value("normalize_nfc", false);
    data.ignore_merges = json.value("ignore_merges", false);
    data.add_space_prefix = json.value("add_space_prefix", false);
    data.add_bos = json.value("add_bos", false);
    if (json.contains("bos")) data.bos = json["bos"].get<TokenId>();
    if (json.contains("eos")) data.eos = json["eos"].get<TokenId>();
    if (json.contains("unknown")) data.unknown = json["unknown"].get<TokenId>();
    return data;
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", e.what()));
  }
}

absl::StatusOr<std::vector<GoldenEncoding>> ReadGoldenEncodings(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, ReadFile(path, kFileBytesMax));
  std::istringstream lines(std::move(text));
  std::vector<GoldenEncoding> goldens;
  try {
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json json = nlohmann::json::parse(line);
      goldens.push_back({json.at(0).get<std::string>(), json.at(1).get<std::vector<TokenId>>()});
    }
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " line ", goldens.size() + 1, ": ", e.what()));
  }
  return goldens;
}

}  // namespace penstock::model
