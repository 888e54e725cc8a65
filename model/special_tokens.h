// SPDX-License-Identifier: Apache-2.0
// The tokens that are cut out of a text before anything else looks at it: <|im_end|> and its like.
// Built once, then immutable; any thread.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/key.h"

namespace penstock::model {

class SpecialTokens {
 public:
  static constexpr std::size_t kBytesMax = 512;  // Of one token's text; bounds the work per byte.

  // `text`: 1 to kBytesMax bytes. A text added twice keeps its first token.
  // `always`: found even where the caller does not ask for control tokens.
  void Add(std::string_view text, TokenId token, bool always);

  struct Found {
    std::size_t at = 0;
    std::size_t bytes = 0;
    TokenId token = -1;
  };
  // The leftmost occurrence at or after `from`, the longest one there. Where `literal` (ascending
  // offsets) says so, none begins but those that are always found.
  std::optional<Found> Next(std::string_view text, std::size_t from, bool parse_special,
                            std::span<const std::size_t> literal) const;
  // Whether the text of a token that is found on request only stands at `at`, whatever else does.
  // `cut_short`: or a beginning of one, if the text ends with it.
  bool ControlAt(std::string_view text, std::size_t at, bool cut_short) const;

 private:
  struct Node {
    TokenId always = -1;          // The token that ends here, if it is always cut out.
    TokenId control = -1;         // Or only on request.
    bool begins_control = false;  // One of these ends here or further down.
  };

  std::vector<Node> nodes_ = {Node{}};                          // A trie; 0 is the root.
  absl::flat_hash_map<std::uint64_t, std::uint32_t> children_;  // node << 8 | byte
  std::array<bool, 256> first_{};                               // Bytes that start a token.
};

}  // namespace penstock::model
