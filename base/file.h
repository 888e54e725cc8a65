// SPDX-License-Identifier: Apache-2.0
// A whole file, mapped read-only. Model files are read through this: nothing is copied, pages come
// in when touched and can be given back once they are no longer needed.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace penstock {

// Movable, owned by one object; concurrent reads are fine. A file that shrinks while mapped raises
// SIGBUS in the reader, as with every mapping: model files are not to be edited in place.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT (no regular file, an empty one, a path with a
  // NUL in it), with the path.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Tells the kernel that `part` (inside bytes(), CHECKed) was the last use of its whole pages:
  // resident memory falls at once, a later read fetches them again.
  void Drop(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::string path_;
};

// The whole file as text; pipes are read to their end. As Open() for what cannot be read (an empty
// file is an empty text); RESOURCE_EXHAUSTED above bytes_max.
absl::StatusOr<std::string> ReadFile(const std::string& path, std::size_t bytes_max);

}  // namespace penstock
