// SPDX-License-Identifier: Apache-2.0
#include "kernels/numerics.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::kernels {

std::string_view ToString(Numerics numerics) {
  return numerics == Numerics::kFast ? "fast" : "exact";
}

absl::StatusOr<Numerics> ParseNumerics(std::string_view text) {
  for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
    if (text == ToString(numerics)) return numerics;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("numerics must be exact or fast, got \"", ToAbsl(text), "\""));
}

}  // namespace penstock::kernels
