// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_state.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace penstock::decode {
namespace {

// Only what says "another worker may do it right" may leave: a gateway takes INVALID_ARGUMENT for
// the request's own fault, and FAILED_PRECONDITION for a reservation that is gone.
TEST(ToOursTest, APeersFaultIsNotTheRequests) {
  using Code = absl::StatusCode;
  const Code kept[] = {Code::kUnavailable, Code::kDataLoss, Code::kDeadlineExceeded,
                       Code::kCancelled};
  for (const Code code : kept) {
    const absl::Status status(code, "why");
    EXPECT_EQ(ToOurs(status), status);
  }
  const Code others[] = {Code::kUnknown,
                         Code::kInvalidArgument,
                         Code::kNotFound,
                         Code::kAlreadyExists,
                         Code::kPermissionDenied,
                         Code::kResourceExhausted,
                         Code::kFailedPrecondition,
                         Code::kAborted,
                         Code::kOutOfRange,
                         Code::kUnimplemented,
                         Code::kInternal,
                         Code::kUnauthenticated};
  for (const Code code : others) {
    EXPECT_EQ(
        ToOurs(absl::Status(code, "the last block must be from 0 to 3, got 7")),
        absl::UnavailableError("the handoff failed: the last block must be from 0 to 3, got 7"))
        << absl::StatusCodeToString(code);
  }
  EXPECT_EQ(std::size(kept) + std::size(others), 16u);  // All but OK.
}

}  // namespace
}  // namespace penstock::decode
