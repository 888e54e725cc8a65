// SPDX-License-Identifier: Apache-2.0
// JSON from model files: parsed with limits, read with errors that name the field. Nothing throws.
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace penstock::model {

using Json = nlohmann::json;

constexpr std::size_t kJsonDepthMax = 64;

// An object. INVALID_ARGUMENT naming `what` when the text is no JSON object, is longer than
// bytes_max, has more than values_max values, nests deeper than kJsonDepthMax or gives a key twice.
// Takes memory of a few dozen times the text, or of about 200 bytes for each of values_max.
absl::StatusOr<Json> ParseJsonObject(
    std::string_view text, std::string_view what, std::size_t bytes_max,
    std::size_t values_max = std::numeric_limits<std::size_t>::max());

// The member of an object; null where it is missing or JSON null.
const Json* Member(const Json& object, std::string_view key);
const Json* ObjectMember(const Json& object, std::string_view key);  // Null if no object, too.

// Without the member: `fallback`, or INVALID_ARGUMENT when there is none. A wrong type or a number
// outside [0, 2^31) is INVALID_ARGUMENT.
absl::StatusOr<std::int32_t> GetJsonInt(const Json& object, std::string_view key,
                                        std::optional<std::int32_t> fallback = {});
absl::StatusOr<float> GetJsonFloat(const Json& object, std::string_view key,
                                   std::optional<float> fallback = {});
absl::StatusOr<bool> GetJsonBool(const Json& object, std::string_view key,
                                 std::optional<bool> fallback = {});
absl::StatusOr<std::string> GetJsonString(const Json& object, std::string_view key,
                                          std::optional<std::string> fallback = {});

// Short printable forms for errors: of any value, and of a text in quotes.
std::string Brief(const Json& value);
std::string Quoted(std::string_view text);

}  // namespace penstock::model
