// SPDX-License-Identifier: Apache-2.0
// Bytes of any origin, as a server's: the first byte says how they are cut. However that is, the
// same replies are heard, and none has more than the most.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kvstore/remote/redis_replies.h"

namespace penstock::kvstore {
namespace {

constexpr std::size_t kValueMax = 1000;

struct Heard {
  bool whole = true;
  std::string replies;
};

Heard Hear(std::span<const std::byte> bytes, std::size_t piece_bytes) {
  Heard heard;
  RedisReplies replies(kValueMax, [&](const RedisReply& reply) {
    CHECK(reply.value.size() <= kValueMax);
    const std::string_view value(reinterpret_cast<const char*>(reply.value.data()),
                                 reply.value.size());
    absl::StrAppend(&heard.replies, static_cast<int>(reply.kind), " ", reply.integer, " ",
                    ToAbsl(reply.text), " ", ToAbsl(value), "\n");
    return absl::OkStatus();
  });
  while (!bytes.empty() && heard.whole) {
    const std::size_t piece = std::min(piece_bytes, bytes.size());
    heard.whole = replies.Feed(bytes.first(piece)).ok();
    bytes = bytes.subspan(piece);
  }
  return heard;
}

}  // namespace
}  // namespace penstock::kvstore

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using penstock::kvstore::Hear;
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const auto whole = Hear(bytes, bytes.size() + 1);
  const auto cut = Hear(bytes, 1 + data[0] % 32);
  CHECK(whole.whole == cut.whole);
  CHECK(whole.replies == cut.replies);
  return 0;
}
