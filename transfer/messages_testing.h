// SPDX-License-Identifier: Apache-2.0
// What holds for messages of every channel: for tests of their encodings.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace penstock::transfer {

// `decode` makes an absl::StatusOr<Message> of bytes; Encode is found by the messages' types.
template <typename Message, typename Decode>
void ExpectMessagesComeBack(const std::vector<Message>& all, Decode decode) {
  for (const Message& message : all) {
    const std::vector<std::byte> bytes = Encode(message);
    const absl::StatusOr<Message> decoded = decode(std::span<const std::byte>(bytes));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(decoded->index(), message.index());
    EXPECT_EQ(Encode(*decoded), bytes);
  }
}

template <typename Message, typename Decode>
void ExpectCutsAreRefused(const std::vector<Message>& all, Decode decode) {
  for (const Message& message : all) {
    std::vector<std::byte> bytes = Encode(message);
    const std::size_t whole = bytes.size();
    bytes.push_back(std::byte{0});
    for (std::size_t size = 0; size <= bytes.size(); ++size) {
      if (size == whole) continue;
      EXPECT_EQ(decode(std::span<const std::byte>(bytes).first(size)).status().code(),
                absl::StatusCode::kInvalidArgument)
          << size << " of " << whole;
    }
  }
}

}  // namespace penstock::transfer
