// SPDX-License-Identifier: Apache-2.0
// JSON as text, for answers of fixed shape that are written once per token.
//
// Pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace penstock::gateway {

// In quotes. What is not UTF-8 becomes U+FFFD, so that the result always is; no raw line breaks.
void AppendJsonString(std::string_view text, std::string* out);

// A log-probability: the shortest text that reads back as `value`; what JSON cannot say (minus
// infinity, NaN) is -9999, as OpenAI has it.
void AppendJsonLogprob(double value, std::string* out);

// The bytes of `text` as an array of numbers.
void AppendJsonBytes(std::string_view text, std::string* out);

}  // namespace penstock::gateway
