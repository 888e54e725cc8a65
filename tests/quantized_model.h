// SPDX-License-Identifier: Apache-2.0
// Random models in quantized formats, of which the repository has no small ones.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace penstock::tests {

// Writes GGUF files of the family llama with two layers of width 256 to `folder`, which between them
// have every weight format; returns the name and path of each. Equal from call to call.
std::vector<std::pair<std::string, std::string>> WriteQuantizedModels(const std::string& folder);

}  // namespace penstock::tests
