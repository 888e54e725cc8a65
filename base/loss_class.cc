// SPDX-License-Identifier: Apache-2.0
#include "base/loss_class.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock {
namespace {

constexpr std::array<std::string_view, kLossClasses> kNames = {"exact", "kl3", "kl2"};

}  // namespace

std::string_view ToString(LossClass loss) {
  const auto at = static_cast<std::size_t>(loss);
  return at < kNames.size() ? kNames[at] : "unknown";
}

absl::StatusOr<LossClass> ParseLossClass(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<LossClass>(i);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no loss class \"", ToAbsl(name), "\"; there are exact, kl3, kl2"));
}

LossSpaces MakeLossSpaces(NamespaceFields fields) {
  LossSpaces spaces;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    fields.loss_class = kNames[i];
    spaces.of[i] = MakeNamespace(fields);
  }
  return spaces;
}

}  // namespace penstock
