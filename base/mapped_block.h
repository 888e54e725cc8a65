// SPDX-License-Identifier: Apache-2.0
// A block that lies in memory of another process, which this one has mapped: read where it is,
// never written. Its owner promises for a time that it stays; who was stopped for longer may read
// other bytes in its place. So who has read it asks Changed() before anything made from it leaves.
//
// Destroying it lets go of the block. Any thread.
#pragma once

#include <cstddef>
#include <span>

namespace penstock {

class MappedBlock {
 public:
  static constexpr std::size_t kPageBytes = 4096;

  virtual ~MappedBlock() = default;
  // All of the mapping, aligned to kPageBytes; loads from it never fault as long as this lives.
  virtual std::span<const std::byte> memory() const = 0;
  // Of the block in there, a multiple of kPageBytes.
  virtual std::size_t offset() const = 0;
  // Whether the bytes may be others than they were when it was made, or may soon be, since nobody
  // keeps them any more. For after all reads: none of them is ordered behind this. Once true, true
  // for good.
  virtual bool Changed() const = 0;

  const std::byte* bytes() const { return memory().data() + offset(); }
};

}  // namespace penstock
