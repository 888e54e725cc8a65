// SPDX-License-Identifier: Apache-2.0
// One plan of one request: what every reservation, order and stream is numbered by. A request that
// lost its workers goes on as the next attempt; what the earlier one still has ends by itself.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace penstock {

struct Attempt {
  std::string request_id = {};  // 1 to 64 bytes, chosen by the client or the gateway; unique while
                                // the request lives.
  std::uint32_t number = 0;     // 1, 2, ...

  auto operator<=>(const Attempt&) const = default;
};

inline std::string ToString(const Attempt& attempt) {
  return absl::StrCat(attempt.request_id, "#", attempt.number);
}

}  // namespace penstock
