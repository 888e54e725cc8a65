// SPDX-License-Identifier: Apache-2.0
// What tests and benchmarks of the host tier share: memory as a store node would have it, copies by
// number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

#include "kvstore/eviction_testing.h"
#include "kvstore/host/host_tier.h"

namespace penstock::kvstore {

// Zeroed and aligned.
class TestMemory {
 public:
  // For a room of so many pages, and their generations.
  explicit TestMemory(std::size_t pages) {
    const std::size_t generations = pages * sizeof(std::uint64_t);
    const std::size_t kPage = HostTier::kPageBytes;
    bytes_ = (pages + (generations + kPage - 1) / kPage) * kPage;
    memory_.reset(new (std::align_val_t(HostTier::kPageBytes)) std::byte[bytes_]());
  }
  std::span<std::byte> get() { return {memory_.get(), bytes_}; }

 private:
  struct Delete {
    void operator()(std::byte* memory) const {
      ::operator delete[](memory, std::align_val_t(HostTier::kPageBytes));
    }
  };
  std::size_t bytes_ = 0;
  std::unique_ptr<std::byte, Delete> memory_;
};

inline HostTier::Copy TestCopy(std::uint64_t number, std::uint32_t bytes,
                               std::uint32_t tenant = 0) {
  return {.key = TestKey(number), .bytes = bytes, .tenant = tenant};
}

}  // namespace penstock::kvstore
