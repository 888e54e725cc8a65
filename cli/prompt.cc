// SPDX-License-Identifier: Apache-2.0
#include "cli/prompt.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status.h"
#include "cli/terminal.h"
#include "model/utf8.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kTextBytesMax = std::size_t{64} << 20;

absl::StatusOr<std::string> ReadStdin() {
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot read standard input: ", std::strerror(errno)));
    }
    if (count == 0) return text;
    text.append(buffer, static_cast<std::size_t>(count));
    if (text.size() > kTextBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("standard input has more than ", kTextBytesMax, " bytes"));
    }
  }
}

}  // namespace

absl::StatusOr<std::string> ReadText(const std::optional<std::string>& argument,
                                     const std::optional<std::string>& file,
                                     const std::string& what) {
  if (argument.has_value() && file.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is given twice, as an argument and as a file; give one of them"));
  }
  if (argument.has_value()) return *argument;
  if (file.has_value() && *file != "-") return ReadFile(*file, kTextBytesMax);
  if (file.has_value() || !StdinIsTerminal()) return ReadStdin();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is missing; give it as an argument, as a file, or on standard input"));
}

absl::Status CheckPrompt(const std::string& text, const std::string& what) {
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(what, " is empty"));
  const std::size_t valid = model::ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s is not valid UTF-8: byte %d of %d is 0x%02x; convert it, for example with iconv", what,
      valid + 1, text.size(), static_cast<unsigned char>(text[valid])));
}

}  // namespace penstock::cli
