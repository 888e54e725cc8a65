// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back. Immutable once made; any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "model/vocabulary.h"

namespace penstock::model {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // INVALID_ARGUMENT names what is missing or wrong: no merges, duplicate pieces where ids must be
  // unique, merges that name unknown pieces, ids out of range, a pattern that does not compile.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Make(VocabularyData data);

  struct EncodeOptions {
    bool parse_special =
        true;  // Text such as <|im_end|> becomes its token; false keeps it text (user input).
    bool add_bos = true;  // Only where the model wants one (VocabularyData::add_bos).
    // Only where the model wants one (VocabularyData::add_eos). Off: a prompt that is to be gone on
    // with must not end, whatever its vocabulary asks for; on to encode a text as a whole.
    bool add_eos = false;
    // Byte offsets of the text, strictly ascending, at which no control token begins in spite of
    // parse_special; user-defined tokens do.
    std::span<const std::size_t> literal = {};
  };
  // Invalid UTF-8 never fails: every byte that is part of no valid character is encoded as itself
  // and decodes to itself wherever the vocabulary has all bytes.
  virtual std::vector<TokenId> Encode(std::string_view text,
                                      const EncodeOptions& options) const = 0;

  // The byte offsets of `text`, ascending, at which the text of a control token begins, also inside
  // of another token. `cut_short`: and those at which one is cut short by the end of `text`, or by
  // the white space there.
  virtual std::vector<std::size_t> ControlOffsets(std::string_view text, bool cut_short) const = 0;

  // The bytes of one token, as they stand in the middle of a text; may be half a UTF-8 character.
  // Control tokens give their name only with `special`. Empty for ids outside the vocabulary.
  virtual std::string Piece(TokenId token, bool special) const = 0;
  // All of them in a row: Decode(Encode(text)) is text for valid UTF-8 (without bos).
  virtual std::string Decode(std::span<const TokenId> tokens, bool special) const = 0;

  virtual const VocabularyData& data() const = 0;
  virtual bool IsEndOfGeneration(TokenId token) const = 0;
  std::int32_t vocab() const { return static_cast<std::int32_t>(data().pieces.size()); }
};

// Turns a stream of tokens into text that never ends inside a UTF-8 character. Bytes that can never
// become a valid character come out as U+FFFD as soon as that is known. One stream, one thread.
class StreamingDetokenizer {
 public:
  // `tokenizer` must outlive this.
  StreamingDetokenizer(const Tokenizer& tokenizer, bool special)
      : tokenizer_(tokenizer), special_(special) {}

  // The text that became certain with this token; may be empty.
  std::string Add(TokenId token);
  // What is left at the end: U+FFFD for an unfinished character.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  const bool special_;
  bool first_ = true;
  std::string pending_;  // At most 3 bytes: the valid beginning of one character.
};

}  // namespace penstock::model
