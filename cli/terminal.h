// SPDX-License-Identifier: Apache-2.0
// What the commands know about who is watching: terminals, colours, a line of progress, Ctrl-C.
#pragma once

#include <signal.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace penstock::cli {

bool StdinIsTerminal();
bool StdoutIsTerminal();
bool StderrIsTerminal();

// Escape sequences where stderr or stdout is a terminal that wants colours (NO_COLOR, TERM=dumb are
// heeded), else nothing.
struct Style {
  std::string_view bold, dim, red, green, reset;
};
const Style& StdoutStyle();
const Style& StderrStyle();

// One line on stderr that is written over and over, and erased at the end. Silent where stderr is
// no terminal.
class ProgressLine {
 public:
  ~ProgressLine() { Clear(); }
  // "text  42 %"; drawn only when the figure changed.
  void Update(std::string_view text, std::size_t done, std::size_t total);
  void Clear();

 private:
  int percent_ = -1;
};

// Turns SIGINT from something that ends the process into something that can be asked for. Made
// before any thread is, so that all of them leave the signal alone.
class InterruptWatch {
 public:
  InterruptWatch();
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

  // Whether Ctrl-C was pressed since the last call.
  bool Requested();
  // Becomes readable when Ctrl-C is pressed; Requested() then says so and resets it.
  int fd() const { return fd_; }

 private:
  sigset_t before_;
  int fd_ = -1;
};

// Writes all of `text` to stdout at once. False when nobody reads it any more.
bool WriteStdout(std::string_view text);

// "98.4 MB"
std::string FormatBytes(std::size_t bytes);

}  // namespace penstock::cli
