// SPDX-License-Identifier: Apache-2.0
// The disk of a real store node: segments are files in one directory, read and written around the
// page cache (O_DIRECT) through io_uring, so that nothing waits for the disk but its answers.
//
// The directory is this process's alone while it lives: a second one is refused. Files that are no
// segments are left alone.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "kvstore/disk/disk_io.h"

namespace penstock::kvstore {

struct UringDiskOptions {
  std::string directory;      // Made where it is not there; its parent is.
  unsigned operations = 256;  // At once; others wait.
};

// On the loop's thread, as all calls and the end; `loop` outlives it. The end waits for what the
// kernel still does. Where the file system has no O_DIRECT (tmpfs), the page cache is in between.
// FAILED_PRECONDITION: another process has the directory. NOT_FOUND, PERMISSION_DENIED: it cannot be
// used. UNIMPLEMENTED: this kernel, or what confines this process, has no io_uring.
absl::StatusOr<std::unique_ptr<DiskIo>> OpenUringDisk(EpollLoop& loop,
                                                      const UringDiskOptions& options);

}  // namespace penstock::kvstore
