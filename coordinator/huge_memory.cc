// SPDX-License-Identifier: Apache-2.0
#include "coordinator/huge_memory.h"

#include <sys/mman.h>

#include <cstdint>

#include "base/check.h"

namespace penstock::coordinator {

void* MapHuge(std::size_t bytes) {
  // One page more, to begin where one does; what is left over is given back.
  const std::size_t all = bytes + kHugePageBytes;
  void* const mapped =
      ::mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(mapped != MAP_FAILED);
  auto* const begin = static_cast<std::byte*>(mapped);
  const std::size_t over = reinterpret_cast<std::uintptr_t>(begin) % kHugePageBytes;
  const std::size_t head = over == 0 ? 0 : kHugePageBytes - over;
  if (head > 0) ::munmap(begin, head);
  if (head < kHugePageBytes) ::munmap(begin + head + bytes, kHugePageBytes - head);
  (void)::madvise(begin + head, bytes, MADV_HUGEPAGE);  // Small ones do where there are none.
  return begin + head;
}

void UnmapHuge(void* memory, std::size_t bytes) { ::munmap(memory, bytes); }

}  // namespace penstock::coordinator
