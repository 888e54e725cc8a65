// SPDX-License-Identifier: Apache-2.0
// The lines of penstock doctor, on standard output.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/terminal.h"

namespace penstock::cli {

class DoctorReport {
 public:
  template <typename... Parts>
  void Ok(const Parts&... parts) {
    Line(StdoutStyle().green, "ok", absl::StrCat(parts...));
  }
  template <typename... Parts>
  void Warning(const Parts&... parts) {
    Line(StdoutStyle().bold, "warning", absl::StrCat(parts...));
  }
  template <typename... Parts>
  void Fault(const Parts&... parts) {
    ++faults_;
    Line(StdoutStyle().red, "fault", absl::StrCat(parts...));
  }
  // A line that belongs to the one before.
  void More(absl::string_view text) { Line("", "", std::string(text)); }
  int faults() const { return faults_; }

 private:
  static void Line(std::string_view color, const char* verdict, const std::string& text) {
    WriteStdout(absl::StrFormat("%s%-8s%s %s\n", ToAbsl(color), verdict,
                                ToAbsl(StdoutStyle().reset), text));
  }
  int faults_ = 0;
};

}  // namespace penstock::cli
