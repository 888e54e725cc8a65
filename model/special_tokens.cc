// SPDX-License-Identifier: Apache-2.0
#include "model/special_tokens.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::model {
namespace {

std::uint64_t Edge(std::uint32_t node, char byte) {
  return std::uint64_t{node} << 8 | static_cast<unsigned char>(byte);
}

}  // namespace

void SpecialTokens::Add(std::string_view text, TokenId token, bool always) {
  CHECK(!text.empty());
  CHECK_LE(text.size(), kBytesMax);
  first_[static_cast<unsigned char>(text[0])] = true;
  std::uint32_t node = 0;
  for (const char byte : text) {
    const auto [child, added] =
        children_.try_emplace(Edge(node, byte), static_cast<std::uint32_t>(nodes_.size()));
    node = child->second;
    if (added) nodes_.emplace_back();
    if (!always) nodes_[node].begins_control = true;
  }
  TokenId& slot = always ? nodes_[node].always : nodes_[node].control;
  if (slot < 0) slot = token;
}

std::optional<SpecialTokens::Found> SpecialTokens::Next(
    std::string_view text, std::size_t from, bool parse_special,
    std::span<const std::size_t> literal) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    if (!first_[static_cast<unsigned char>(text[at])]) continue;
    const bool control = parse_special && !std::binary_search(literal.begin(), literal.end(), at);
    Found found;
    std::uint32_t node = 0;
    for (std::size_t end = at; end < text.size(); ++end) {
      const auto child = children_.find(Edge(node, text[end]));
      if (child == children_.end()) break;
      node = child->second;
      TokenId token = nodes_[node].always;
      if (token < 0 && control) token = nodes_[node].control;
      if (token >= 0) found = {at, end + 1 - at, token};
    }
    if (found.token >= 0) return found;
  }
  return std::nullopt;
}

bool SpecialTokens::ControlAt(std::string_view text, std::size_t at, bool cut_short) const {
  if (at >= text.size() || !first_[static_cast<unsigned char>(text[at])]) return false;
  std::uint32_t node = 0;
  for (std::size_t end = at; end < text.size(); ++end) {
    const auto child = children_.find(Edge(node, text[end]));
    if (child == children_.end() || !nodes_[child->second].begins_control) return false;
    node = child->second;
    if (nodes_[node].control >= 0) return true;
  }
  return cut_short;
}

}  // namespace penstock::model
