// SPDX-License-Identifier: Apache-2.0
// A peer's memory, mapped read-only from the descriptor that it sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace penstock::transfer {

class MappedSegment {
 public:
  // INVALID_ARGUMENT unless `fd` is a memfd of at least `bytes` (1 or more) that is sealed against
  // shrinking: only then can a load never fault, whatever the peer does. RESOURCE_EXHAUSTED when
  // the system refuses. The descriptor stays the caller's.
  static absl::StatusOr<MappedSegment> Map(int fd, std::uint64_t bytes);

  MappedSegment() = default;
  MappedSegment(MappedSegment&& other) noexcept;
  MappedSegment& operator=(MappedSegment&& other) noexcept;
  ~MappedSegment();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace penstock::transfer
