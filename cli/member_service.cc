// SPDX-License-Identifier: Apache-2.0
#include "cli/member_service.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/time.h"

namespace penstock::cli {
namespace {

constexpr std::string_view kStoreRole = "kvstore";

absl::StatusOr<std::vector<transfer::Kind>> ParseKinds(std::string_view text, bool gpus) {
  std::vector<transfer::Kind> kinds;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    if (word == "shm") {
      kinds.push_back(transfer::Kind::kShm);
    } else if (word == "tcp") {
      kinds.push_back(transfer::Kind::kTcp);
    } else if (word == "ucx") {
      kinds.push_back(transfer::Kind::kUcx);
    } else if (word == "nccl" && gpus) {
      kinds.push_back(transfer::Kind::kNccl);
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--transfer must be a list of ",
                                                     gpus ? "nccl, " : "",
                                                     "shm, ucx and tcp, got '", ToAbsl(word), "'"));
    }
    begin = end + 1;
  }
  // Stores are reached by another, and peers where NCCL does not work.
  if (kinds == std::vector{transfer::Kind::kNccl}) {
    return absl::InvalidArgumentError("--transfer has nccl alone: name shm, ucx or tcp, too");
  }
  return kinds;
}

}  // namespace

void AddMemberFlags(CLI::App& command, const char* role, MemberFlags& flags) {
  command
      .add_option("--coordinator", flags.coordinator,
                  "Address of the coordinator, HOST:PORT; of several, with commas between them, "
                  "the one that leads is found")
      ->required();
  command.add_option("--name", flags.name, "What others call this process; unique")
      ->default_str(absl::StrCat(role, "-PID"));
  command
      .add_option("--host", flags.host,
                  "Address to listen on; nothing listens beyond loopback unless this says so")
      ->capture_default_str();
  command.add_option("--port", flags.port, "For gRPC; 0 finds a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  const bool gpus = role != kStoreRole;
  flags.transfer = gpus ? "nccl,shm,tcp" : "shm,tcp";
  command
      .add_option("--transfer", flags.transfer,
                  gpus ? "How KV may move, best first: nccl (between GPUs), shm, ucx, tcp"
                       : "How KV may move, best first: shm, ucx, tcp")
      ->capture_default_str();
  command
      .add_option("--socket-folder", flags.socket_folder,
                  "For shm: where the process's Unix sockets are made, for this user alone")
      ->default_str("the folder for temporary files");
  command.add_option("--secret-file", flags.secret_file,
                     "File with the cluster's secret, the same for all its processes: then store "
                     "nodes take frames from these alone. For this user alone; 16 to 4,096 bytes");
  command.add_option("--ready-file", flags.ready_file,
                     "Written once the process serves: its addresses and process id, as JSON");
  AddTraceFlags(command, flags.trace);
  AddMetricsFlags(command, flags.metrics);
}

absl::StatusOr<transfer::Endpoint::Options> MakeEndpoint(const MemberFlags& flags,
                                                         std::string_view role) {
  transfer::Endpoint::Options options;
  options.self.name = flags.name.empty() ? absl::StrCat(ToAbsl(role), "-", ::getpid()) : flags.name;
  options.self.epoch = NewEpoch();
  ASSIGN_OR_RETURN(options.kinds, ParseKinds(flags.transfer, role != kStoreRole));
  options.socket_folder = flags.socket_folder.empty()
                              ? std::filesystem::temp_directory_path().string()
                              : flags.socket_folder;
  options.tcp_host = flags.host;
  return options;
}

absl::StatusOr<std::string> ReadPrivateFile(std::string_view flag, const std::string& file,
                                            std::int64_t bytes_min) {
  struct stat status = {};
  if (::stat(file.c_str(), &status) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(flag), " '", file, "': ", std::strerror(errno)));
  }
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(flag), " '", file, "' can be read by others (mode ",
                     absl::StrFormat("%o", status.st_mode & 0777), "): chmod 600 it"));
  }
  ASSIGN_OR_RETURN(std::string text, ReadFile(file, 4096));
  RETURN_IF_ERROR(CheckRange(absl::StrCat("bytes of ", ToAbsl(flag)),
                             static_cast<std::int64_t>(text.size()), bytes_min, 4096));
  return text;
}

absl::StatusOr<std::vector<std::byte>> ReadSecret(const std::string& file) {
  if (file.empty()) return std::vector<std::byte>();
  ASSIGN_OR_RETURN(const std::string text, ReadPrivateFile("--secret-file", file, 16));
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  return std::vector<std::byte>(bytes.begin(), bytes.end());
}

}  // namespace penstock::cli
