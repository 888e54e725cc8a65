// SPDX-License-Identifier: Apache-2.0
#include "base/sha256.h"

#include <string_view>

#include "base/key.h"
#include "gtest/gtest.h"

namespace penstock {
namespace {

// FIPS 180-4's examples.
TEST(Sha256Test, KnownDigests) {
  const auto hex = [](std::string_view text) { return ToHex(Sha256Of(text.data(), text.size())); };
  EXPECT_EQ(hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256Test, FinishBeginsAnew) {
  Sha256 hash;
  hash.Add("ab", 2);
  hash.Add("c", 1);
  EXPECT_EQ(hash.Finish(), Sha256Of("abc", 3));
  EXPECT_EQ(hash.Finish(), Sha256Of("", 0));
  hash.Add("abc", 3);
  EXPECT_EQ(hash.Finish(), Sha256Of("abc", 3));
}

}  // namespace
}  // namespace penstock
