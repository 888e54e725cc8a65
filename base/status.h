// SPDX-License-Identifier: Apache-2.0
// Macros around absl::Status. What each code asks of the caller, in all of Penstock:
// - INVALID_ARGUMENT: the input is wrong; the message names the field and both numbers. No retry.
// - NOT_FOUND: no such file, model or tensor.
// - RESOURCE_EXHAUSTED: shed load, or ask for less.
// - UNAVAILABLE: try another worker.
// - ABORTED: stale epoch; restart the step.
// - FAILED_PRECONDITION: look up again.
// - DATA_LOSS: bad checksum or a truncated file; fetch or recompute.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace penstock {

// Debian's Abseil is built as C++14, where absl::string_view is a type of its own.
inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }
inline std::string_view ToStd(absl::string_view s) { return {s.data(), s.size()}; }

// INVALID_ARGUMENT that names the field, its limits and its value, unless least <= value <= most.
inline absl::Status CheckRange(std::string_view field, std::int64_t value, std::int64_t least,
                               std::int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be from ", least, " to ", most, ", got ", value));
}

}  // namespace penstock

#define RETURN_IF_ERROR(expr)                                             \
  do {                                                                    \
    if (absl::Status penstock_status_ = (expr); !penstock_status_.ok()) { \
      return penstock_status_;                                            \
    }                                                                     \
  } while (false)

#define PENSTOCK_CONCAT_INNER_(a, b) a##b
#define PENSTOCK_CONCAT_(a, b) PENSTOCK_CONCAT_INNER_(a, b)

// ASSIGN_OR_RETURN(const int n, Parse(text)); ASSIGN_OR_RETURN(member_, Make());
#define ASSIGN_OR_RETURN(lhs, expr) \
  PENSTOCK_ASSIGN_OR_RETURN_IMPL_(PENSTOCK_CONCAT_(penstock_or_, __LINE__), lhs, expr)
#define PENSTOCK_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr) \
  auto statusor = (expr);                                    \
  if (!statusor.ok()) return std::move(statusor).status();   \
  lhs = *std::move(statusor)
