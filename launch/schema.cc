// SPDX-License-Identifier: Apache-2.0
#include "launch/schema.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/device_name.h"
#include "base/status.h"
#include "base/suggest.h"
#include "launch/values.h"

namespace penstock::launch {
namespace {

const Key* FindKey(Section section, std::string_view name) {
  for (const Key& key : Keys()) {
    if (key.section == section && key.name == name) return &key;
  }
  return nullptr;
}

absl::Status Wanted(std::string_view what, const YamlNode& got) {
  const std::string shown =
      got.kind == YamlNode::Kind::kScalar ? Quoted(got.text) : std::string(ToString(got.kind));
  return absl::InvalidArgumentError(absl::StrCat("must be ", ToAbsl(what), ", got ", shown));
}

std::vector<std::string> SplitWords(std::string_view words) {
  return absl::StrSplit(ToAbsl(words), ' ', absl::SkipEmpty());
}

// What a key takes, of those it has words for.
std::string WordsOf(const Key& key) {
  std::string words = absl::StrJoin(SplitWords(key.words), ", ");
  if (key.kind == ValueKind::kDevice) {
    absl::StrAppend(&words, ", cuda:N,M,... with numbers from 0 to ", kGpusMax - 1);
  }
  return words;
}

bool HasControl(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7f;
  });
}

absl::StatusOr<std::string> ParseText(const Key& key, const YamlNode& node) {
  const bool scalar = node.kind == YamlNode::Kind::kScalar;
  if (key.kind == ValueKind::kWord || key.kind == ValueKind::kDevice) {
    const std::vector<std::string> words = SplitWords(key.words);
    const bool known = std::find(words.begin(), words.end(), node.text) != words.end();
    const bool device = key.kind == ValueKind::kDevice;
    if (scalar && (known || (device && GpusOf(node.text)))) return node.text;
    const bool numbered = device && node.text.starts_with("cuda:");  // Which numbers were meant?
    return absl::InvalidArgumentError(
        absl::StrCat(Wanted("one of " + WordsOf(key), node).message(),
                     DidYouMean(scalar && !numbered ? node.text : "", words)));
  }
  if (key.kind == ValueKind::kName) {
    if (scalar && IsName(node.text)) return node.text;
    return Wanted(kNameWanted, node);
  }
  if (scalar && !node.text.empty() && !HasControl(node.text)) return node.text;
  return Wanted("a text without control characters", node);
}

absl::StatusOr<std::vector<std::string>> ParseWords(const Key& key, const YamlNode& node) {
  const std::vector<std::string> words = SplitWords(key.words);
  const std::string wanted =
      absl::StrCat("a list of ", absl::StrJoin(words, ", "), ", each at most once");
  if (node.kind != YamlNode::Kind::kList || node.items.empty()) return Wanted(wanted, node);
  std::vector<std::string> found;
  for (const YamlNode& item : node.items) {
    if (item.kind != YamlNode::Kind::kScalar ||
        std::find(words.begin(), words.end(), item.text) == words.end() ||
        std::find(found.begin(), found.end(), item.text) != found.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Wanted(wanted, item).message(), DidYouMean(item.text, words)));
    }
    found.push_back(item.text);
  }
  return found;
}

// "0,2-4", or a list of such.
absl::StatusOr<std::vector<int>> ParseCpusNode(const YamlNode& node) {
  if (node.kind == YamlNode::Kind::kScalar) return ParseCpus(node.text);
  std::vector<std::string> pieces;
  for (const YamlNode& item : node.items) {
    if (node.kind != YamlNode::Kind::kList || item.kind != YamlNode::Kind::kScalar) {
      return Wanted("CPU numbers such as 0,2,4-7", item);
    }
    pieces.push_back(item.text);
  }
  return ParseCpus(absl::StrJoin(pieces, ","));
}

// The default of a key as a node: a scalar, or the flow list of words that it is.
YamlNode DefaultNode(const Key& key) {
  YamlNode node;
  node.kind = YamlNode::Kind::kScalar;
  node.text = std::string(key.default_value);
  if (key.kind != ValueKind::kWordList) return node;
  node.kind = YamlNode::Kind::kList;
  for (const absl::string_view word :
       absl::StrSplit(ToAbsl(key.default_value), absl::ByAnyChar("[], "), absl::SkipEmpty())) {
    YamlNode item;
    item.kind = YamlNode::Kind::kScalar;
    item.text = std::string(word);
    node.items.push_back(std::move(item));
  }
  return node;
}

std::string Allowed(const Key& key) {
  switch (key.kind) {
    case ValueKind::kName:
      return "name";
    case ValueKind::kText:
      return "text";
    case ValueKind::kCount:
      return absl::StrCat(key.least, " to ", key.most);
    case ValueKind::kBytes:
      return "size";
    case ValueKind::kDuration:
      return "time";
    case ValueKind::kWord:
    case ValueKind::kDevice:
      return WordsOf(key);
    case ValueKind::kWordList:
      return absl::StrCat("list of ", absl::StrJoin(SplitWords(key.words), ", "));
    case ValueKind::kCpus:
      return "CPU numbers";
    case ValueKind::kStructure:
      return "see there";
  }
  return "";
}

}  // namespace

bool IsName(std::string_view text) {
  constexpr std::string_view kLetters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !text.empty() && text.size() <= 64 && text[0] != '-' &&
         text.find_first_not_of(kLetters) == std::string_view::npos;
}

std::string ModelName(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  std::string name(path.substr(path.rfind('/') + 1));
  if (name.ends_with(".gguf")) name.resize(name.size() - 5);
  for (char& c : name) {
    if (!IsName({&c, 1}) && c != '-') c = '-';
  }
  name.resize(std::min<std::size_t>(name.size(), 64));
  return IsName(name) ? name : "model";
}

std::string DidYouMean(std::string_view typed, const std::vector<std::string>& known) {
  const std::optional<std::string> nearest = Nearest(typed, known);
  return nearest ? absl::StrCat("; did you mean ", *nearest, "?") : std::string();
}

SectionReader::SectionReader(Section section, const YamlNode& node, Faults& faults)
    : section_(section), node_(node), faults_(faults) {
  if (node.kind == YamlNode::Kind::kNull) return;
  if (node.kind != YamlNode::Kind::kMap) {
    faults.Add(node.at, std::string(Wanted("keys", node).message()));
    return;
  }
  std::vector<std::string> known;
  for (const Key& key : Keys()) {
    if (key.section == section) known.emplace_back(key.name);
  }
  for (const YamlNode& key : node.keys) {
    if (FindKey(section, key.text) != nullptr) continue;
    const std::string meant = DidYouMean(key.text, known);
    faults.Add(key.at,
               absl::StrCat("unknown key ", Quoted(key.text),
                            meant.empty() ? absl::StrCat("; there are ", absl::StrJoin(known, ", "))
                                          : meant));
  }
}

const YamlNode* SectionReader::Find(std::string_view key) const {
  CHECK(FindKey(section_, key) != nullptr);
  const YamlNode* const node = node_.Find(key);
  return node == nullptr || node->kind == YamlNode::Kind::kNull ? nullptr : node;
}

Mark SectionReader::MarkOf(std::string_view key) const {
  const YamlNode* const node = Find(key);
  return node == nullptr ? node_.at : node->at;
}

template <typename T, typename Parse>
std::optional<T> SectionReader::Read(std::string_view name, Parse parse) const {
  const Key& key = *FindKey(section_, name);
  if (const YamlNode* const node = Find(name)) {
    absl::StatusOr<T> value = parse(key, *node);
    if (value.ok()) return *std::move(value);
    faults_.Add(node->at, absl::StrCat(ToAbsl(name), " ", value.status().message()));
  }
  if (key.default_value.empty()) return std::nullopt;
  absl::StatusOr<T> value = parse(key, DefaultNode(key));
  CHECK(value.ok());
  return *std::move(value);
}

std::optional<std::string> SectionReader::Text(std::string_view key) const {
  return Read<std::string>(key, ParseText);
}

std::optional<std::int64_t> SectionReader::Count(std::string_view key) const {
  return Read<std::int64_t>(key, [](const Key& row, const YamlNode& node) {
    CHECK(row.kind == ValueKind::kCount);
    const bool scalar = node.kind == YamlNode::Kind::kScalar;
    return ParseCount(scalar ? node.text : ToString(node.kind), row.least, row.most);
  });
}

std::optional<std::int64_t> SectionReader::Bytes(std::string_view key) const {
  return Read<std::int64_t>(key, [](const Key&, const YamlNode& node) {
    return ParseBytes(node.kind == YamlNode::Kind::kScalar ? node.text : ToString(node.kind));
  });
}

std::optional<Duration> SectionReader::Time(std::string_view key) const {
  return Read<Duration>(key, [](const Key&, const YamlNode& node) {
    return ParseDuration(node.kind == YamlNode::Kind::kScalar ? node.text : ToString(node.kind));
  });
}

std::vector<std::string> SectionReader::Words(std::string_view key) const {
  return Read<std::vector<std::string>>(key, ParseWords).value_or(std::vector<std::string>{});
}

std::vector<int> SectionReader::Cpus(std::string_view key) const {
  return Read<std::vector<int>>(
             key, [](const Key&, const YamlNode& node) { return ParseCpusNode(node); })
      .value_or(std::vector<int>{});
}

std::string SchemaReference() {
  static constexpr std::pair<Section, std::string_view> kTitles[] = {
      {Section::kTop, "The file"},
      {Section::kModel, "One of `models`"},
      {Section::kWorkers, "A group of workers: `prefill`, `decode`"},
      {Section::kStore, "A group of store nodes: `kvstore`"},
      {Section::kTenant, "One of `tenants`"},
      {Section::kGateway, "A group of gateways: `gateway`"},
      {Section::kPorts, "`ports`"},
      {Section::kSlo, "`slo`"},
  };
  std::string text;
  for (const auto& [section, title] : kTitles) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", "### ", ToAbsl(title),
                    "\n\n| key | value | default | |\n|---|---|---|---|\n");
    for (const Key& key : Keys()) {
      if (key.section != section) continue;
      absl::StrAppend(&text, "| `", ToAbsl(key.name), "` | ", Allowed(key), " | ",
                      ToAbsl(key.default_value), " | ", ToAbsl(key.about), " |\n");
    }
  }
  return text;
}

}  // namespace penstock::launch
