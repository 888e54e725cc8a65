// SPDX-License-Identifier: Apache-2.0
// cli/trace_page.html, inside the program.
#pragma once

#include <string_view>

namespace penstock::cli {

inline constexpr std::string_view kTracePageMark = "{\"trace\": \"here\"}";  // Once; for the JSON.
extern const std::string_view kTracePage;

}  // namespace penstock::cli
