// SPDX-License-Identifier: Apache-2.0
// Bytes as they come, cut into lines; and the last of them, for when somebody asks what happened.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <string_view>

namespace penstock::launch {

class LineBuffer {
 public:
  static constexpr std::size_t kLineBytesMax = 8192;  // Longer ones are cut into several.

  // `on_line`: without its end, control characters but tabs replaced by '?'.
  LineBuffer(std::size_t lines_kept, std::function<void(std::string_view)> on_line);

  void Add(std::string_view bytes);
  void End();  // What is left is a line.
  const std::deque<std::string>& last_lines() const { return last_; }

 private:
  void Emit();

  const std::size_t lines_kept_;
  const std::function<void(std::string_view)> on_line_;
  std::string line_;
  std::deque<std::string> last_;
};

}  // namespace penstock::launch
