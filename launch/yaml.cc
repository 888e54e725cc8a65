// SPDX-License-Identifier: Apache-2.0
#include "launch/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::launch {
namespace {

Mark ToMark(const YAML::Mark& mark) {
  // A null mark is -1, -1.
  return {.line = std::max(mark.line, 0) + 1, .column = std::max(mark.column, 0) + 1};
}

// Builds the tree from the parser's events. yaml-cpp is written with exceptions, so none leave from
// here into it: after a fault that ends the reading, what still comes is ignored.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(Faults& faults) : faults_(faults) {}

  bool stopped() const { return stopped_; }
  YamlNode TakeRoot() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ == 2) Stop(ToMark(mark), "one document is wanted, here a second one begins");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    YamlNode node;
    node.at = ToMark(mark);
    if (Check(node, {}, anchor)) Put(std::move(node));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Stop(ToMark(mark), "aliases (*name) are not taken here: write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node;
    node.kind = YamlNode::Kind::kScalar;
    node.at = ToMark(mark);
    if (!Check(node, tag, anchor)) return;
    if (value.size() > kYamlScalarBytesMax) {
      return Stop(node.at, absl::StrCat("a value has at most ", kYamlScalarBytesMax,
                                        " bytes, this one has ", value.size()));
    }
    node.text = value;
    Put(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Begin(YamlNode::Kind::kList, mark, tag, anchor);
  }
  void OnSequenceEnd() override { End(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Begin(YamlNode::Kind::kMap, mark, tag, anchor);
  }
  void OnMapEnd() override {
    if (!stopped_) CheckKeys(open_.back());
    End();
  }

 private:
  void Stop(Mark at, std::string what) {
    if (!stopped_) faults_.Add(at, std::move(what));
    stopped_ = true;
  }

  bool Check(const YamlNode& node, const std::string& tag, YAML::anchor_t anchor) {
    if (stopped_) return false;
    if (anchor != 0) {
      Stop(node.at, "anchors (&name) are not taken here");
    } else if (!tag.empty() && tag != "?" && tag != "!") {
      Stop(node.at, absl::StrCat("tags are not taken here, got ", Quoted(tag)));
    } else if (++nodes_ > kYamlNodesMax) {
      Stop(node.at,
           absl::StrCat("a file has at most ", kYamlNodesMax, " values, here begins another"));
    }
    return !stopped_;
  }

  // A map's keys and values come in turns.
  void Put(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    YamlNode& parent = open_.back();
    const bool key =
        parent.kind == YamlNode::Kind::kMap && parent.keys.size() == parent.items.size();
    if (key && node.kind != YamlNode::Kind::kScalar) {
      return Stop(node.at, absl::StrCat("a key must be a word, got ", ToAbsl(ToString(node.kind))));
    }
    (key ? parent.keys : parent.items).push_back(std::move(node));
  }

  void Begin(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag,
             YAML::anchor_t anchor) {
    YamlNode node;
    node.kind = kind;
    node.at = ToMark(mark);
    if (!Check(node, tag, anchor)) return;
    if (open_.size() >= static_cast<std::size_t>(kYamlDepthMax)) {
      return Stop(node.at, absl::StrCat("lists and keys nest at most ", kYamlDepthMax,
                                        " deep, here begins level ", kYamlDepthMax + 1));
    }
    open_.push_back(std::move(node));
  }

  void End() {
    if (stopped_) return;
    YamlNode node = std::move(open_.back());
    open_.pop_back();
    Put(std::move(node));
  }

  void CheckKeys(const YamlNode& map) {
    std::map<std::string_view, Mark> seen;
    for (const YamlNode& key : map.keys) {
      const auto [at, is_new] = seen.emplace(key.text, key.at);
      if (is_new) continue;
      faults_.Add(key.at, absl::StrCat("the key ", Quoted(key.text),
                                       " is here for the second time; the first is in line ",
                                       at->second.line));
    }
  }

  Faults& faults_;
  YamlNode root_;
  std::vector<YamlNode> open_;  // From the outermost to the one that is being read.
  int documents_ = 0;
  std::size_t nodes_ = 0;
  bool stopped_ = false;
};

}  // namespace

void Faults::Add(Mark at, std::string what) {
  ++count_;
  if (faults_.size() < kFaultsMax) faults_.emplace_back(at, std::move(what));
}

std::string Faults::ToString(std::string_view file) const {
  std::vector<std::pair<Mark, std::string>> sorted = faults_;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string text;
  for (const auto& [at, what] : sorted) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", ToAbsl(file), ":", at.line, ":", at.column,
                    ": ", what);
  }
  if (count_ > sorted.size()) {
    absl::StrAppend(&text, "\nand ", count_ - sorted.size(), " more");
  }
  return text;
}

const YamlNode* YamlNode::Find(std::string_view key) const {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].text == key) return &items[i];
  }
  return nullptr;
}

std::string_view ToString(YamlNode::Kind kind) {
  switch (kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return "a value";
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "keys";
  }
  return "";
}

std::optional<YamlNode> ParseYaml(std::string_view text, Faults& faults) {
  if (text.size() > kYamlBytesMax) {
    faults.Add({}, absl::StrCat("a deployment file has at most ", kYamlBytesMax,
                                " bytes, this one has ", text.size()));
    return std::nullopt;
  }
  TreeBuilder builder(faults);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (!builder.stopped() && parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    faults.Add(ToMark(error.mark), absl::StrCat("not YAML: ", error.msg));
    return std::nullopt;
  } catch (const std::exception& error) {
    faults.Add({}, absl::StrCat("not YAML: ", error.what()));
    return std::nullopt;
  }
  if (builder.stopped()) return std::nullopt;
  return builder.TakeRoot();
}

std::string Quoted(std::string_view text) {
  constexpr std::size_t kShownMax = 64;
  const std::string shown = absl::Utf8SafeCEscape(ToAbsl(text.substr(0, kShownMax)));
  return absl::StrCat("\"", shown, text.size() > kShownMax ? "..." : "", "\"");
}

}  // namespace penstock::launch
