// SPDX-License-Identifier: Apache-2.0
#include "launch/line_buffer.h"

#include <utility>

namespace penstock::launch {

LineBuffer::LineBuffer(std::size_t lines_kept, std::function<void(std::string_view)> on_line)
    : lines_kept_(lines_kept), on_line_(std::move(on_line)) {}

void LineBuffer::Add(std::string_view bytes) {
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n' || line_.size() >= kLineBytesMax) Emit();
    if (c == '\n' || c == '\r') continue;
    line_ += (byte < 0x20 && c != '\t') || byte == 0x7f ? '?' : c;
  }
}

void LineBuffer::End() {
  if (!line_.empty()) Emit();
}

void LineBuffer::Emit() {
  last_.push_back(std::exchange(line_, {}));
  if (last_.size() > lines_kept_) last_.pop_front();
  on_line_(last_.back());
}

}  // namespace penstock::launch
