// SPDX-License-Identifier: Apache-2.0
// A second process with an endpoint, for tests and benchmarks.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <string>

#include "base/unique_fd.h"
#include "transfer/endpoint.h"

namespace penstock::transfer {

// What the peer's segment holds: no two pages alike, no period that copies could hide behind.
inline std::byte PeerByte(std::size_t i) {
  return static_cast<std::byte>((i * 0x9e3779b97f4a7c15ull) >> 56);
}

Endpoint::Options PeerOptions(const std::string& name, const std::string& folder,
                              const std::string& kinds, const std::string& host = "127.0.0.1");

// A new folder below the system's for temporary files, removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// endpoint_peer, which lies in `folder_of_programs`. Killed when destroyed.
class PeerProcess {
 public:
  PeerProcess(const std::string& folder_of_programs, const std::string& name,
              const std::string& socket_folder, const std::string& kinds, std::size_t bytes);
  ~PeerProcess();

  Peer peer() const { return {name_, 1}; }
  const std::string& address() const { return address_; }
  SegmentId segment() const { return segment_; }
  void Kill();  // SIGKILL, and waits for its end.
  void Stop();  // SIGSTOP, and waits until it has stopped.

 private:
  const std::string name_;
  pid_t pid_ = -1;
  UniqueFd input_;  // Its end is that of the peer.
  std::string address_;
  SegmentId segment_{};
};

// Where the running program lies.
std::string FolderOfThisProgram();

}  // namespace penstock::transfer
