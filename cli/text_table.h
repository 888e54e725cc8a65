// SPDX-License-Identifier: Apache-2.0
// Tables and figures that people read. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace penstock::cli {

// A line for each row, columns as wide as their widest cell; the first `left_columns` begin at the
// left, numbers end at the right.
std::string TextTable(const std::vector<std::vector<std::string>>& rows, std::size_t left_columns);

// "1.2 GiB", "512 B": as sizes are given to flags.
std::string FormatBinaryBytes(std::uint64_t bytes);
// "3 days 2 h", "2 h 13 min", "4 min 5 s", "17 s".
std::string FormatLongTime(std::int64_t seconds);

}  // namespace penstock::cli
