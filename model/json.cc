// SPDX-License-Identifier: Apache-2.0
#include "model/json.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::model {
namespace {

absl::Status Wrong(std::string_view key, std::string_view want, const Json& got) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(key), " must be ", ToAbsl(want), ", got ", Brief(got)));
}

absl::Status Missing(std::string_view key) {
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(key), " is missing"));
}

// What the library does not check: depth, and keys given twice, of which it would keep the last.
class Watcher {
 public:
  explicit Watcher(std::size_t values_max) : values_max_(values_max) {}

  bool Event(int depth, Json::parse_event_t event, const Json& parsed) {
    const auto level = static_cast<std::size_t>(depth);
    if (level > kJsonDepthMax) {
      fault_ = absl::StrCat("nests deeper than ", kJsonDepthMax);
      return false;
    }
    const bool value = event == Json::parse_event_t::value ||
                       event == Json::parse_event_t::object_start ||
                       event == Json::parse_event_t::array_start;
    if (value && ++values_ > values_max_) {
      fault_ = absl::StrCat("has more than ", values_max_, " values");
      return false;
    }
    if (event == Json::parse_event_t::object_start) {
      if (keys_.size() <= level) keys_.resize(level + 1);
      keys_[level].clear();
    } else if (event == Json::parse_event_t::key && level > 0 && keys_.size() >= level) {
      const std::string& key = parsed.get_ref<const std::string&>();
      if (!keys_[level - 1].insert(key).second) {
        fault_ = absl::StrCat("has the key ", Quoted(key), " twice");
      }
    }
    return fault_.empty();  // Nothing more is kept once it is known to be wrong.
  }
  const std::string& fault() const { return fault_; }

 private:
  const std::size_t values_max_;
  std::size_t values_ = 0;
  std::vector<absl::flat_hash_set<std::string>> keys_;
  std::string fault_;
};

}  // namespace

absl::StatusOr<Json> ParseJsonObject(std::string_view text, std::string_view what,
                                     std::size_t bytes_max, std::size_t values_max) {
  if (text.size() > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(what), " has ", text.size(), " bytes, the limit is ", bytes_max));
  }
  Watcher watcher(values_max);
  Json json = Json::parse(
      text.begin(), text.end(),
      [&watcher](int depth, Json::parse_event_t event, Json& parsed) {
        return watcher.Event(depth, event, parsed);
      },
      /*allow_exceptions=*/false);
  if (!watcher.fault().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), " ", watcher.fault()));
  }
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), " is not valid JSON"));
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(what), " must be a JSON object, got ", Brief(json)));
  }
  return json;
}

const Json* Member(const Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(std::string(key));
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

const Json* ObjectMember(const Json& object, std::string_view key) {
  const Json* member = Member(object, key);
  return member != nullptr && member->is_object() ? member : nullptr;
}

absl::StatusOr<std::int32_t> GetJsonInt(const Json& object, std::string_view key,
                                        std::optional<std::int32_t> fallback) {
  const Json* value = Member(object, key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return Missing(key);
  }
  constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max());
  if (!value->is_number_unsigned() || value->get<std::uint64_t>() > kMax) {
    return Wrong(key, absl::StrCat("an integer from 0 to ", kMax), *value);
  }
  return static_cast<std::int32_t>(value->get<std::uint64_t>());
}

absl::StatusOr<float> GetJsonFloat(const Json& object, std::string_view key,
                                   std::optional<float> fallback) {
  const Json* value = Member(object, key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return Missing(key);
  }
  if (!value->is_number()) return Wrong(key, "a number", *value);
  const double number = value->get<double>();
  if (!(std::abs(number) <= std::numeric_limits<float>::max())) {
    return Wrong(key, "a finite number", *value);
  }
  return static_cast<float>(number);
}

absl::StatusOr<bool> GetJsonBool(const Json& object, std::string_view key,
                                 std::optional<bool> fallback) {
  const Json* value = Member(object, key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return Missing(key);
  }
  if (!value->is_boolean()) return Wrong(key, "true or false", *value);
  return value->get<bool>();
}

absl::StatusOr<std::string> GetJsonString(const Json& object, std::string_view key,
                                          std::optional<std::string> fallback) {
  const Json* value = Member(object, key);
  if (value == nullptr) {
    if (fallback) return *std::move(fallback);
    return Missing(key);
  }
  if (!value->is_string()) return Wrong(key, "a string", *value);
  return value->get<std::string>();
}

std::string Quoted(std::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(ToAbsl(text.substr(0, 100))), "\"");
}

std::string Brief(const Json& value) {
  if (value.is_string()) return Quoted(value.get_ref<const std::string&>());
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  if (value.is_object()) return absl::StrCat("an object of ", value.size());
  return value.dump();  // A number, a bool or null.
}

}  // namespace penstock::model
