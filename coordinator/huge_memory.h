// SPDX-License-Identifier: Apache-2.0
// Memory of large tables in pages of 2 MiB where the kernel has them: who reads at random would wait
// for page tables as long as for memory.
#pragma once

#include <cstddef>
#include <memory>

namespace penstock::coordinator {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

// Zeroes, from an address that such a page begins at; CHECKs that there are any. `bytes` is a
// multiple of kHugePageBytes.
void* MapHuge(std::size_t bytes);
void UnmapHuge(void* memory, std::size_t bytes);

// For std::vector: what fills such pages but for a sixteenth is in them.
template <typename T>
struct HugeAllocator {
  using value_type = T;
  HugeAllocator() = default;
  template <typename U>
  HugeAllocator(const HugeAllocator<U>&) {}  // NOLINT: allocators convert.

  static std::size_t MappedBytes(std::size_t n) {
    const std::size_t bytes = n * sizeof(T);
    const std::size_t rounded = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    return rounded - bytes <= bytes / 16 ? rounded : 0;
  }
  T* allocate(std::size_t n) {
    const std::size_t mapped = MappedBytes(n);
    return mapped == 0 ? std::allocator<T>().allocate(n) : static_cast<T*>(MapHuge(mapped));
  }
  void deallocate(T* memory, std::size_t n) {
    const std::size_t mapped = MappedBytes(n);
    if (mapped == 0) return std::allocator<T>().deallocate(memory, n);
    UnmapHuge(memory, mapped);
  }
  template <typename U>
  bool operator==(const HugeAllocator<U>&) const {
    return true;
  }
};

}  // namespace penstock::coordinator
