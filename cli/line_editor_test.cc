// SPDX-License-Identifier: Apache-2.0
#include "cli/line_editor.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace penstock::cli {
namespace {

using Event = LineEditor::Event;
using testing::HasSubstr;

Event Type(LineEditor& editor, std::string_view keys) {
  Event event = Event::kMore;
  for (const char key : keys) {
    event = editor.Take(key);
    if (event != Event::kMore) break;
  }
  return event;
}

TEST(LineEditorTest, Keys) {
  const std::vector<std::string> history = {"first", "second"};
  struct Case {
    const char* name;
    std::string keys;
    Event event;
    std::string line;
  };
  const std::vector<Case> cases = {
      {"plain", "hello\r", Event::kDone, "hello"},
      {"backspace",
       "ab\x7f"
       "c\r",
       Event::kDone, "ac"},
      {"backspace takes a whole character", "a\xC3\xA9\x7f\r", Event::kDone, "a"},
      {"backspace at the start",
       "\x7f\x7f"
       "a\r",
       Event::kDone, "a"},
      {"arrows", "ac\x1b[Db\x1b[C\x1b[C!\r", Event::kDone, "abc!"},
      {"left over two bytes", "\xC3\xA9\x1b[Da\r", Event::kDone, "a\xC3\xA9"},
      {"home and end", "b\x1b[Ha\x1b[Fc\r", Event::kDone, "abc"},
      {"home and end with tilde", "b\x1b[1~a\x1b[4~c\r", Event::kDone, "abc"},
      {"delete", "abc\x1b[H\x1b[3~\r", Event::kDone, "bc"},
      {"delete at the end", "abc\x1b[3~\r", Event::kDone, "abc"},
      {"kill to the end", "abc\x1b[D\x0b\r", Event::kDone, "ab"},
      {"kill to the start", "abc\x1b[D\x15\r", Event::kDone, "c"},
      {"kill a word", "one two  \x17\r", Event::kDone, "one "},
      {"up", "\x1b[A\r", Event::kDone, "second"},
      {"up twice", "\x1b[A\x1b[A\x1b[A\r", Event::kDone, "first"},
      {"up and down keep what was typed", "new\x1b[A\x1b[B\x1b[B\r", Event::kDone, "new"},
      {"an older line can be edited", "\x1bOA!\r", Event::kDone, "second!"},
      {"interrupt", "abc\x03", Event::kInterrupted, "abc"},
      {"end on an empty line", "\x04", Event::kEnd, ""},
      {"end within a line deletes", "abc\x1b[H\x04\r", Event::kDone, "bc"},
      {"tab is a space", "a\tb\r", Event::kDone, "a b"},
      {"other control keys do nothing",
       "a\x01\x05\x07\x1c"
       "b\r",
       Event::kDone, "ab"},
      {"unknown sequences do nothing", "a\x1b[15~\x1b[1;5Db\r", Event::kDone, "ba"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    LineEditor editor(history);
    EXPECT_EQ(Type(editor, c.keys), c.event);
    EXPECT_EQ(editor.line(), c.line);
  }
}

TEST(LineEditorTest, DrawShowsTheCursorInItsColumn) {
  const std::vector<std::string> history;
  LineEditor editor(history);
  Type(editor, "h\xC3\xA9llo\x1b[D");
  EXPECT_EQ(editor.Draw("\x1b[1m> \x1b[0m", 80), "\r\x1b[1m> \x1b[0mh\xC3\xA9llo\x1b[K\r\x1b[7G");
}

TEST(LineEditorTest, DrawShowsWhatIsAroundTheCursorOfALongLine) {
  const std::vector<std::string> history;
  LineEditor editor(history);
  Type(editor, "0123456789abcdef");
  EXPECT_THAT(editor.Draw("> ", 10), HasSubstr("> 9abcdef\x1b[K"));
  Type(editor, "\x1b[H");
  EXPECT_THAT(editor.Draw("> ", 10), HasSubstr("> 0123456\x1b[K"));
}

// Whatever comes from a keyboard, the cursor stays inside the line.
TEST(LineEditorTest, SurvivesRandomKeys) {
  const std::vector<std::string> history = {"x", "\xE2\x82\xAC\xE2\x82\xAC"};
  for (int seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    LineEditor editor(history);
    for (int i = 0; i < 400; ++i) {
      static constexpr std::string_view kLikely = "ab\x1b\x1b[[ABCDHF3~\x7f\x17\x0b\xC3\xA9";
      editor.Take(random() % 4 == 0 ? static_cast<char>(random() % 256)
                                    : kLikely[random() % kLikely.size()]);
      ASSERT_LE(editor.cursor(), editor.line().size());
      ASSERT_FALSE(editor.Draw("> ", 1 + random() % 20).empty());
    }
  }
}

}  // namespace
}  // namespace penstock::cli
