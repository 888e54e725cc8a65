// SPDX-License-Identifier: Apache-2.0
// What is accepted is written back as the same bytes.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "transfer/handoff_messages.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::transfer;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const absl::StatusOr<HandoffMessage> message = Decode(bytes);
  if (message.ok()) {
    const std::vector<std::byte> again = Encode(*message);
    CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
  }
  return 0;
}
