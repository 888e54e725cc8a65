// SPDX-License-Identifier: Apache-2.0
// Reads the fields of a JSON object that a client sent. The first fault is kept and named as
// OpenAI does; after it nothing more is read. A field that is missing or null leaves the value as
// it was.
//
//   JsonFields fields(body);
//   fields.Number("temperature", &temperature);  ...  if (fields.error()) ...
//
// One thread. Nothing throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/key.h"
#include "gateway/openai_error.h"
#include "nlohmann/json_fwd.hpp"

namespace penstock::gateway {

class JsonFields {
 public:
  // `object` is one, and outlives this.
  explicit JsonFields(const nlohmann::json& object) : object_(object) {}

  // Null: missing, null, or there was a fault.
  const nlohmann::json* Find(std::string_view name) const;
  bool Has(std::string_view name) const { return Find(name) != nullptr; }

  void Bool(std::string_view name, bool* value);
  void Number(std::string_view name, double* value);
  void Int(std::string_view name, std::int64_t least, std::int64_t most, std::int32_t* value);
  void Text(std::string_view name, std::size_t bytes_max, std::string* value);
  // Any integer of 64 bits; negative ones by their bits.
  void Seed(std::string_view name, std::optional<std::uint64_t>* value);
  // One string, or an array of at most values_max.
  void Strings(std::string_view name, std::size_t values_max, std::vector<std::string>* value);
  void Tokens(std::string_view name, std::size_t values_max, std::vector<TokenId>* value);

  // Refuses the field unless its value changes nothing: null, false, 0, or empty.
  void Refuse(std::string_view name);
  void Fail(std::string_view param, std::string message);
  void Wrong(std::string_view param, std::string_view want, const nlohmann::json& got);

  const std::optional<ApiError>& error() const { return error_; }

 private:
  const nlohmann::json& object_;
  std::optional<ApiError> error_;
};

// The token ids of an array; nothing where it has something else.
std::optional<std::vector<TokenId>> TokensOf(const nlohmann::json& array);

}  // namespace penstock::gateway
