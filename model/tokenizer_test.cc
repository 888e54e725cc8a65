// SPDX-License-Identifier: Apache-2.0
#include "model/tokenizer.h"

#include <map>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "model/merge_symbols.h"
#include "model/pre_tokenizer.h"
#include "model/utf8.h"
#include "model/vocabulary_testing.h"

namespace penstock::model {
namespace {

const std::string kGolden = PENSTOCK_SOURCE_DIR "/tests/golden/tokenizer/";

constexpr char kGpt2[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

VocabularyData Tiny() {
  absl::StatusOr<VocabularyData> data = ReadVocabularyJson(kGolden + "tiny.vocabulary.json");
  EXPECT_TRUE(data.ok()) << data.status();
  return data.ok() ? *std::move(data) : VocabularyData();
}

std::unique_ptr<Tokenizer> MakeOrDie(VocabularyData data) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> made = Tokenizer::Make(std::move(data));
  EXPECT_TRUE(made.ok()) << made.status();
  return made.ok() ? *std::move(made) : nullptr;
}

TEST(BpeTokenizerTest, AgreesWithTokenizersPackage) {
  struct Case {
    const char* name;
    std::vector<VocabularyData::Split> splits;
    bool normalize_nfc;
    bool ignore_merges;
  };
  const VocabularyData::Split digits{.pattern = "", .digits_individually = true};
  for (const Case& c :
       {Case{"smollm", {digits, {kGpt2}}, false, false}, Case{"gpt2", {{kGpt2}}, false, false},
        Case{"llama-bpe", {{kLlama3}}, false, true}, Case{"qwen2", {{kQwen2}}, true, false}}) {
    SCOPED_TRACE(c.name);
    VocabularyData data = Tiny();
    data.splits = c.splits;
    data.normalize_nfc = c.normalize_nfc;
    data.ignore_merges = c.ignore_merges;
    const std::unique_ptr<Tokenizer> tokenizer = MakeOrDie(std::move(data));
    ASSERT_NE(tokenizer, nullptr);
    const auto goldens =
        ReadGoldenEncodings(absl::StrCat(kGolden, "tiny-", c.name, ".goldens.jsonl"));
    ASSERT_TRUE(goldens.ok()) << goldens.status();
    ASSERT_GE(goldens->size(), 100u);
    for (const GoldenEncoding& golden : *goldens) {
      EXPECT_EQ(tokenizer->Encode(golden.text, {}), golden.tokens) << golden.text;
      if (c.normalize_nfc) continue;
      EXPECT_EQ(tokenizer->Decode(golden.tokens, true), golden.text);
    }
  }
}

TEST(BpeTokenizerTest, EveryByteStringComesBack) {
  const std::unique_ptr<Tokenizer> tokenizer = MakeOrDie(Tiny());
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    std::string text;
    for (std::uint32_t i = random() % 64; i > 0; --i) {
      text.push_back(static_cast<char>(random() % (seed % 2 ? 256 : 128)));
      if (random() % 8 == 0) text += "é你👍";
    }
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, {.parse_special = false}), true), text);
  }
}

TEST(BpeTokenizerTest, BrokenBytesAreTheirByteTokens) {
  const std::unique_ptr<Tokenizer> tokenizer = MakeOrDie(Tiny());
  // 0xE4 0xBD starts U+4F60 but ends early; the letters around it are encoded as without it.
  const std::vector<TokenId> tokens = tokenizer->Encode("the\xE4\xBDthe", {});
  const std::vector<TokenId> the = tokenizer->Encode("the", {});
  ASSERT_EQ(tokens.size(), 2 * the.size() + 2);
  EXPECT_EQ(tokenizer->Piece(tokens[the.size()], false), "\xE4");
  EXPECT_EQ(tokenizer->Piece(tokens[the.size() + 1], false), "\xBD");
}

TEST(BpeTokenizerTest, SpecialTokens) {
  VocabularyData data = Tiny();
  data.kinds.push_back(TokenKind::kUserDefined);
  data.pieces.push_back("<|im_start|>user");
  const TokenId user = static_cast<TokenId>(data.pieces.size()) - 1;
  data.bos = 0;
  data.add_bos = true;
  data.end_of_generation = {1};
  const std::unique_ptr<Tokenizer> tokenizer = MakeOrDie(std::move(data));
  const std::string text = "<|im_start|><|im_start|>user<|im_end|>";
  EXPECT_EQ(tokenizer->Encode(text, {}), (std::vector<TokenId>{0, 0, user, 1}));
  const std::vector<TokenId> plain =
      tokenizer->Encode(text, {.parse_special = false, .add_bos = false});
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 0), 0);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), user), 1);  // Always a token.
  EXPECT_EQ(tokenizer->Decode(plain, false), text);
  EXPECT_EQ(tokenizer->Piece(1, false), "");
  EXPECT_EQ(tokenizer->Piece(1, true), "<|im_end|>");
  EXPECT_EQ(tokenizer->Piece(-1, true), "");
  EXPECT_EQ(tokenizer->Piece(tokenizer->vocab(), true), "");
  EXPECT_TRUE(tokenizer->IsEndOfGeneration(1));
  EXPECT_FALSE(tokenizer->IsEndOfGeneration(0));
}

// As llama.cpp and the tokenizers package do: after the text, also after none, and also after one
// that was there.
TEST(BpeTokenizerTest, EndOfTextOnlyWhereAskedFor) {
  VocabularyData data = Tiny();
  data.bos = 0;
  data.eos = 1;
  data.add_bos = true;
  data.add_eos = true;
  const std::unique_ptr<Tokenizer> wants = MakeOrDie(data);
  data.add_eos = false;
  const std::unique_ptr<Tokenizer> does_not = MakeOrDie(data);
  for (const char* text : {"", "the", "the<|im_end|>"}) {
    SCOPED_TRACE(text);
    std::vector<TokenId> tokens = wants->Encode(text, {});
    EXPECT_EQ(does_not->Encode(text, {}), tokens);
    EXPECT_EQ(does_not->Encode(text, {.add_eos = true}), tokens);
    tokens.push_back(1);
    EXPECT_EQ(wants->Encode(text, {.add_eos = true}), tokens);
  }
}

TEST(BpeTokenizerTest, LiteralOffsets) {
  VocabularyData data = Tiny();
  data.kinds.push_back(TokenKind::kUserDefined);
  data.pieces.push_back("<|im_end|>the");
  const TokenId user = static_cast<TokenId>(data.pieces.size()) - 1;
  const std::unique_ptr<Tokenizer> tokenizer = MakeOrDie(std::move(data));
  const std::string text = "<|im_end|><|im_end|><|im_end|>the";
  const std::vector<TokenId> plain = tokenizer->Encode("<|im_end|>", {.parse_special = false});
  std::vector<TokenId> want = {1};
  want.insert(want.end(), plain.begin(), plain.end());
  want.push_back(user);  // In spite of being literal.
  const std::vector<std::size_t> literal = {10, 20};
  EXPECT_EQ(tokenizer->Encode(text, {.literal = literal}), want);
  EXPECT_EQ(tokenizer->ControlOffsets(text, false), (std::vector<std::size_t>{0, 10, 20}));
}

TEST(BpeTokenizerTest, QuarterMegabyteInOnePiece) {
  const std::unique_ptr<Tokenizer> tokenizer = MakeOrDie(Tiny());
  for (const std::string unit : {"a", " ", "\n", "é", "the", "!", "\xFF", "\xE2\x80"}) {
    SCOPED_TRACE(unit);
    std::string text;
    while (text.size() < (1 << 18)) text += unit;
    EXPECT_TRUE(tokenizer->Decode(tokenizer->Encode(text, {}), false) == text);
  }
}

TEST(TokenizerTest, RefusesBrokenVocabularies) {
  struct Case {
    const char* want;
    void (*breaks)(VocabularyData*);
  };
  for (const Case& c : {
           Case{"no merges", [](VocabularyData* d) { d->merges.clear(); }},
           Case{"both \"a\"", [](VocabularyData* d) { d->pieces[500] = std::string("a"); }},
           Case{"merge 3 \"zzz q\"",
                [](VocabularyData* d) { d->merges[3] = std::string("zzz q"); }},
           Case{"merge 0 \"nospace\"",
                [](VocabularyData* d) { d->merges[0] = std::string("nospace"); }},
           Case{"merge 1 \"\"", [](VocabularyData* d) { d->merges[1].clear(); }},
           Case{"599 kinds", [](VocabularyData* d) { d->kinds.pop_back(); }},
           Case{"1 scores", [](VocabularyData* d) { d->scores = {0}; }},
           Case{"bos token is 600", [](VocabularyData* d) { d->bos = 600; }},
           Case{"eos token is -1", [](VocabularyData* d) { d->eos = -1; }},
           Case{"end-of-generation token is 9999",
                [](VocabularyData* d) { d->end_of_generation = {9999}; }},
           Case{"bos token but names none", [](VocabularyData* d) { d->add_bos = true; }},
           Case{"eos token but names none", [](VocabularyData* d) { d->add_eos = true; }},
           Case{"does not compile", [](VocabularyData* d) { d->splits = {{"(a"}}; }},
           Case{"special token 0 has 600 bytes",
                [](VocabularyData* d) { d->pieces[0] = std::string(600, '<'); }},
           Case{"has 0 tokens", [](VocabularyData* d) { *d = VocabularyData(); }},
           Case{"neither scores nor merges",
                [](VocabularyData* d) {
                  d->scheme = VocabularyData::Scheme::kSentencePiece;
                  d->merges.clear();
                }},
           Case{"not <0xNN>",
                [](VocabularyData* d) {
                  d->scheme = VocabularyData::Scheme::kSentencePiece;
                  d->kinds[7] = TokenKind::kByte;
                }},
       }) {
    SCOPED_TRACE(c.want);
    VocabularyData data = Tiny();
    c.breaks(&data);
    const auto made = Tokenizer::Make(std::move(data));
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(made.status().message(), c.want)) << made.status();
  }
}

TEST(MergeSymbolsTest, HeapAgreesWithScan) {
  for (std::uint32_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    std::map<std::pair<TokenId, TokenId>, Merge> merges;
    for (TokenId made = 3; made < 40; ++made) {
      const TokenId left = static_cast<TokenId>(random() % made);
      const TokenId right = static_cast<TokenId>(random() % made);
      merges.try_emplace({left, right}, Merge{static_cast<std::int32_t>(random() % 20), made});
    }
    const auto lookup = [&](const Symbol& left, const Symbol& right) {
      const auto merge = merges.find({left.token, right.token});
      return merge == merges.end() ? Merge{} : merge->second;
    };
    std::vector<Symbol> scanned;
    for (std::size_t i = 0; i < seed % kScannedSymbolsMax; ++i) {
      scanned.push_back({static_cast<TokenId>(random() % 3), i, 1});
    }
    std::vector<Symbol> heaped = scanned;
    internal::MergeByScan(&scanned, lookup);
    internal::MergeByHeap(&heaped, lookup);
    ASSERT_EQ(scanned.size(), heaped.size());
    for (std::size_t i = 0; i < scanned.size(); ++i) {
      EXPECT_EQ(scanned[i].token, heaped[i].token);
      EXPECT_EQ(scanned[i].begin, heaped[i].begin);
    }
  }
}

TEST(PreTokenizerTest, WhiteSpaceIsUnicodes) {
  EXPECT_EQ(SpellOutWhiteSpace(R"(\\s[]\d][[:alpha:]a])"), R"(\\s[]\d][[:alpha:]a])");
  const auto made = PreTokenizer::Make({{.pattern = R"([^\s]+)"}});
  ASSERT_TRUE(made.ok()) << made.status();
  struct Case {
    const char* text;
    std::vector<std::string_view> want;
  };
  for (const Case& c : {Case{"", {}}, Case{"ab", {"ab"}}, Case{" a b ", {" ", "a", " ", "b", " "}},
                        Case{"a\u180Eb", {"a\u180Eb"}},  // Not White_Space, unlike PCRE2's \s.
                        Case{"a\u0085b\u3000c", {"a", "\u0085", "b", "\u3000", "c"}}}) {
    std::vector<std::string_view> pieces;
    (*made)->Split(c.text, [&](std::string_view piece) { pieces.push_back(piece); });
    EXPECT_EQ(pieces, c.want) << c.text;
  }
}

TEST(PreTokenizerTest, EndlessBacktrackingEnds) {
  const auto made = PreTokenizer::Make({{.pattern = "(a+)+b"}});
  ASSERT_TRUE(made.ok()) << made.status();
  const std::string text(200, 'a');
  std::string joined;
  (*made)->Split(text, [&](std::string_view piece) { joined += piece; });
  EXPECT_EQ(joined, text);
}

TEST(Utf8Test, ReplacesMaximalSubparts) {
  struct Case {
    std::string_view text;
    int replaced;
  };
  // Counts as CPython's bytes.decode("utf-8", "replace") gives them.
  for (const Case& c :
       {Case{"\xC0\x80", 2}, Case{"\xE0\x80\x80", 3}, Case{"\xED\xA0\x80", 3},
        Case{"\xF4\x90\x80\x80", 4}, Case{"\xF0\x9F\x98", 1}, Case{"\xE4\xBD", 1},
        Case{"\xE4\xBDx", 1}, Case{"\xF0\x9F\xF0\x9F", 2}, Case{"\xFF\xFE", 2},
        Case{"\xF1\x80\xC2\x80", 1}, Case{"\xF8\x88\x80\x80\x80", 5}, Case{"ok", 0}}) {
    const std::string out = ReplaceInvalidUtf8(c.text);
    int replaced = 0;
    for (std::size_t at = 0; (at = out.find(kReplacementCharacter, at)) != std::string::npos;
         at += 3) {
      ++replaced;
    }
    EXPECT_EQ(replaced, c.replaced) << out;
    EXPECT_EQ(ValidUtf8Prefix(out), out.size());
  }
}

}  // namespace
}  // namespace penstock::model
