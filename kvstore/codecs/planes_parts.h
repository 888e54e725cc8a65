// SPDX-License-Identifier: Apache-2.0
// What the codecs planes and planes+zstd are made of, for who makes or reads their layers
// (planes_codec.cc, on_device.cc). Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/kv_split.h"
#include "kvstore/codecs/codecs.h"

namespace penstock::kvstore {

enum PlaneIndex : std::size_t { kRest, kCodes, kFirsts, kEscapes, kHalves };
inline constexpr std::int32_t kPlanesPlanes = 5;
inline constexpr std::string_view kPlaneNames[kPlanesPlanes] = {"rest", "codes", "firsts",
                                                                "escapes", "halves"};

// Of a layer.
struct PlaneSizes {
  explicit PlaneSizes(const BlockShape& shape);
  std::size_t values, code_bytes, firsts_max, half_bytes;
};
inline std::size_t ValuesOf(const BlockShape& shape, const KvUnit& unit) {
  return static_cast<std::size_t>(shape.block_tokens) * static_cast<std::size_t>(unit.dim);
}

// Writes `bytes` bytes or fewer, and says how many.
std::size_t CompressCodes(const std::byte* from, std::size_t bytes, CodecScratch& scratch,
                          std::byte* to);
// The plane of codes, which of planes+zstd may be compressed: [code_bytes], there or in scratch.
// INVALID_ARGUMENT with both numbers: it is neither.
absl::StatusOr<const std::byte*> CodesOf(const Codec& codec, std::span<const std::byte> packed,
                                         std::size_t code_bytes, CodecScratch& scratch);
// Whether a layer is as it was. INVALID_ARGUMENT: lengths of its planes, but for those that depend
// on what is in it, are none of the codec's.
absl::StatusOr<bool> IsRawLayer(const Codec& codec, const BlockShape& shape,
                                std::span<const std::uint32_t> plane_bytes);

// The firsts and escapes of a layer, which its units take one after another. INVALID_ARGUMENT, naming
// plane and numbers, where there are too few, or some are left.
class UnitParts {
 public:
  UnitParts(const Codec& codec, std::span<const std::byte> firsts,
            std::span<const std::byte> escapes)
      : codec_(codec),
        firsts_bytes_(firsts.size()),
        escapes_bytes_(escapes.size()),
        firsts_(firsts),
        escapes_(escapes) {}
  // Of each unit first the one, then, from escapes() on, the other.
  absl::StatusOr<std::span<const std::byte>> NextFirsts(std::int32_t dim);
  std::span<const std::byte> escapes() const { return escapes_; }
  absl::Status TakeEscapes(std::size_t count);
  absl::Status CheckAllRead() const;

 private:
  absl::Status TooShort(PlaneIndex plane, std::size_t bytes) const;

  const Codec& codec_;
  const std::size_t firsts_bytes_, escapes_bytes_;
  std::span<const std::byte> firsts_, escapes_;
  std::int32_t unit_ = 0;
};

}  // namespace penstock::kvstore
