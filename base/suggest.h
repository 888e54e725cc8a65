// SPDX-License-Identifier: Apache-2.0
// "Did you mean ...?" for what was mistyped.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace penstock {

// The one of `known` that is nearest to `typed` by edit distance, if at most a third of the letters
// differ; a beginning of four letters counts as one error.
std::optional<std::string> Nearest(std::string_view typed, const std::vector<std::string>& known);

}  // namespace penstock
