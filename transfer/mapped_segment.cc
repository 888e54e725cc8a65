// SPDX-License-Identifier: Apache-2.0
#include "transfer/mapped_segment.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace penstock::transfer {

absl::StatusOr<MappedSegment> MappedSegment::Map(int fd, std::uint64_t bytes) {
  if (fd < 0) return absl::InvalidArgumentError("a segment without a descriptor");
  const int seals = ::fcntl(fd, F_GET_SEALS);  // Fails for all but memfds.
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError("a segment that is not sealed against shrinking");
  }
  struct statfs system {};  // Of huge pages there may be too few when one is touched.
  if (::fstatfs(fd, &system) != 0 || system.f_type != TMPFS_MAGIC) {
    return absl::InvalidArgumentError("a segment that is not plain memory");
  }
  // After the seals were seen: from then on it only grows.
  struct stat info {};
  if (::fstat(fd, &info) != 0 || bytes == 0 || info.st_size < 0 ||
      static_cast<std::uint64_t>(info.st_size) < bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a segment of ", info.st_size, " bytes, said to have ", bytes));
  }
  void* const data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map a segment of ", bytes, " bytes: ", std::strerror(errno)));
  }
  MappedSegment mapped;
  mapped.data_ = static_cast<const std::byte*>(data);
  mapped.size_ = bytes;
  return mapped;
}

MappedSegment::MappedSegment(MappedSegment&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedSegment& MappedSegment::operator=(MappedSegment&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedSegment::~MappedSegment() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace penstock::transfer
