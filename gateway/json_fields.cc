// SPDX-License-Identifier: Apache-2.0
#include "gateway/json_fields.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/json.h"

namespace penstock::gateway {
namespace {

using model::Brief;
using nlohmann::json;

// Nothing unless it is an integer of 64 bits with a sign.
std::optional<std::int64_t> IntOf(const json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return {};
    return static_cast<std::int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  return {};
}

bool ChangesNothing(const json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

}  // namespace

const json* JsonFields::Find(std::string_view name) const {
  return error_.has_value() ? nullptr : model::Member(object_, name);
}

void JsonFields::Fail(std::string_view param, std::string message) {
  if (!error_.has_value()) error_ = WrongParam(param, std::move(message));
}

void JsonFields::Wrong(std::string_view param, std::string_view want, const json& got) {
  Fail(param, absl::StrCat(ToAbsl(param), " must be ", ToAbsl(want), ", got ", Brief(got)));
}

void JsonFields::Bool(std::string_view name, bool* value) {
  const json* const found = Find(name);
  if (found == nullptr) return;
  if (!found->is_boolean()) return Wrong(name, "true or false", *found);
  *value = found->get<bool>();
}

void JsonFields::Number(std::string_view name, double* value) {
  const json* const found = Find(name);
  if (found == nullptr) return;
  if (!found->is_number()) return Wrong(name, "a number", *found);
  *value = found->get<double>();
}

void JsonFields::Int(std::string_view name, std::int64_t least, std::int64_t most,
                     std::int32_t* value) {
  const json* const found = Find(name);
  if (found == nullptr) return;
  const std::optional<std::int64_t> number = IntOf(*found);
  if (!number.has_value() || *number < least || *number > most) {
    return Wrong(name, absl::StrCat("an integer from ", least, " to ", most), *found);
  }
  *value = static_cast<std::int32_t>(*number);
}

void JsonFields::Text(std::string_view name, std::size_t bytes_max, std::string* value) {
  const json* const found = Find(name);
  if (found == nullptr) return;
  if (!found->is_string()) return Wrong(name, "a string", *found);
  const std::string& text = found->get_ref<const std::string&>();
  if (text.size() > bytes_max) {
    return Fail(name, absl::StrCat(ToAbsl(name), " must have at most ", bytes_max, " bytes, got ",
                                   text.size()));
  }
  *value = text;
}

void JsonFields::Seed(std::string_view name, std::optional<std::uint64_t>* value) {
  const json* const found = Find(name);
  if (found == nullptr) return;
  if (!found->is_number_integer()) return Wrong(name, "an integer of 64 bits", *found);
  *value = found->is_number_unsigned() ? found->get<std::uint64_t>()
                                       : static_cast<std::uint64_t>(found->get<std::int64_t>());
}

void JsonFields::Strings(std::string_view name, std::size_t values_max,
                         std::vector<std::string>* value) {
  const json* const found = Find(name);
  if (found == nullptr) return;
  if (found->is_string()) {
    *value = {found->get<std::string>()};
    return;
  }
  if (!found->is_array()) return Wrong(name, "a string or an array of strings", *found);
  if (found->size() > values_max) {
    return Fail(name, absl::StrCat(ToAbsl(name), " must have at most ", values_max,
                                   " strings, got ", found->size()));
  }
  value->clear();
  for (const json& one : *found) {
    if (!one.is_string()) {
      return Wrong(absl::StrCat(ToAbsl(name), "[", value->size(), "]"), "a string", one);
    }
    value->push_back(one.get<std::string>());
  }
}

void JsonFields::Tokens(std::string_view name, std::size_t values_max,
                        std::vector<TokenId>* value) {
  const json* const found = Find(name);
  if (found == nullptr) return;
  if (!found->is_array()) return Wrong(name, "an array of token ids", *found);
  if (found->size() > values_max) {
    return Fail(name, absl::StrCat(ToAbsl(name), " must have at most ", values_max,
                                   " token ids, got ", found->size()));
  }
  std::optional<std::vector<TokenId>> tokens = TokensOf(*found);
  if (!tokens.has_value()) return Fail(name, absl::StrCat(ToAbsl(name), " must be token ids"));
  *value = *std::move(tokens);
}

void JsonFields::Refuse(std::string_view name) {
  const json* const found = Find(name);
  if (found == nullptr || ChangesNothing(*found)) return;
  Fail(name, absl::StrCat(ToAbsl(name), " is not supported: leave it out, got ", Brief(*found)));
}

std::optional<std::vector<TokenId>> TokensOf(const json& array) {
  std::vector<TokenId> tokens;
  tokens.reserve(array.size());
  for (const json& one : array) {
    const std::optional<std::int64_t> number = IntOf(one);
    if (!number.has_value() || *number < 0 || *number > std::numeric_limits<TokenId>::max()) {
      return std::nullopt;
    }
    tokens.push_back(static_cast<TokenId>(*number));
  }
  return tokens;
}

}  // namespace penstock::gateway
