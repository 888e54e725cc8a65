// SPDX-License-Identifier: Apache-2.0
#include "model/text_stream.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "model/utf8.h"

namespace penstock::model {

absl::Status ValidateStopStrings(const std::vector<std::string>& stops) {
  if (stops.size() > kStopStringsMax) {
    return absl::InvalidArgumentError(absl::StrCat("there may be at most ", kStopStringsMax,
                                                   " stop strings, got ", stops.size()));
  }
  for (std::size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop string ", i + 1, " of ", stops.size(), " is empty"));
    }
    if (stops[i].size() > kStopStringBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("stop string ", i + 1, " may have at most ",
                                                     kStopStringBytesMax, " bytes, got ",
                                                     stops[i].size()));
    }
    if (ValidUtf8Prefix(stops[i]) != stops[i].size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop string ", i + 1, " of ", stops.size(), " is not valid UTF-8"));
    }
  }
  return absl::OkStatus();
}

void TextStream::Matcher::Step(char byte) {
  while (matched > 0 && (matched == stop.size() || stop[matched] != byte)) {
    matched = fallback[matched];
  }
  if (stop[matched] == byte) ++matched;
}

absl::StatusOr<std::unique_ptr<TextStream>> TextStream::Make(const Tokenizer& tokenizer,
                                                             const Options& options) {
  RETURN_IF_ERROR(ValidateStopStrings(options.stops));
  return std::unique_ptr<TextStream>(new TextStream(tokenizer, options));
}

TextStream::TextStream(const Tokenizer& tokenizer, const Options& options)
    : detokenizer_(tokenizer, options.special) {
  if (options.after.has_value()) detokenizer_.Add(*options.after);
  for (const std::string& stop : options.stops) {
    Matcher matcher = {stop, std::vector<std::uint16_t>(stop.size() + 1, 0), 0};
    for (std::size_t i = 1; i < stop.size(); ++i) {
      matcher.Step(stop[i]);
      matcher.fallback[i + 1] = static_cast<std::uint16_t>(matcher.matched);
    }
    matcher.matched = 0;
    matchers_.push_back(std::move(matcher));
  }
}

TextStream::Output TextStream::Take(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (Matcher& matcher : matchers_) {
      matcher.Step(text[i]);
      // Of several that end here, the one that began first counts.
      if (matcher.matched == matcher.stop.size() &&
          (stopped_by_ == nullptr || stopped_by_->size() < matcher.stop.size())) {
        stopped_by_ = &matcher.stop;
      }
    }
    if (stopped()) {
      held_.append(text.substr(0, i + 1));
      held_.resize(held_.size() - stopped_by_->size());
      return {std::move(held_), true};
    }
  }
  // A stop string begins with a whole character, so that the cut is between characters too.
  std::size_t hold = 0;
  for (const Matcher& matcher : matchers_) hold = std::max(hold, matcher.matched);
  held_.append(text);
  Output output = {held_.substr(0, held_.size() - hold), false};
  held_.erase(0, held_.size() - hold);
  return output;
}

TextStream::Output TextStream::Add(TokenId token) {
  if (stopped()) return {"", true};
  return Take(detokenizer_.Add(token));
}

TextStream::Output TextStream::Finish() {
  if (stopped()) return {"", true};
  Output output = Take(detokenizer_.Finish());
  if (!output.stopped) output.text += std::exchange(held_, "");
  return output;
}

}  // namespace penstock::model
