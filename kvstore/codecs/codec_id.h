// SPDX-License-Identifier: Apache-2.0
// Which codecs there are, by their number in frames, and what copies made by them promise. Plain
// values; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "base/loss_class.h"

namespace penstock::kvstore {

// Numbers are on disks and wires: never reused.
enum class CodecId : std::uint8_t {
  kRaw = 1,
  kPlanes = 2,      // Lossless: short codes for exponents.
  kPlanesZstd = 3,  // The same, the codes compressed by zstd.
  kInt8 = 4,        // A scale per token and head.
  kK8v4 = 5,        // Keys as kInt8; values in 4 bits, a scale and a minimum per 32 of a token.
  kKivi4 = 6,       // Keys in 4 bits, a scale and a minimum per channel; values as kK8v4.
  kKivi2 = 7,       // The same in 2 bits.
  kAnsFine = 8,    // Keys around their channel's mean in steps per head, values in steps per token;
  kAnsMedium = 9,  // entropy coded by static tables. Twice the step of the one before,
  kAnsCoarse = 10,  // and again.
};
// "raw", "planes", "planes+zstd", "int8", "k8v4", "kivi4", "kivi2", "ans-fine",
// "ans-medium", "ans-coarse"; for other numbers "unknown".
std::string_view ToString(CodecId id);
// In the order of their numbers.
std::span<const CodecId> AllCodecs();
// INVALID_ARGUMENT that lists the names.
absl::StatusOr<CodecId> ParseCodecId(std::string_view name);
// INVALID_ARGUMENT naming both where the codec does not take KV of this dtype: of int8, which is
// quantized already, only raw copies are made.
absl::Status CheckTakes(CodecId id, KvDtype dtype);
// Whether blocks come back bit by bit.
constexpr bool IsLossless(CodecId id) {
  return id == CodecId::kRaw || id == CodecId::kPlanes || id == CodecId::kPlanesZstd;
}

}  // namespace penstock::kvstore
