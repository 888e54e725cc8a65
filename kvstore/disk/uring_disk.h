// SPDX-License-Identifier: Apache-2.0
// The disk of a real store node: segments are files in one directory, read and written around the
// page cache (O_DIRECT) through io_uring, so that nothing waits for the disk but its answers.
//
// The directory is this process's alone while it lives: a second one is refused. Files that are no
// segments are left alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "kvstore/disk/disk_io.h"

namespace penstock::kvstore {

class UringDisk final : public DiskIo {
 public:
  struct Options {
    std::string directory;      // Made where it is not there; its parent is.
    unsigned operations = 256;  // At once; others wait.
  };

  // On the loop's thread, as all calls and the end; `loop` outlives it. FAILED_PRECONDITION: another
  // process has the directory. NOT_FOUND, PERMISSION_DENIED: the directory cannot be used.
  // UNIMPLEMENTED: this kernel, or what confines this process, has no io_uring.
  static absl::StatusOr<std::unique_ptr<UringDisk>> Open(EpollLoop& loop, const Options& options);
  // Waits for what the kernel still does.
  ~UringDisk() override;

  // False where the file system has no O_DIRECT (tmpfs): the page cache is in between then.
  bool direct() const;

  absl::StatusOr<std::vector<File>> List() override;
  absl::Status ReadNow(std::uint64_t segment, std::uint64_t offset,
                       std::span<std::byte> to) override;
  absl::Status SyncNow(std::uint64_t segment) override;
  absl::Status Create(std::uint64_t segment, std::uint64_t bytes) override;
  void Remove(std::uint64_t segment) override;
  void Write(std::uint64_t segment, std::uint64_t offset, std::vector<DiskBytes> parts,
             Done done) override;
  void Read(std::uint64_t segment, std::uint64_t offset, DiskBytes to, Done done) override;
  void Sync(std::uint64_t segment, Done done) override;

 private:
  class Impl;
  explicit UringDisk(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::kvstore
