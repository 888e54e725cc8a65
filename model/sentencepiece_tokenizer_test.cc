// SPDX-License-Identifier: Apache-2.0
#include "gtest/gtest.h"
#include "model/tokenizer.h"

namespace penstock::model {
namespace {

#define SP "\xE2\x96\x81"

struct Entry {
  const char* piece;
  float score;
  TokenKind kind;
};

// Ids: 0 <unk>, 1 <s>, 2 </s>, 3... the entries, then all bytes.
VocabularyData Make(bool prefix) {
  VocabularyData data;
  data.scheme = VocabularyData::Scheme::kSentencePiece;
  const auto add = [&](const std::string& piece, float score, TokenKind kind) {
    data.pieces.push_back(piece);
    data.scores.push_back(score);
    data.kinds.push_back(kind);
  };
  add("<unk>", 0, TokenKind::kUnknown);
  add("<s>", 0, TokenKind::kControl);
  add("</s>", 0, TokenKind::kControl);
  const TokenKind normal = TokenKind::kNormal;
  for (const Entry& e : {Entry{SP, -100, normal},
                         {"a", -101, normal},
                         {"b", -102, normal},
                         {"ab", -1, normal},
                         {"ba", -2, normal},
                         {SP "a", -3, normal},
                         {"aba", -4, normal},
                         {SP SP, 0, TokenKind::kUserDefined}}) {
    add(e.piece, e.score, e.kind);
  }
  const char* hex = "0123456789ABCDEF";
  for (int b = 0; b < 256; ++b) {
    add({'<', '0', 'x', hex[b / 16], hex[b % 16], '>'}, 0, TokenKind::kByte);
  }
  data.bos = 1;
  data.eos = 2;
  data.unknown = 0;
  data.add_bos = true;
  data.add_space_prefix = prefix;
  return data;
}
constexpr TokenId kSpace = 3, kA = 4, kB = 5, kAb = 6, kBa = 7, kSpaceA = 8, kAba = 9, kTwo = 10;
constexpr TokenId kByte = 11;

using Tokens = std::vector<TokenId>;

TEST(SentencePieceTokenizerTest, MergesByScore) {
  struct Case {
    const char* text;
    bool prefix;
    Tokens want;
  };
  for (const Case& c : {
           Case{"", true, {1}},
           Case{"ab", false, {1, kAb}},
           Case{"aab", false, {1, kA, kAb}},
           Case{"abab", false, {1, kAb, kAb}},  // ab beats ba and aba.
           Case{"aba", false, {1, kAba}},
           Case{"a ba", false, {1, kA, kSpace, kBa}},
           Case{"a a", false, {1, kA, kSpaceA}},
           Case{"a", true, {1, kSpaceA}},
           Case{" a", true, {1, kTwo, kA}},  // Prefix and space make the user-defined run.
           Case{"a  a", false, {1, kA, kTwo, kA}},
           Case{"c", false, {1, kByte + 'c'}},
           Case{"\xFF", false, {1, kByte + 0xFF}},
           Case{"<s>a", true, {1, 1, kSpaceA}},  // Prefix after bos, not before.
           Case{"</s>a", true, {1, 2, kA}},
       }) {
    SCOPED_TRACE(c.text);
    const auto made = Tokenizer::Make(Make(c.prefix));
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_EQ((*made)->Encode(c.text, {}), c.want);
    EXPECT_EQ((*made)->Decode((*made)->Encode(c.text, {.add_bos = false}), true), c.text);
  }
}

TEST(SentencePieceTokenizerTest, RankedMergesInsteadOfScores) {
  VocabularyData data = Make(false);
  data.scores.clear();
  data.merges = {"b a", "a b", "a ba"};  // ba beats ab here.
  const auto made = Tokenizer::Make(std::move(data));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->Encode("abab", {.add_bos = false}), (Tokens{kAba, kB}));
}

TEST(SentencePieceTokenizerTest, UnknownWithoutBytes) {
  VocabularyData data = Make(false);
  data.byte_fallback = false;
  const auto made = Tokenizer::Make(std::move(data));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->Encode("ac", {.add_bos = false}), (Tokens{kA, 0}));
}

TEST(StreamingDetokenizerTest, NeverEndsInsideACharacter) {
  const auto made = Tokenizer::Make(Make(true));
  ASSERT_TRUE(made.ok()) << made.status();
  StreamingDetokenizer stream(**made, false);
  EXPECT_EQ(stream.Add(1), "");
  EXPECT_EQ(stream.Add(kSpaceA), "a");  // The prefix is not part of the text.
  EXPECT_EQ(stream.Add(kSpaceA), " a");
  EXPECT_EQ(stream.Add(kByte + 0xE4), "");
  EXPECT_EQ(stream.Add(kByte + 0xBD), "");
  EXPECT_EQ(stream.Add(kByte + 0xA0), "\u4F60");
  EXPECT_EQ(stream.Add(kByte + 0xE4), "");
  EXPECT_EQ(stream.Add(kA), "\uFFFDa");
  EXPECT_EQ(stream.Add(kByte + 0xFF), "\uFFFD");
  EXPECT_EQ(stream.Add(kByte + 0xF0), "");
  EXPECT_EQ(stream.Add(kByte + 0xF0), "\uFFFD");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
}

}  // namespace
}  // namespace penstock::model
