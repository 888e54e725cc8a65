// SPDX-License-Identifier: Apache-2.0
#include "base/loss_class.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace penstock {
namespace {

TEST(LossClassTest, NamesAreReadBack) {
  for (const LossClass loss : {LossClass::kExact, LossClass::kKl3, LossClass::kKl2}) {
    EXPECT_EQ(*ParseLossClass(ToString(loss)), loss);
  }
  EXPECT_EQ(ToString(static_cast<LossClass>(3)), "unknown");
  EXPECT_EQ(ParseLossClass("kl4").status().message(),
            "no loss class \"kl4\"; there are exact, kl3, kl2");
}

TEST(LossClassTest, EachHasItsOwnNamespaceAndCopies) {
  const LossSpaces spaces = MakeLossSpaces({"m", "w", "f16", "", "absolute", "n", "whatever"});
  EXPECT_EQ(spaces[LossClass::kExact],
            MakeNamespace({"m", "w", "f16", "", "absolute", "n", "exact"}));
  EXPECT_EQ(spaces[LossClass::kKl2], MakeNamespace({"m", "w", "f16", "", "absolute", "n", "kl2"}));
  EXPECT_EQ(CopySpaceOf(spaces, 1, LossClass::kKl3), CopySpace(spaces[LossClass::kKl3], 1, "kl3"));
  std::set<Namespace> all(spaces.of.begin(), spaces.of.end());
  for (std::uint32_t group = 0; group < 2; ++group) {
    for (std::size_t i = 0; i < kLossClasses; ++i) {
      all.insert(CopySpaceOf(spaces, group, static_cast<LossClass>(i)));
    }
  }
  EXPECT_EQ(all.size(), kLossClasses * 3);
}

TEST(LineageTest, WhatAttendedToBothIsOfTheWorse) {
  Lineage lineage;
  EXPECT_EQ(lineage.Of(1000), LossClass::kExact);
  lineage.Join({LossClass::kKl3, 7});
  EXPECT_EQ(lineage.Of(6), LossClass::kExact);
  EXPECT_EQ(lineage.Of(7), LossClass::kKl3);
  lineage.Join({});
  EXPECT_EQ(lineage, (Lineage{LossClass::kKl3, 7}));
  lineage.Join({LossClass::kKl2, 9});
  EXPECT_EQ(lineage.Of(8), LossClass::kKl2) << "counts as the worse one";
  lineage.Join({LossClass::kKl3, 2});
  EXPECT_EQ(lineage, (Lineage{LossClass::kKl2, 2}));
}

}  // namespace
}  // namespace penstock
