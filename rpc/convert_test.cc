// SPDX-License-Identifier: Apache-2.0
#include "rpc/convert.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "gtest/gtest.h"

namespace penstock::rpc {
namespace {

TEST(ConvertTest, StatusComesBack) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why");
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
}

TEST(ConvertTest, AttemptsAreChecked) {
  v1::Attempt message;
  ToProto({.request_id = "r-1", .number = 7}, &message);
  EXPECT_EQ(*FromProto(message), (Attempt{.request_id = "r-1", .number = 7}));
  const auto error = [&](const std::string& id, std::uint32_t number) {
    ToProto({.request_id = id, .number = number}, &message);
    return std::string(ToStd(FromProto(message).status().message()));
  };
  EXPECT_EQ(error("", 1), "length of attempt.request_id must be from 1 to 64, got 0");
  EXPECT_EQ(error(std::string(65, 'x'), 1),
            "length of attempt.request_id must be from 1 to 64, got 65");
  EXPECT_EQ(error("a b", 1), "attempt.request_id must be printable ASCII without spaces");
  EXPECT_EQ(error("a", 0), "attempt.number must be from 1 to 1048576, got 0");
}

TEST(ConvertTest, DurationsComeBackAndAreChecked) {
  google::protobuf::Duration message;
  for (const Duration d : {Duration(0), Duration(1), Duration(std::chrono::hours(24)),
                           Duration(std::chrono::milliseconds(1500))}) {
    ToProto(d, &message);
    EXPECT_EQ(*FromProto("timeout", message), d);
  }
  message.set_seconds(-1);
  EXPECT_EQ(FromProto("timeout", message).status().message(),
            "timeout.seconds must be from 0 to 86400, got -1");
}

TEST(ConvertTest, ChainsHave16Bytes) {
  const std::vector<Chain> chains = ChainsOf(std::vector<TokenId>(10, 5), "", 2);
  EXPECT_EQ(*ChainsFromProto(ChainsToProto(chains)), chains);
  EXPECT_EQ(ChainsFromProto(std::string(31, 'a')).status().message(),
            "chains must be 16 bytes each, got 31 bytes");
}

TEST(ConvertTest, ARootHas16BytesOrNone) {
  const Chain root = RootChain("salt", 32);
  EXPECT_EQ(*RootFromProto(ChainsToProto({&root, 1})), root);
  EXPECT_EQ(*RootFromProto(""), std::nullopt);
  for (const std::size_t bytes : {15U, 32U}) {
    EXPECT_EQ(RootFromProto(std::string(bytes, 'a')).status().message(),
              absl::StrCat("root must be 16 bytes or none, got ", bytes, " bytes"));
  }
}

TEST(ConvertTest, ErrorsComeBack) {
  EXPECT_TRUE(FromProto(v1::Error()).ok());
  v1::Error message;
  ToProto(absl::AbortedError("an ended life"), &message);
  EXPECT_EQ(FromProto(message), absl::AbortedError("an ended life"));
  message.set_code(99);
  EXPECT_EQ(FromProto(message).code(), absl::StatusCode::kUnknown);
}

// As much of a long one as is whole characters.
TEST(ConvertTest, ErrorsAreBounded) {
  v1::Error message;
  message.set_code(14);
  for (const std::size_t before : {0, 1, 2}) {
    std::string text(before, 'x');
    while (text.size() < 3 * kErrorBytesMax) text += "\xe2\x82\xac";
    message.set_message(text);
    const std::string kept = std::string(ToStd(FromProto(message).message()));
    EXPECT_LE(kept.size(), kErrorBytesMax);
    EXPECT_GT(kept.size(), kErrorBytesMax - 3);
    EXPECT_EQ((kept.size() - before) % 3, 0U);
    EXPECT_EQ(text.substr(0, kept.size()), kept);
  }
}

}  // namespace
}  // namespace penstock::rpc
