// SPDX-License-Identifier: Apache-2.0
// The system's cuBLASLt, where there is one.
#include <gtest/gtest.h>

#include <string>

#include "device/cublas_lt_symbols.h"
#include "device/cublas_lt_table.h"

namespace penstock {
namespace {

TEST(CublasLtOpenedTest, IsThereOrSaysWhyNot) {
  const CublasLtLibrary& lt = *LoadCublasLt();
  EXPECT_EQ(&lt, LoadCublasLt());
  EXPECT_EQ(lt.header_version, CUBLAS_VERSION);
  if (lt.api == nullptr) {
    EXPECT_NE(std::string(lt.why_not), "");
    GTEST_SKIP() << lt.why_not;
  }
  EXPECT_GE(lt.version, 120000);
  EXPECT_STREQ(lt.api->get_status_name(kCublasSuccess), "CUBLAS_STATUS_SUCCESS");
  EXPECT_STREQ(lt.api->get_status_name(kCublasNotSupported), "CUBLAS_STATUS_NOT_SUPPORTED");
}

TEST(CublasLtOpenedTest, OtherMajorVersionsAreRefused) {
  for (const std::size_t good : {120000u, 120805u, unsigned{CUBLAS_VERSION}}) {
    EXPECT_EQ(WhyNotCublasLtVersion(good), "") << good;
  }
  const std::string next = std::to_string(CUBLAS_VER_MAJOR + 1);
  EXPECT_EQ(WhyNotCublasLtVersion(111103),
            "cuBLASLt is 11.11.3, the plug-in needs 12.0.0 or a "
            "later one up to " +
                std::to_string(CUBLAS_VER_MAJOR));
  EXPECT_NE(WhyNotCublasLtVersion((CUBLAS_VER_MAJOR + 1) * 10000).find(next + ".0.0"),
            std::string::npos);
}

}  // namespace
}  // namespace penstock
