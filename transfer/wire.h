// SPDX-License-Identifier: Apache-2.0
// Bytes of frames: fixed-width little-endian numbers, texts with their length. A reader never reads
// behind its end: what is missing reads as zero, and ok() is false from then on.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::transfer {

static_assert(std::endian::native == std::endian::little);

class WireWriter {
 public:
  explicit WireWriter(std::vector<std::byte>& out) : out_(out) {}
  template <std::unsigned_integral T>
  void Number(T value) {
    Bytes(std::as_bytes(std::span(&value, 1)));
  }
  void Bytes(std::span<const std::byte> bytes);
  void Text(std::string_view text) {  // At most 65,535 bytes; the rest is cut.
    text = text.substr(0, UINT16_MAX);
    Number(static_cast<std::uint16_t>(text.size()));
    Bytes(std::as_bytes(std::span(text)));
  }

 private:
  std::vector<std::byte>& out_;
};

class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> in) : in_(in) {}
  bool ok() const { return ok_; }
  std::size_t left() const { return in_.size(); }
  template <std::unsigned_integral T>
  T Number() {
    T value = 0;
    const std::span<const std::byte> bytes = Bytes(sizeof(T));
    if (ok_) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  std::span<const std::byte> Bytes(std::size_t count) {
    if (!ok_ || count > in_.size()) {
      ok_ = false;
      in_ = {};
      return {};
    }
    const std::span<const std::byte> bytes = in_.first(count);
    in_ = in_.subspan(count);
    return bytes;
  }
  std::string Text() {
    const std::span<const std::byte> bytes = Bytes(Number<std::uint16_t>());
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> in_;
  bool ok_ = true;
};

}  // namespace penstock::transfer
