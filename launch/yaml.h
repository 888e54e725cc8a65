// SPDX-License-Identifier: Apache-2.0
// YAML as a tree that remembers where each value stands. Written by people, or by somebody who
// means harm: what a deployment file never needs (anchors, aliases, tags, several documents, deep
// nesting, keys given twice, huge values) is a fault.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace penstock::launch {

// Where something stands in a file, both from 1.
struct Mark {
  int line = 1;
  int column = 1;
  auto operator<=>(const Mark&) const = default;
};

// All that is wrong with a file.
class Faults {
 public:
  static constexpr std::size_t kFaultsMax = 100;  // Listed; more are only counted.

  void Add(Mark at, std::string what);
  bool empty() const { return count_ == 0; }
  // "FILE:LINE:COLUMN: what", one a line, in the order of the file.
  std::string ToString(std::string_view file) const;

 private:
  std::vector<std::pair<Mark, std::string>> faults_;
  std::size_t count_ = 0;
};

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };

  Kind kind = Kind::kNull;
  Mark at;
  std::string text;             // Of a scalar.
  std::vector<YamlNode> items;  // Of a list or a map.
  std::vector<YamlNode> keys;   // Of a map: one for each item, scalars, all different.

  // Of a map; nullptr when there is none.
  const YamlNode* Find(std::string_view key) const;
};
std::string_view ToString(YamlNode::Kind kind);  // "nothing", "a value", "a list", "keys".

inline constexpr std::size_t kYamlBytesMax = std::size_t{256} << 10;
inline constexpr int kYamlDepthMax = 16;
inline constexpr std::size_t kYamlNodesMax = 16384;
inline constexpr std::size_t kYamlScalarBytesMax = 4096;

// The text as a tree; an empty one is kNull. Nothing when it could not be read to its end. Either
// way `faults` has what is wrong so far, such as a key given twice.
std::optional<YamlNode> ParseYaml(std::string_view text, Faults& faults);

// In double quotes, control characters escaped, cut where it is long: for people.
std::string Quoted(std::string_view text);

}  // namespace penstock::launch
