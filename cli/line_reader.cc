// SPDX-License-Identifier: Apache-2.0
#include "cli/line_reader.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace penstock::cli {
namespace {

constexpr std::size_t kHistoryMax = 1000;

// Takes keys as they are pressed, and signals as keys, while it lives.
class RawMode {
 public:
  RawMode() {
    if (::tcgetattr(STDIN_FILENO, &before_) != 0) return;
    termios raw = before_;
    raw.c_iflag &= ~static_cast<tcflag_t>(ICRNL | IXON | ISTRIP | INPCK | BRKINT);
    raw.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON | IEXTEN | ISIG);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    active_ = ::tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
  }
  ~RawMode() {
    if (active_) (void)::tcsetattr(STDIN_FILENO, TCSADRAIN, &before_);
  }
  RawMode(const RawMode&) = delete;
  RawMode& operator=(const RawMode&) = delete;

 private:
  termios before_{};
  bool active_ = false;
};

std::size_t TerminalColumns() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace

LineReader::LineReader(InterruptWatch& interrupts)
    : interrupts_(interrupts), interactive_(StdinIsTerminal() && StdoutIsTerminal()) {}

bool LineReader::Fill() {
  for (;;) {
    pollfd waits[2] = {{STDIN_FILENO, POLLIN, 0}, {interrupts_.fd(), POLLIN, 0}};
    if (::poll(waits, 2, -1) < 0 && errno != EINTR) return false;
    if (interrupts_.Requested()) {
      interrupted_ = true;
      return false;
    }
    if ((waits[0].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
    char bytes[4096];
    const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof(bytes));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    buffer_.append(bytes, static_cast<std::size_t>(count));
    return true;
  }
}

LineReader::Result LineReader::Read(std::string_view prompt, std::string* line) {
  line->clear();
  interrupted_ = false;
  return interactive_ ? ReadEdited(prompt, line) : ReadPlain(line);
}

LineReader::Result LineReader::ReadPlain(std::string* line) {
  bool too_long = false;
  for (;;) {
    const std::size_t end = buffer_.find('\n');
    line->append(buffer_, 0, end);
    buffer_.erase(0, end == std::string::npos ? end : end + 1);
    if (line->size() > kLineBytesMax) {
      too_long = true;
      line->clear();
    }
    if (end != std::string::npos) break;
    if (Fill()) continue;
    if (interrupted_) return Result::kInterrupted;
    if (line->empty() && !too_long) return Result::kEnd;
    break;  // The last line has no end.
  }
  return too_long ? Result::kTooLong : Result::kLine;
}

LineReader::Result LineReader::ReadEdited(std::string_view prompt, std::string* line) {
  const RawMode raw;
  LineEditor editor(history_);
  WriteStdout(editor.Draw(prompt, TerminalColumns()));
  for (;;) {
    while (!buffer_.empty()) {
      const char byte = buffer_.front();
      buffer_.erase(0, 1);
      const LineEditor::Event event = editor.Take(byte);
      if (event == LineEditor::Event::kMore) continue;
      WriteStdout(editor.Draw(prompt, TerminalColumns()) + "\r\n");
      if (event == LineEditor::Event::kInterrupted) return Result::kInterrupted;
      if (event == LineEditor::Event::kEnd) return Result::kEnd;
      *line = editor.line();
      if (line->size() > kLineBytesMax) return Result::kTooLong;
      if (!line->empty() && (history_.empty() || history_.back() != *line)) {
        history_.push_back(*line);
        if (history_.size() > kHistoryMax) history_.erase(history_.begin());
      }
      return Result::kLine;
    }
    WriteStdout(editor.Draw(prompt, TerminalColumns()));
    if (!Fill()) return interrupted_ ? Result::kInterrupted : Result::kEnd;
  }
}

}  // namespace penstock::cli
