// SPDX-License-Identifier: Apache-2.0
// Every key that a deployment file may have: one table, from which files are checked and the
// reference (deploy/README.md) is written.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/time.h"
#include "launch/yaml.h"

namespace penstock::launch {

enum class Section { kTop, kModel, kWorkers, kStore, kTenant, kGateway, kPorts, kSlo };

enum class ValueKind {
  kName,   // 1 to 64 letters, digits, '.', '_' or '-'.
  kText,   // 1 to 4,096 bytes without control characters.
  kCount,  // From `least` to `most`.
  kBytes,
  kDuration,
  kWord,      // One of `words`.
  kDevice,    // Likewise, or GPUs by their numbers.
  kWordList,  // A list of them, each once, at least one.
  kCpus,
  kStructure,  // Keys or lists of their own: deployment.cc knows.
};

struct Key {
  Section section;
  std::string_view name;
  ValueKind kind;
  std::int64_t least = 0;
  std::int64_t most = 0;
  std::string_view words = {};          // Separated by spaces.
  std::string_view default_value = {};  // As it would be written; empty: see `about`.
  std::string_view about;
};
std::span<const Key> Keys();

// Reads one section of the file. Every fault goes to `faults`; what is absent or wrong is the
// default, and nothing where the table has none.
class SectionReader {
 public:
  // Unknown keys and what is not a map are faults at once. `node`, `faults` outlive the reader; a
  // null node has no keys.
  SectionReader(Section section, const YamlNode& node, Faults& faults);

  // nullptr: absent, or null.
  const YamlNode* Find(std::string_view key) const;
  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  Mark MarkOf(std::string_view key) const;  // Of the value, or of the section where it is absent.

  // The key is in the table with that kind (CHECKed).
  std::optional<std::string> Text(std::string_view key) const;  // kName, kText and kWord.
  std::optional<std::int64_t> Count(std::string_view key) const;
  std::optional<std::int64_t> Bytes(std::string_view key) const;
  std::optional<Duration> Time(std::string_view key) const;
  std::vector<std::string> Words(std::string_view key) const;
  std::vector<int> Cpus(std::string_view key) const;

 private:
  template <typename T, typename Parse>
  std::optional<T> Read(std::string_view name, Parse parse) const;

  const Section section_;
  const YamlNode& node_;
  Faults& faults_;
};

// As SectionReader::Text of a kName, for names that are keys themselves.
bool IsName(std::string_view text);
// The name of the model at `path`: "models/SmolLM2.gguf" is SmolLM2. What no name may have in it becomes '-'.
std::string ModelName(std::string_view path);
// What is said of one that is none.
inline constexpr std::string_view kNameWanted =
    "a name of 1 to 64 letters, digits, '.', '_' or '-'";

// ", did you mean X?", or nothing.
std::string DidYouMean(std::string_view typed, const std::vector<std::string>& known);

// All of the table, as Markdown.
std::string SchemaReference();

}  // namespace penstock::launch
