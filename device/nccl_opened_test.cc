// SPDX-License-Identifier: Apache-2.0
// The system's NCCL, where there is one.
#include <gtest/gtest.h>

#include <string>

#include "device/nccl_table.h"

namespace penstock {
namespace {

TEST(NcclOpenedTest, IsThereOrSaysWhyNot) {
  const NcclLibrary& nccl = *LoadNccl();
  EXPECT_EQ(&nccl, LoadNccl());
  EXPECT_GT(nccl.header_version, 0);
  if (nccl.api == nullptr) {
    EXPECT_NE(std::string(nccl.why_not), "");
    GTEST_SKIP() << nccl.why_not;
  }
  EXPECT_GE(nccl.version, nccl.header_version);
  EXPECT_STREQ(nccl.api->get_error_string(kNcclSuccess), "no error");
}

}  // namespace
}  // namespace penstock
