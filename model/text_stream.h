// SPDX-License-Identifier: Apache-2.0
// The tokens of one answer as text, up to its first stop string.
//
// Text that could be the beginning of a stop string is held back until that is decided, so what was
// handed out never has to be taken back; a stop string itself is never handed out. Stop strings are
// found wherever they lie, also across tokens. Work per byte of text is constant for each stop
// string, amortized.
//
// One answer, one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace penstock::model {

inline constexpr std::size_t kStopStringsMax = 16;
inline constexpr std::size_t kStopStringBytesMax = 1024;

// INVALID_ARGUMENT, with both numbers, for more than 16 stop strings, or one that is empty, longer
// than 1,024 bytes or not UTF-8.
absl::Status ValidateStopStrings(const std::vector<std::string>& stops);

class TextStream {
 public:
  struct Options {
    std::vector<std::string> stops;
    bool special = false;  // Control tokens appear by name.
    // The last token of the prompt, so that the answer continues it with the right space. None: the
    // answer begins a text.
    std::optional<TokenId> after;
  };
  struct Output {
    std::string text;      // Valid UTF-8; whole characters. May be empty.
    bool stopped = false;  // A stop string was met: this is the last text there is.
  };

  // As ValidateStopStrings. `tokenizer` must outlive the stream.
  static absl::StatusOr<std::unique_ptr<TextStream>> Make(const Tokenizer& tokenizer,
                                                          const Options& options);

  // Text that became certain with this token. After a stop nothing more comes.
  Output Add(TokenId token);
  // The rest, when the answer ended for another reason: held back text and unfinished characters.
  Output Finish();

  bool stopped() const { return stopped_by_ != nullptr; }
  // The stop string that was met; empty without.
  std::string stopped_by() const { return stopped() ? *stopped_by_ : ""; }

 private:
  // One stop string and how much of it the text ends with (Knuth, Morris and Pratt).
  struct Matcher {
    std::string stop;
    std::vector<std::uint16_t> fallback;  // Of i matched bytes: the next shorter match, by i.
    std::size_t matched = 0;

    void Step(char byte);
  };

  TextStream(const Tokenizer& tokenizer, const Options& options);
  Output Take(std::string_view text);

  StreamingDetokenizer detokenizer_;
  std::vector<Matcher> matchers_;
  std::string held_;                         // At most 1,023 bytes between calls.
  const std::string* stopped_by_ = nullptr;  // Of matchers_.
};

}  // namespace penstock::model
