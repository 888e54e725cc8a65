// SPDX-License-Identifier: Apache-2.0
// Servers for tests of the remote tier: a real redis-server, and one that answers what the test
// wants.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/epoll_loop.h"
#include "base/unique_fd.h"

namespace penstock::kvstore {

// A new folder for temporary files, which goes with this.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A redis-server as a process of its own, which ends with this.
class RealRedis {
 public:
  // Whether there is such a program; without, tests skip.
  static bool Exists();

  // On a Unix socket in the folder.
  explicit RealRedis(const std::string& folder, std::vector<std::string> more = {});
  // On a port of 127.0.0.1 that was free a moment ago.
  static std::unique_ptr<RealRedis> OnTcp(const std::string& folder);
  ~RealRedis();

  const std::string& address() const { return address_; }
  // Empty once it listens; else what it said instead.
  const std::string& trouble() const { return trouble_; }
  void Stop();  // It does nothing any more, and its sockets stay.
  void Continue();

 private:
  RealRedis() = default;
  void Start(const std::string& folder, std::vector<std::string> arguments);

  pid_t pid_ = -1;
  UniqueFd output_;
  std::string address_, trouble_;
};

// Listens on a Unix socket and says what `answer` makes of what it hears, piece by piece as it
// comes; nothing: it closes the connection.
class FakeRedis {
 public:
  using Answer = std::function<std::optional<std::string>(std::string_view heard)>;
  FakeRedis(const std::string& folder, Answer answer);
  ~FakeRedis();
  const std::string& address() const { return address_; }
  int connections() const;

 private:
  struct State;
  std::string address_;
  std::unique_ptr<EpollLoop> loop_;
  std::unique_ptr<State> state_;
};

}  // namespace penstock::kvstore
