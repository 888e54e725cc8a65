// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/redis_testing.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "base/check.h"

namespace penstock::kvstore {
namespace {

constexpr const char* kProgram = "/usr/bin/redis-server";

int FreePort() {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at = {};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof(at);
  CHECK_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), bytes), 0);
  CHECK_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &bytes), 0);
  return ntohs(at.sin_port);
}

}  // namespace

TestFolder::TestFolder() : path_(std::filesystem::temp_directory_path() / "penstock-redis-XXXXXX") {
  CHECK(::mkdtemp(path_.data()) != nullptr);
}
TestFolder::~TestFolder() { std::filesystem::remove_all(path_); }

bool RealRedis::Exists() { return ::access(kProgram, X_OK) == 0; }

RealRedis::RealRedis(const std::string& folder, std::vector<std::string> more) {
  const std::string socket = folder + "/redis";
  address_ = "unix:" + socket;
  std::vector<std::string> arguments = {"--port", "0", "--unixsocket", socket};
  arguments.insert(arguments.end(), more.begin(), more.end());
  Start(folder, std::move(arguments));
}

std::unique_ptr<RealRedis> RealRedis::OnTcp(const std::string& folder) {
  // Somebody else may take the port first.
  std::unique_ptr<RealRedis> redis;
  for (int tries = 0; tries < 5; ++tries) {
    const std::string port = std::to_string(FreePort());
    redis.reset(new RealRedis());
    redis->address_ = "localhost:" + port;
    redis->Start(folder, {"--port", port, "--bind", "127.0.0.1"});
    if (redis->trouble().empty()) break;
  }
  return redis;
}

void RealRedis::Start(const std::string& folder, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), kProgram);
  for (const char* more : {"--save", "", "--appendonly", "no", "--dir"}) arguments.push_back(more);
  arguments.push_back(folder);
  std::vector<char*> raw;
  for (std::string& argument : arguments) raw.push_back(argument.data());
  raw.push_back(nullptr);
  std::array<int, 2> pipe;
  CHECK_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  pid_ = ::fork();
  CHECK(pid_ >= 0);
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(pipe[1], 1);
    ::execv(kProgram, raw.data());
    ::_exit(127);
  }
  output_.Reset(pipe[0]);
  ::close(pipe[1]);
  std::string said;
  while (said.find("eady to accept connections") == std::string::npos) {
    std::array<char, 4096> piece;
    const ssize_t got = ::read(output_.get(), piece.data(), piece.size());
    if (got <= 0) {
      trouble_ = said.empty() ? "it said nothing" : said;
      return;
    }
    said.append(piece.data(), static_cast<std::size_t>(got));
  }
}

RealRedis::~RealRedis() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void RealRedis::Stop() {
  ::kill(pid_, SIGSTOP);
  ::waitpid(pid_, nullptr, WUNTRACED);
}
void RealRedis::Continue() { ::kill(pid_, SIGCONT); }

struct FakeRedis::State {
  Answer answer;
  UniqueFd listening;
  std::map<int, UniqueFd> connections;
  std::atomic<int> connected = 0;

  void Hear(EpollLoop& loop, int fd) {
    std::array<char, 1 << 16> piece;
    const ssize_t got = ::recv(fd, piece.data(), piece.size(), 0);
    if (got < 0 && errno == EAGAIN) return;
    std::optional<std::string> said;
    if (got > 0) said = answer(std::string_view(piece.data(), static_cast<std::size_t>(got)));
    // What the socket does not take is not sent.
    if (said && !said->empty()) (void)!::send(fd, said->data(), said->size(), MSG_NOSIGNAL);
    if (said) return;
    loop.Unwatch(fd);
    connections.erase(fd);
  }
};

FakeRedis::FakeRedis(const std::string& folder, Answer answer)
    : address_("unix:" + folder + "/fake"),
      loop_(*EpollLoop::Make("fake")),
      state_(std::make_unique<State>()) {
  state_->answer = std::move(answer);
  state_->listening.Reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_un at = {};
  at.sun_family = AF_UNIX;
  const std::string path = address_.substr(5);
  CHECK(path.size() < sizeof(at.sun_path));
  std::memcpy(at.sun_path, path.data(), path.size());
  const int fd = state_->listening.get();
  CHECK_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
  CHECK_EQ(::listen(fd, 16), 0);
  EpollLoop& loop = *loop_;
  State& state = *state_;
  loop.Run([&loop, &state, fd] {
    CHECK(loop.Watch(fd, EPOLLIN,
                     [&loop, &state, fd](std::uint32_t) {
                       UniqueFd peer(::accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
                       if (!peer) return;
                       ++state.connected;
                       const int number = peer.get();
                       state.connections.emplace(number, std::move(peer));
                       CHECK(loop.Watch(number, EPOLLIN,
                                        [&loop, &state, number](std::uint32_t) {
                                          state.Hear(loop, number);
                                        })
                                 .ok());
                     })
              .ok());
  });
}
FakeRedis::~FakeRedis() { loop_.reset(); }
int FakeRedis::connections() const { return state_->connected; }

}  // namespace penstock::kvstore
