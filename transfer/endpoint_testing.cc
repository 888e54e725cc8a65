// SPDX-License-Identifier: Apache-2.0
#include "transfer/endpoint_testing.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/check.h"

namespace penstock::transfer {

Endpoint::Options PeerOptions(const std::string& name, const std::string& folder,
                              const std::string& kinds, const std::string& host) {
  Endpoint::Options options;
  options.self = {name, 1};
  options.identity = {{"model", "test"}};
  options.kinds.clear();
  if (kinds.find("shm") != std::string::npos) options.kinds.push_back(Kind::kShm);
  if (kinds.find("nccl") != std::string::npos) options.kinds.push_back(Kind::kNccl);
  if (kinds.find("ucx") != std::string::npos) options.kinds.push_back(Kind::kUcx);
  if (kinds.find("tcp") != std::string::npos) options.kinds.push_back(Kind::kTcp);
  options.socket_folder = folder;
  options.tcp_host = host;
  return options;
}

TemporaryFolder::TemporaryFolder() {
  path_ = (std::filesystem::temp_directory_path() / "penstock-XXXXXX").string();
  CHECK(::mkdtemp(path_.data()) != nullptr);
}
TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

PeerProcess::PeerProcess(const std::string& folder_of_programs, const std::string& name,
                         const std::string& socket_folder, const std::string& kinds,
                         std::size_t bytes)
    : name_(name) {
  std::array<int, 2> to{}, from{};
  CHECK_EQ(::pipe2(to.data(), O_CLOEXEC), 0);
  CHECK_EQ(::pipe2(from.data(), O_CLOEXEC), 0);
  const UniqueFd their_input(to[0]), output(from[0]);
  UniqueFd their_output(from[1]);
  input_.Reset(to[1]);
  posix_spawn_file_actions_t actions;
  CHECK_EQ(::posix_spawn_file_actions_init(&actions), 0);
  CHECK_EQ(::posix_spawn_file_actions_adddup2(&actions, their_input.get(), STDIN_FILENO), 0);
  CHECK_EQ(::posix_spawn_file_actions_adddup2(&actions, their_output.get(), STDOUT_FILENO), 0);
  std::vector<std::string> words = {folder_of_programs + "/endpoint_peer", name, socket_folder,
                                    kinds, std::to_string(bytes)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  CHECK_EQ(::posix_spawn(&pid_, words[0].c_str(), &actions, nullptr, arguments.data(), environ), 0);
  ::posix_spawn_file_actions_destroy(&actions);
  // Its one line.
  their_output.Reset();
  std::string line;
  for (char c; ::read(output.get(), &c, 1) == 1 && c != '\n';) line += c;
  const std::size_t space = line.rfind(' ');
  CHECK(space != std::string::npos);
  address_ = line.substr(0, space);
  std::uint32_t segment = 0;
  std::from_chars(line.data() + space + 1, line.data() + line.size(), segment);
  segment_ = SegmentId{segment};
}

PeerProcess::~PeerProcess() { Kill(); }

void PeerProcess::Kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  (void)::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void PeerProcess::Stop() {
  CHECK_EQ(::kill(pid_, SIGSTOP), 0);
  CHECK_EQ(::waitpid(pid_, nullptr, WUNTRACED), pid_);  // It may run on for a moment.
}

std::string FolderOfThisProgram() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
}

}  // namespace penstock::transfer
