// SPDX-License-Identifier: Apache-2.0
// What single values of a deployment file mean. Errors are INVALID_ARGUMENT and begin with what is
// wanted: "must be a size such as 512MiB, got ...".
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::launch {

// Decimal digits alone, within the limits.
absl::StatusOr<std::int64_t> ParseCount(std::string_view text, std::int64_t least,
                                        std::int64_t most);
// "512MiB", "1.5GB", "4096". Units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB.
absl::StatusOr<std::int64_t> ParseBytes(std::string_view text);
// "250ms", "1.5s", "2m", "1h". Units: us, ms, s, m, h. At most a day.
absl::StatusOr<Duration> ParseDuration(std::string_view text);

inline constexpr int kCpusMax = 1024;
// "0,2,4-7", in that order, each once.
absl::StatusOr<std::vector<int>> ParseCpus(std::string_view text);
// The other way round: "0,2,4-7".
std::string CpusToString(const std::vector<int>& cpus);

// "10.0.0.1", "fd00::1": no names.
bool IsNumericAddress(const std::string& text);

}  // namespace penstock::launch
