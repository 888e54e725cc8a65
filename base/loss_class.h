// SPDX-License-Identifier: Apache-2.0
// How far KV may be from what computing it anew would give, and which blocks of a sequence are.
//
// A loss class names a bound of the mean KL divergence (kvstore/quality_record.h) and no algorithm. KV
// of a class is kept under the namespace of that class (base/key.h), whether it was changed itself, as
// by a codec with a loss, or computed by attending to what was. Under "exact" nothing is ever found
// but what computing gives, bit by bit.
//
// Plain values; any thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/key.h"

namespace penstock {

// Numbers are in frames and messages: never reused. Greater is worse.
enum class LossClass : std::uint8_t {
  kExact = 0,
  kKl3 = 1,  // Mean KL up to 0.005.
  kKl2 = 2,  // Up to 0.05.
};
inline constexpr std::size_t kLossClasses = 3;
std::string_view ToString(LossClass loss);  // "exact", "kl3", "kl2"; for others "unknown".
// INVALID_ARGUMENT that lists the names.
absl::StatusOr<LossClass> ParseLossClass(std::string_view name);

// The namespaces of one model's blocks, by class.
struct LossSpaces {
  std::array<Namespace, kLossClasses> of = {};
  const Namespace& operator[](LossClass loss) const { return of[static_cast<std::size_t>(loss)]; }
};
// `fields` but for its loss_class.
LossSpaces MakeLossSpaces(NamespaceFields fields);
// Where stores keep what is known of a group up to `loss`.
inline Namespace CopySpaceOf(const LossSpaces& spaces, std::uint32_t group, LossClass loss) {
  return CopySpace(spaces[loss], group, ToString(loss));
}

// From block `from` of a sequence on, KV is of class `loss`.
struct Lineage {
  static constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max();

  LossClass loss = LossClass::kExact;
  std::int32_t from = kNever;

  bool operator==(const Lineage&) const = default;
  // What attended to both. The blocks between the two beginnings count as of the worse class.
  void Join(const Lineage& other) {
    loss = std::max(loss, other.loss);
    from = std::min(from, other.from);
  }
  LossClass Of(std::int32_t block) const { return block >= from ? loss : LossClass::kExact; }
};

}  // namespace penstock
