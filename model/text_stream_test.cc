// SPDX-License-Identifier: Apache-2.0
#include "model/text_stream.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

using testing::HasSubstr;

// Token i is the i-th piece, whatever bytes that has.
class PieceTokenizer final : public Tokenizer {
 public:
  explicit PieceTokenizer(std::vector<std::string> pieces) { data_.pieces = std::move(pieces); }
  std::vector<TokenId> Encode(std::string_view, const EncodeOptions&) const override { return {}; }
  std::vector<std::size_t> ControlOffsets(std::string_view, bool) const override { return {}; }
  std::string Piece(TokenId token, bool) const override { return data_.pieces.at(token); }
  std::string Decode(std::span<const TokenId> tokens, bool special) const override {
    std::string text;
    for (const TokenId token : tokens) text += Piece(token, special);
    return text;
  }
  const VocabularyData& data() const override { return data_; }
  bool IsEndOfGeneration(TokenId) const override { return false; }

 private:
  VocabularyData data_;
};

struct Streamed {
  std::string text;
  bool stopped = false;
};

// Feeds all pieces and checks what every step promises.
Streamed Stream(const std::vector<std::string>& pieces, const std::vector<std::string>& stops) {
  const PieceTokenizer tokenizer(pieces);
  absl::StatusOr<std::unique_ptr<TextStream>> stream =
      TextStream::Make(tokenizer, {.stops = stops, .special = false, .after = {}});
  EXPECT_TRUE(stream.ok()) << stream.status();
  if (!stream.ok()) return {};
  Streamed streamed;
  const auto take = [&streamed](const TextStream::Output& output) {
    EXPECT_EQ(ValidUtf8Prefix(output.text), output.text.size()) << "half a character came out";
    if (streamed.stopped) {
      EXPECT_EQ(output.text, "") << "text after a stop";
      EXPECT_TRUE(output.stopped);
    }
    streamed.text += output.text;
    streamed.stopped = output.stopped;
  };
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    take((*stream)->Add(static_cast<TokenId>(i)));
    EXPECT_EQ((*stream)->stopped(), streamed.stopped);
  }
  take((*stream)->Finish());
  return streamed;
}

// The whole text at once: cut at the stop string that ends first, the longest of those.
Streamed BruteForce(const std::string& bytes, const std::vector<std::string>& stops) {
  const std::string text = ReplaceInvalidUtf8(bytes);
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (end >= stop.size() && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST(TextStreamTest, StopStrings) {
  struct Case {
    const char* name;
    std::vector<std::string> pieces, stops;
    std::string want;
    bool stopped;
  };
  const std::vector<Case> cases = {
      {"none", {"ab", "c"}, {}, "abc", false},
      {"inside a token", {"a b STOP c"}, {"STOP"}, "a b ", true},
      {"across tokens", {"a", " b S", "T", "OP c", "d"}, {"STOP"}, "a b ", true},
      {"a beginning is not a stop", {"STO", "RM"}, {"STOP"}, "STORM", false},
      {"a beginning at the end", {"x", "STO"}, {"STOP"}, "xSTO", false},
      {"restart inside", {"aab", "aab", "ab"}, {"aabab"}, "aab", true},
      {"overlap", {"aabaabaaab"}, {"aabaaab"}, "aab", true},
      {"the first to end wins", {"abcdef"}, {"cd", "bcde"}, "ab", true},
      {"together, the longest", {"abcd"}, {"cd", "bcd"}, "a", true},
      {"from the first byte", {"\n", "\n"}, {"\n\n"}, "", true},
      {"split character", {"a\xF0\x9F", "\x98\x80 b", "!"}, {"\xF0\x9F\x98\x80"}, "a", true},
      {"same lead byte", {"\xC3", "\xA8!", "\xC3"}, {"\xC3\xA9!"}, "\xC3\xA8!\xEF\xBF\xBD", false},
      {"replacement stops", {"ab", "\xC3"}, {"b\xEF\xBF\xBD"}, "a", true},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const Streamed streamed = Stream(c.pieces, c.stops);
    EXPECT_EQ(streamed.stopped, c.stopped);
    EXPECT_EQ(streamed.text, c.want);
  }
}

TEST(TextStreamTest, HandsTextOutAsSoonAsItIsCertain) {
  const PieceTokenizer tokenizer({"Hello S", "T", "A", "RT"});
  absl::StatusOr<std::unique_ptr<TextStream>> stream =
      TextStream::Make(tokenizer, {.stops = {"STOP"}, .special = false, .after = {}});
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ((*stream)->Add(0).text, "Hello ");
  EXPECT_EQ((*stream)->Add(1).text, "");
  EXPECT_EQ((*stream)->Add(2).text, "STA");
  EXPECT_EQ((*stream)->Add(3).text, "RT");
  EXPECT_EQ((*stream)->Finish().text, "");
}

// A SentencePiece vocabulary's first token loses its space only where a text begins.
TEST(TextStreamTest, AnAnswerContinuesItsPrompt) {
  class SpacePrefixed final : public Tokenizer {
   public:
    SpacePrefixed() {
      data_.scheme = VocabularyData::Scheme::kSentencePiece;
      data_.add_space_prefix = true;
      data_.pieces = {" one", " two"};
    }
    std::vector<TokenId> Encode(std::string_view, const EncodeOptions&) const override {
      return {};
    }
    std::vector<std::size_t> ControlOffsets(std::string_view, bool) const override { return {}; }
    std::string Piece(TokenId token, bool) const override { return data_.pieces.at(token); }
    std::string Decode(std::span<const TokenId>, bool) const override { return ""; }
    const VocabularyData& data() const override { return data_; }
    bool IsEndOfGeneration(TokenId) const override { return false; }

   private:
    VocabularyData data_;
  };
  const SpacePrefixed tokenizer;
  EXPECT_EQ((*TextStream::Make(tokenizer, {}))->Add(1).text, "two");
  EXPECT_EQ(
      (*TextStream::Make(tokenizer, {.stops = {}, .special = false, .after = 0}))->Add(1).text,
      " two");
}

TEST(TextStreamTest, AgreesWithBruteForceOnRandomSplits) {
  // Few symbols, so that stop strings and their beginnings are met all the time.
  const std::vector<std::string> symbols = {
      "a", "b", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xC3"};
  int stopped = 0;
  for (int seed = 0; seed < 4000; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    const auto pick = [&random](std::size_t n) { return random() % n; };
    std::string text;
    for (std::size_t i = 0, n = pick(60); i < n; ++i) text += symbols[pick(symbols.size())];
    std::vector<std::string> stops(pick(4));
    for (std::string& stop : stops) {
      for (std::size_t i = 0, n = 1 + pick(5); i < n; ++i) stop += symbols[pick(5)];
    }
    std::vector<std::string> pieces;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t bytes = pick(5);  // Sometimes none, as tokens without text have.
      pieces.push_back(text.substr(at, bytes));
      at += bytes;
    }
    const Streamed got = Stream(pieces, stops);
    const Streamed want = BruteForce(text, stops);
    EXPECT_EQ(got.text, want.text);
    EXPECT_EQ(got.stopped, want.stopped);
    stopped += got.stopped;
  }
  EXPECT_GT(stopped, 500);
  EXPECT_LT(stopped, 3500);
}

// 16 stop strings of 1,024 bytes that nearly match everywhere: time is linear, or this never ends.
TEST(TextStreamTest, NoBlowUpAtTheLimits) {
  const std::vector<std::string> stops(kStopStringsMax,
                                       std::string(kStopStringBytesMax - 1, 'a') + "b");
  const std::vector<std::string> pieces(2000, std::string(500, 'a'));
  const Streamed streamed = Stream(pieces, stops);
  EXPECT_FALSE(streamed.stopped);
  EXPECT_EQ(streamed.text.size(), 1000000u);
}

TEST(TextStreamTest, ValidatesStopStrings) {
  struct Case {
    std::vector<std::string> stops;
    std::vector<const char*> parts;
  };
  const std::vector<Case> cases = {
      {std::vector<std::string>(17, "x"), {"at most 16", "got 17"}},
      {{"x", ""}, {"stop string 2 of 2 is empty"}},
      {{std::string(1025, 'x')}, {"stop string 1 ", "at most 1024", "got 1025"}},
      {{"\xC3"}, {"not valid UTF-8"}},
  };
  const PieceTokenizer tokenizer({});
  for (const Case& c : cases) {
    TextStream::Options options;
    options.stops = c.stops;
    const absl::Status status = TextStream::Make(tokenizer, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    for (const char* part : c.parts) EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
  EXPECT_TRUE(ValidateStopStrings(std::vector<std::string>(16, std::string(1024, 'x'))).ok());
}

}  // namespace
}  // namespace penstock::model
