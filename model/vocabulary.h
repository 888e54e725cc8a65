// SPDX-License-Identifier: Apache-2.0
// What a tokenizer is made from, as GGUF metadata or tokenizer.json give it. Plain data;
// model/tokenizer.h interprets it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/key.h"

namespace penstock::model {

enum class TokenKind : std::uint8_t { kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct VocabularyData {
  enum class Scheme : std::uint8_t {
    kByteLevelBpe,   // Pre-tokenized text, bytes as printable characters, ranked merges (GPT-2 and
                     // heirs).
    kSentencePiece,  // Spaces as U+2581, merges by score, bytes as <0xNN> when a character is
                     // unknown (llama 2, gemma).
  };
  Scheme scheme = Scheme::kByteLevelBpe;
  std::vector<std::string> pieces;  // By token id; in the scheme's own alphabet.
  std::vector<float> scores;        // Same size, or empty (SentencePiece only).
  std::vector<TokenKind> kinds;     // Same size.
  std::vector<std::string>
      merges;  // "left right", best first (BPE; also SentencePiece from tokenizer.json).
  // Byte-level BPE: patterns applied one after another, each splitting the pieces of the one
  // before, as PCRE2 regular expressions; from GGUF by the name in tokenizer.ggml.pre, from
  // tokenizer.json as written there.
  struct Split {
    std::string pattern;
    bool digits_individually = false;  // Instead of a pattern: every decimal digit (\p{N}) alone.
  };
  std::vector<Split> splits;
  bool normalize_nfc = false;
  bool ignore_merges = false;     // A piece that is a whole token is taken as it is (llama 3).
  bool add_space_prefix = false;  // SentencePiece.
  bool escape_whitespace = true;  // SentencePiece: ' ' becomes U+2581 before merging.
  bool byte_fallback = true;      // SentencePiece.
  // What the model wants around a text that is encoded as a whole: bos before it, eos after it. A
  // prompt gets bos only (Tokenizer::EncodeOptions): after eos a model has nothing to go on with.
  bool add_bos = false;
  bool add_eos = false;
  std::optional<TokenId> bos, eos, unknown, padding;
  std::vector<TokenId> end_of_generation;  // Every token that ends an answer: eos, end of turn, ...
};

}  // namespace penstock::model
