// SPDX-License-Identifier: Apache-2.0
#include "kernels/numerics.h"

#include <gtest/gtest.h>

#include <string>

namespace penstock::kernels {
namespace {

TEST(NumericsTest, ReadsWhatItWrites) {
  for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
    const auto read = ParseNumerics(ToString(numerics));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, numerics);
  }
  EXPECT_EQ(ToString(Numerics::kExact), "exact");
  for (const char* const bad : {"", "Fast", "cpu-1"}) {
    EXPECT_EQ(ParseNumerics(bad).status().message(),
              "numerics must be exact or fast, got \"" + std::string(bad) + "\"");
  }
}

}  // namespace
}  // namespace penstock::kernels
