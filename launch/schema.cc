// SPDX-License-Identifier: Apache-2.0
#include "launch/schema.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/status.h"
#include "base/suggest.h"
#include "launch/values.h"

namespace penstock::launch {
namespace {

constexpr std::int64_t kTokensMax = 1 << 24;

// `least` and `most` of what has none are 0.
constexpr Key kKeys[] = {
    {.section = Section::kTop,
     .name = "model",
     .kind = ValueKind::kText,
     .about =
         "The one model: a GGUF file, a Hugging Face folder, or a name that `penstock model get` "
         "fetched. Requests know it by this name, without folders and `.gguf`"},
    {.section = Section::kTop,
     .name = "models",
     .kind = ValueKind::kStructure,
     .about = "Several models, instead of `model`: a list of the keys below"},
    {.section = Section::kTop,
     .name = "prefill",
     .kind = ValueKind::kStructure,
     .default_value = "1",
     .about = "Prefill workers of each model: their count, or the keys of a group of workers, or a "
              "list of groups. 0: decode workers compute the prompts themselves"},
    {.section = Section::kTop,
     .name = "decode",
     .kind = ValueKind::kStructure,
     .default_value = "1",
     .about = "Decode workers, likewise"},
    {.section = Section::kTop,
     .name = "gateway",
     .kind = ValueKind::kStructure,
     .default_value = "inside",
     .about = "`inside` the coordinator's process, or the count of gateways of their own (their "
              "running streams outlive a coordinator), or the keys of a group of gateways"},
    {.section = Section::kTop,
     .name = "coordinator_host",
     .kind = ValueKind::kName,
     .about = "Where the coordinator runs; the first of `hosts` where absent"},
    {.section = Section::kTop,
     .name = "hosts",
     .kind = ValueKind::kStructure,
     .about =
         "Names of machines and the numeric addresses where their processes listen, such as "
         "`a: 10.0.0.1`. Without it all runs on this machine, and nothing listens beyond loopback"},
    {.section = Section::kTop,
     .name = "policy",
     .kind = ValueKind::kWord,
     .words = "cost least-loaded round-robin",
     .default_value = "cost",
     .about = "How the coordinator chooses workers"},
    {.section = Section::kTop,
     .name = "transfer",
     .kind = ValueKind::kWordList,
     .words = "shm ucx tcp",
     .default_value = "[shm, tcp]",
     .about = "How KV may move between workers, best first. `shm` works within a host only; `ucx` "
              "needs a build with UCX and a network of trusted machines"},
    {.section = Section::kTop,
     .name = "block_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 1024,
     .default_value = "32",
     .about = "Tokens of a block, what is reused and moved as one: a power of two"},
    {.section = Section::kTop,
     .name = "ports",
     .kind = ValueKind::kStructure,
     .about = "Where clients find the cluster: the keys below"},
    {.section = Section::kTop,
     .name = "etcd",
     .kind = ValueKind::kStructure,
     .about =
         "Addresses `HOST:PORT` of etcd's members, one or a list. The coordinator keeps there who "
         "the workers are; without it nothing outlives the coordinator"},
    {.section = Section::kTop,
     .name = "etcd_prefix",
     .kind = ValueKind::kText,
     .default_value = "/penstock/",
     .about = "Of this deployment's keys in etcd; each that shares an etcd needs its own"},
    {.section = Section::kTop,
     .name = "standby",
     .kind = ValueKind::kStructure,
     .about =
         "Addresses of further coordinators, one or a list, that are started by hand and take over "
         "when the first one ends: gateways and workers know them too. Needs `etcd`"},
    {.section = Section::kTop,
     .name = "slo",
     .kind = ValueKind::kStructure,
     .about = "What answers should keep to, for the metrics; nothing is refused for its sake: the "
              "keys below"},
    {.section = Section::kModel,
     .name = "name",
     .kind = ValueKind::kName,
     .about = "As requests know it; must be there"},
    {.section = Section::kModel,
     .name = "path",
     .kind = ValueKind::kText,
     .about =
         "As `model` above; must be there. Relative to this file's folder where it is there, else "
         "to the current one"},
    {.section = Section::kWorkers,
     .name = "count",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 256,
     .default_value = "1",
     .about = "Workers of this group"},
    {.section = Section::kWorkers,
     .name = "model",
     .kind = ValueKind::kName,
     .about = "Of which model; of each where absent"},
    {.section = Section::kWorkers,
     .name = "host",
     .kind = ValueKind::kName,
     .about = "Where they run; the first of `hosts` where absent"},
    {.section = Section::kWorkers,
     .name = "device",
     .kind = ValueKind::kWord,
     .words = "cpu paced",
     .default_value = "cpu",
     .about = "`paced` takes the time of a model without computing it, to try clusters larger than "
              "the machine; its answers are nonsense. All workers of a model alike"},
    {.section = Section::kWorkers,
     .name = "threads",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 1024,
     .about = "Of each worker; an equal share of the host's CPUs where absent"},
    {.section = Section::kWorkers,
     .name = "cpus",
     .kind = ValueKind::kCpus,
     .about =
         "CPUs such as `0,2,4-7` that the workers of this group divide evenly among themselves, "
         "one thread on each; instead of `threads`"},
    {.section = Section::kWorkers,
     .name = "kv_bytes",
     .kind = ValueKind::kBytes,
     .about =
         "KV pool of each worker, such as `512MiB`; where absent what a context needs, at most "
         "1 GiB or half of the memory that is free"},
    {.section = Section::kWorkers,
     .name = "kv_dtype",
     .kind = ValueKind::kWord,
     .words = "f16 bf16 f32",
     .default_value = "f16",
     .about = "Type of the KV cache; equal for all workers of a model"},
    {.section = Section::kWorkers,
     .name = "page_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 1024,
     .about =
         "Tokens of a page, a divisor of `block_tokens`; 32, or the block where that is smaller, "
         "where absent. Workers of a model may differ"},
    {.section = Section::kWorkers,
     .name = "context_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = kTokensMax,
     .about =
         "Longest prompt and answer together; the model's, or what the pool holds, where absent"},
    {.section = Section::kWorkers,
     .name = "chunk_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = kTokensMax,
     .default_value = "512",
     .about = "Prompt tokens computed at once; changes speed, never the answer"},
    {.section = Section::kWorkers,
     .name = "sequences",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 4096,
     .default_value = "16",
     .about = "Requests that run together in one worker at most"},
    {.section = Section::kGateway,
     .name = "count",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 256,
     .default_value = "1",
     .about = "Gateways of this group"},
    {.section = Section::kGateway,
     .name = "host",
     .kind = ValueKind::kName,
     .about = "Where they run; the coordinator's host where absent"},
    {.section = Section::kPorts,
     .name = "grpc",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about =
         "gRPC of the gateway. 0, here and below, finds a free one. Several gateways of one host "
         "take this and those that follow"},
    {.section = Section::kPorts,
     .name = "http",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about = "OpenAI-compatible HTTP of the gateway, likewise"},
    {.section = Section::kPorts,
     .name = "metrics",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about =
         "Prometheus metrics of the coordinator's process; those of the others are found free, and "
         "are in the ready file"},
    {.section = Section::kPorts,
     .name = "coordinator",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about =
         "gRPC of a coordinator whose gateways have processes of their own. With a gateway inside "
         "it is `grpc`. Must be given where there are several `hosts`"},
    {.section = Section::kSlo,
     .name = "ttft",
     .kind = ValueKind::kDuration,
     .about = "Arrival to first token, such as `500ms`"},
    {.section = Section::kSlo,
     .name = "tpot",
     .kind = ValueKind::kDuration,
     .about = "Between tokens, such as `50ms`"},
};

const Key* FindKey(Section section, std::string_view name) {
  const auto at = std::find_if(std::begin(kKeys), std::end(kKeys), [&](const Key& key) {
    return key.section == section && key.name == name;
  });
  return at == std::end(kKeys) ? nullptr : at;
}

absl::Status Wanted(std::string_view what, const YamlNode& got) {
  const std::string shown =
      got.kind == YamlNode::Kind::kScalar ? Quoted(got.text) : std::string(ToString(got.kind));
  return absl::InvalidArgumentError(absl::StrCat("must be ", ToAbsl(what), ", got ", shown));
}

std::vector<std::string> SplitWords(std::string_view words) {
  return absl::StrSplit(ToAbsl(words), ' ', absl::SkipEmpty());
}

bool HasControl(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7f;
  });
}

absl::StatusOr<std::string> ParseText(const Key& key, const YamlNode& node) {
  const bool scalar = node.kind == YamlNode::Kind::kScalar;
  if (key.kind == ValueKind::kWord) {
    const std::vector<std::string> words = SplitWords(key.words);
    if (scalar && std::find(words.begin(), words.end(), node.text) != words.end()) return node.text;
    return absl::InvalidArgumentError(
        absl::StrCat(Wanted("one of " + absl::StrJoin(words, ", "), node).message(),
                     DidYouMean(scalar ? node.text : "", words)));
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
      return absl::StrJoin(SplitWords(key.words), ", ");
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

std::span<const Key> Keys() { return kKeys; }

bool IsName(std::string_view text) {
  constexpr std::string_view kLetters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !text.empty() && text.size() <= 64 && text[0] != '-' &&
         text.find_first_not_of(kLetters) == std::string_view::npos;
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
