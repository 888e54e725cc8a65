// SPDX-License-Identifier: Apache-2.0
// CHECK ends the process with the failed condition and its values. It is for our own bugs, never
// for input, and stays on in release builds. CHECKs in a kernel's public function guard shapes,
// outside its loops.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"

namespace penstock::internal {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& values);

}  // namespace penstock::internal

#define CHECK(condition)        \
  (static_cast<bool>(condition) \
       ? static_cast<void>(0)   \
       : ::penstock::internal::CheckFailed(__FILE__, __LINE__, #condition, std::string()))

#define PENSTOCK_CHECK_OP_(a, b, op)                                                     \
  do {                                                                                   \
    const auto penstock_a_ = (a);                                                        \
    const auto penstock_b_ = (b);                                                        \
    if (!(penstock_a_ op penstock_b_)) {                                                 \
      ::penstock::internal::CheckFailed(__FILE__, __LINE__, #a " " #op " " #b,           \
                                        absl::StrCat(penstock_a_, " vs ", penstock_b_)); \
    }                                                                                    \
  } while (false)
#define CHECK_EQ(a, b) PENSTOCK_CHECK_OP_(a, b, ==)
#define CHECK_NE(a, b) PENSTOCK_CHECK_OP_(a, b, !=)
#define CHECK_LE(a, b) PENSTOCK_CHECK_OP_(a, b, <=)
#define CHECK_LT(a, b) PENSTOCK_CHECK_OP_(a, b, <)
#define CHECK_GE(a, b) PENSTOCK_CHECK_OP_(a, b, >=)
#define CHECK_GT(a, b) PENSTOCK_CHECK_OP_(a, b, >)
