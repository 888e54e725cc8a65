// SPDX-License-Identifier: Apache-2.0
// Shared by gguf.cc and gguf_parser.cc: GGUF's value types and how their bytes are read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "base/status.h"
#include "model/gguf.h"

namespace penstock::model::gguf_internal {

inline constexpr std::uint32_t kGgufTypes = 13;

// Bytes of a scalar; 0 for strings and arrays, whose length is in the file.
inline constexpr std::array<std::uint8_t, kGgufTypes> kGgufScalarBytes = {1, 1, 2, 2, 4, 4, 4,
                                                                          1, 0, 0, 8, 8, 8};
inline constexpr std::array<const char*, kGgufTypes> kGgufTypeNames = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

inline std::uint64_t ScalarBytes(GgufType type) {
  return kGgufScalarBytes[static_cast<std::size_t>(type)];
}
inline const char* Name(GgufType type) { return kGgufTypeNames[static_cast<std::size_t>(type)]; }

// Names from files, safe to print and short.
inline std::string Printable(std::string_view name) {
  return absl::CHexEscape(ToAbsl(name.substr(0, 100)));
}

template <typename T>
T Load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

}  // namespace penstock::model::gguf_internal
