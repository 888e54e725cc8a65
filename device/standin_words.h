// SPDX-License-Identifier: Apache-2.0
// What a stand-in is told by an environment variable: words with commas between them. For stand-ins
// alone, whose processes have no other way to be told.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace penstock {

// Calls take(word) for each word of the variable, in their order; nothing where it is not set.
template <typename Take>
void ForEachWord(const char* variable, const Take& take) {
  const char* const text = std::getenv(variable);
  for (std::string_view rest = text == nullptr ? "" : text; !rest.empty();) {
    const std::string_view word = rest.substr(0, rest.find(','));
    take(word);
    rest.remove_prefix(std::min(word.size() + 1, rest.size()));
  }
}

}  // namespace penstock
