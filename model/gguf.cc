// SPDX-License-Identifier: Apache-2.0
#include "model/gguf.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/gguf_values.h"

namespace penstock::model {
namespace {

using gguf_internal::Load;
using gguf_internal::Name;
using gguf_internal::Printable;
using gguf_internal::ScalarBytes;

absl::Status WrongType(std::string_view key, const char* want, const GgufValue& value) {
  if (value.type == GgufType::kArray) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", Printable(key), " must be ", want,
                                                   ", got an array of ", value.count, " ",
                                                   Name(value.element)));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("metadata ", Printable(key), " must be ", want, ", got ", Name(value.type)));
}

absl::Status Missing(std::string_view key) {
  return absl::InvalidArgumentError(absl::StrCat("metadata ", Printable(key), " is missing"));
}

// Nothing for types that are not integers (or bool). Unsigned values above int64 come out negative.
std::optional<std::int64_t> AsInt(GgufType type, const std::byte* p) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kBool:
      return Load<std::uint8_t>(p);
    case GgufType::kI8:
      return Load<std::int8_t>(p);
    case GgufType::kU16:
      return Load<std::uint16_t>(p);
    case GgufType::kI16:
      return Load<std::int16_t>(p);
    case GgufType::kU32:
      return Load<std::uint32_t>(p);
    case GgufType::kI32:
      return Load<std::int32_t>(p);
    case GgufType::kU64:
    case GgufType::kI64:
      return Load<std::int64_t>(p);
    default:
      return std::nullopt;
  }
}

}  // namespace

const GgufValue* Gguf::Find(std::string_view key) const {
  const auto it = metadata_.find(ToAbsl(key));
  return it == metadata_.end() ? nullptr : &it->second;
}

absl::StatusOr<std::int32_t> Gguf::GetInt(std::string_view key,
                                          std::optional<std::int32_t> fallback) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return Missing(key);
  }
  const std::optional<std::int64_t> n =
      value->type == GgufType::kBool ? std::nullopt : AsInt(value->type, value->bytes.data());
  if (!n) return WrongType(key, "an integer", *value);
  constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();
  const bool wrapped = value->type == GgufType::kU64 && *n < 0;
  if (wrapped || *n > kMax || *n < std::numeric_limits<std::int32_t>::min()) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", Printable(key), " must be at most ", kMax, ", got ",
                     wrapped ? absl::StrCat(static_cast<std::uint64_t>(*n)) : absl::StrCat(*n)));
  }
  return static_cast<std::int32_t>(*n);
}

absl::StatusOr<float> Gguf::GetFloat(std::string_view key, std::optional<float> fallback) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return Missing(key);
  }
  double number = 0;
  if (value->type == GgufType::kF32) {
    number = Load<float>(value->bytes.data());
  } else if (value->type == GgufType::kF64) {
    number = Load<double>(value->bytes.data());
  } else {
    return WrongType(key, "a float", *value);
  }
  // Also keeps the conversion to float defined.
  if (!(std::abs(number) <= std::numeric_limits<float>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", Printable(key), " must be finite, got ", number));
  }
  return static_cast<float>(number);
}

absl::StatusOr<bool> Gguf::GetBool(std::string_view key, std::optional<bool> fallback) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return Missing(key);
  }
  if (value->type != GgufType::kBool) return WrongType(key, "a bool", *value);
  return Load<std::uint8_t>(value->bytes.data()) != 0;
}

absl::StatusOr<std::string> Gguf::GetString(std::string_view key,
                                            std::optional<std::string> fallback) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (fallback) return *std::move(fallback);
    return Missing(key);
  }
  if (value->type != GgufType::kString) return WrongType(key, "a string", *value);
  return std::string(reinterpret_cast<const char*>(value->bytes.data()) + 8,
                     value->bytes.size() - 8);
}

absl::StatusOr<std::vector<std::int64_t>> Gguf::GetInts(std::string_view key) const {
  std::vector<std::int64_t> out;
  const GgufValue* value = Find(key);
  if (value == nullptr) return out;
  const std::uint64_t each = ScalarBytes(value->element);
  if (value->type != GgufType::kArray || each == 0 || value->element == GgufType::kF32 ||
      value->element == GgufType::kF64) {
    return WrongType(key, "an array of integers", *value);
  }
  out.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    out.push_back(*AsInt(value->element, value->bytes.data() + i * each));
  }
  return out;
}

absl::StatusOr<std::vector<float>> Gguf::GetFloats(std::string_view key) const {
  std::vector<float> out;
  const GgufValue* value = Find(key);
  if (value == nullptr) return out;
  if (value->type != GgufType::kArray || value->element != GgufType::kF32) {
    return WrongType(key, "an array of f32", *value);
  }
  out.resize(value->count);
  if (!out.empty()) std::memcpy(out.data(), value->bytes.data(), value->bytes.size());
  return out;
}

absl::StatusOr<std::vector<std::string>> Gguf::GetStrings(std::string_view key) const {
  std::vector<std::string> out;
  const GgufValue* value = Find(key);
  if (value == nullptr) return out;
  if (value->type != GgufType::kArray || value->element != GgufType::kString) {
    return WrongType(key, "an array of strings", *value);
  }
  out.reserve(value->count);
  const std::byte* p = value->bytes.data();
  for (std::uint64_t i = 0; i < value->count; ++i) {
    const std::uint64_t n = Load<std::uint64_t>(p);
    out.emplace_back(reinterpret_cast<const char*>(p) + 8, n);
    p += 8 + n;
  }
  return out;
}

}  // namespace penstock::model
