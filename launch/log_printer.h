// SPDX-License-Identifier: Apache-2.0
// Lines of many processes on one output, each behind the name of whose it is.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::launch {

// One thread at a time. A reader that stops reading stops the caller.
class LogPrinter {
 public:
  // `names`: the prefixes are as wide as the longest. `colors`: another for each, in their order.
  LogPrinter(int fd, const std::vector<std::string>& names, bool colors);

  // "name     | line", written at once. What cannot be written is lost.
  void Print(const std::string& name, std::string_view line);
  // What would be written.
  std::string Format(const std::string& name, std::string_view line) const;

 private:
  const int fd_;
  const bool colors_;
  std::size_t width_ = 0;
  std::map<std::string, std::size_t> order_;
};

}  // namespace penstock::launch
