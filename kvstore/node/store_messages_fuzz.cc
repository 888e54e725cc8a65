// SPDX-License-Identifier: Apache-2.0
// What is accepted is written back as the same bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "kvstore/node/store_messages.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::kvstore;
  if (size > penstock::transfer::Link::kMessageBytesMax) return 0;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const absl::StatusOr<StoreMessage> message = Decode(bytes);
  if (message.ok()) CHECK(std::ranges::equal(Encode(*message), bytes));
  return 0;
}
