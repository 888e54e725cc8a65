// SPDX-License-Identifier: Apache-2.0
#include "launch/ready_folder.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::launch {

absl::StatusOr<std::unique_ptr<ReadyFolder>> ReadyFolder::Make(
    EpollLoop& loop, std::function<void(const std::string& path)> on_file) {
  std::unique_ptr<ReadyFolder> folder(new ReadyFolder(loop, std::move(on_file)));
  std::error_code error;
  std::string path =
      absl::StrCat(std::filesystem::temp_directory_path(error).string(), "/penstock-XXXXXX");
  if (error || ::mkdtemp(path.data()) == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot make a folder ", path, ": ", std::strerror(errno)));
  }
  folder->path_ = path;
  folder->inotify_.Reset(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!folder->inotify_ ||
      ::inotify_add_watch(folder->inotify_.get(), path.c_str(), IN_MOVED_TO) < 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot watch the folder ", path, ": ", std::strerror(errno)));
  }
  const absl::Status watched =
      loop.Watch(folder->inotify_.get(), EPOLLIN,
                 [self = folder.get()](std::uint32_t) { self->OnReadable(); });
  if (!watched.ok()) {
    folder->inotify_.Reset();  // Nothing to unwatch.
    return watched;
  }
  return folder;
}

ReadyFolder::~ReadyFolder() {
  if (inotify_) loop_.Unwatch(inotify_.get());
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

void ReadyFolder::OnReadable() {
  alignas(inotify_event) char buffer[4096];
  std::vector<std::string> paths;
  const ssize_t got = ::read(inotify_.get(), buffer, sizeof(buffer));
  for (ssize_t at = 0; at < got;) {
    const auto* const event = reinterpret_cast<const inotify_event*>(buffer + at);
    if (event->len > 0) paths.push_back(absl::StrCat(path_, "/", event->name));
    at += static_cast<ssize_t>(sizeof(inotify_event)) + event->len;
  }
  for (const std::string& path : paths) on_file_(path);
}

}  // namespace penstock::launch
