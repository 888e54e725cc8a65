// SPDX-License-Identifier: Apache-2.0
// Names that one folder repeats because it may not include where they are from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "coordinator/reuse.h"
#include "kvstore/codecs/codec_id.h"
#include "kvstore/eviction.h"
#include "launch/schema.h"

namespace penstock {
namespace {

using testing::ElementsAreArray;

// The words that a deployment file may have for a key of a store node.
std::vector<std::string> WordsOf(std::string_view name) {
  const auto keys = launch::Keys();
  const auto key = std::ranges::find_if(keys, [&](const launch::Key& k) {
    return k.section == launch::Section::kStore && k.name == name;
  });
  EXPECT_NE(key, keys.end()) << name;
  return absl::StrSplit(ToAbsl(key->words), ' ');
}

TEST(NamesTest, ADeploymentHasThePoliciesThatTheStoreHas) {
  const auto names = kvstore::EvictionPolicyNames();
  EXPECT_THAT(WordsOf("policy"), ElementsAreArray(names.begin(), names.end()));
}

TEST(NamesTest, ADeploymentHasTheCodecsThatTheStoreHas) {
  std::vector<std::string> lossless, lossy = {"none"};
  for (const kvstore::CodecId codec : kvstore::AllCodecs()) {
    (kvstore::IsLossless(codec) ? lossless : lossy).emplace_back(ToString(codec));
  }
  lossless.insert(lossless.end(), {"auto", "none"});
  EXPECT_THAT(WordsOf("codec"), ElementsAreArray(lossless));
  EXPECT_THAT(WordsOf("lossy"), ElementsAreArray(lossy));
}

TEST(NamesTest, TheCoordinatorKnowsEachCodec) {
  for (const kvstore::CodecId codec : kvstore::AllCodecs()) {
    EXPECT_EQ(coordinator::CodecName(static_cast<std::uint8_t>(codec)), ToString(codec));
  }
  const auto last = static_cast<std::uint8_t>(kvstore::AllCodecs().back());
  EXPECT_EQ(coordinator::CodecName(static_cast<std::uint8_t>(last + 1)),
            absl::StrCat("codec ", last + 1));
}

}  // namespace
}  // namespace penstock
