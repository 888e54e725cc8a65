// SPDX-License-Identifier: Apache-2.0
// A folder of this run, for this user alone, in which programs put a file once they are ready.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/unique_fd.h"

namespace penstock::launch {

// On the loop's thread, which outlives it.
class ReadyFolder {
 public:
  // `on_file` is called with the path of each file that is moved there: who writes elsewhere in the
  // folder and renames is seen whole. UNAVAILABLE when the folder cannot be made.
  static absl::StatusOr<std::unique_ptr<ReadyFolder>> Make(
      EpollLoop& loop, std::function<void(const std::string& path)> on_file);
  ~ReadyFolder();  // Removes it, with all that is in it.

  const std::string& path() const { return path_; }

 private:
  ReadyFolder(EpollLoop& loop, std::function<void(const std::string&)> on_file)
      : loop_(loop), on_file_(std::move(on_file)) {}
  void OnReadable();

  EpollLoop& loop_;
  const std::function<void(const std::string&)> on_file_;
  std::string path_;
  UniqueFd inotify_;
};

}  // namespace penstock::launch
