// SPDX-License-Identifier: Apache-2.0
// CHECK (base/check.h) for a status that nobody could do anything about.
#pragma once

#include "absl/status/status.h"
#include "base/check.h"

#define CHECK_OK(expr)                                                                           \
  do {                                                                                           \
    if (const absl::Status penstock_status_ = (expr); !penstock_status_.ok()) {                  \
      ::penstock::internal::CheckFailed(__FILE__, __LINE__, #expr, penstock_status_.ToString()); \
    }                                                                                            \
  } while (false)
