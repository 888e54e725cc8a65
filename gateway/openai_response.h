// SPDX-License-Identifier: Apache-2.0
// Events of the gateway as what OpenAI's clients read: one object at the end, or server-sent events
// (chunks) as they come. Always valid UTF-8, one line per chunk.
//
// A body with several prompts is answered by as many requests of the gateway, its parts: choice c
// of part p has the index p * n + c, and usage is summed.
//
// One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/events.h"
#include "gateway/openai_error.h"
#include "gateway/openai_request.h"

namespace penstock::gateway {

// How an answer is written.
struct AnswerFormat {
  OpenAiKind kind = OpenAiKind::kChat;
  std::string request_id = {};  // The answer's id is "chatcmpl-" or "cmpl-" and this.
  std::string model = {};
  std::int64_t created = 0;  // Seconds since 1970.
  std::size_t parts = 1;
  std::int32_t n = 1;  // Choices of each part.
  bool stream = false;
  bool include_usage = false;
  bool logprobs = false;
};

class OpenAiAnswer {
 public:
  explicit OpenAiAnswer(AnswerFormat format);

  // An event of part `part`. Appends chunks to `out` in a stream, and nothing otherwise.
  void Add(std::size_t part, const Event& event, std::string* out);
  // The stream's end, once all parts have ended well: usage if wanted, and [DONE].
  void AppendEnd(std::string* out) const;
  // The whole answer where there is no stream, once all parts have ended well.
  std::string Body() const;

  // Of what is kept for Body().
  std::size_t kept_bytes() const { return kept_bytes_; }
  // All parts are taken by the cluster.
  bool started() const { return started_ == format_.parts; }
  const AnswerFormat& format() const { return format_; }

 private:
  struct Choice {
    std::string text;
    std::string logprobs;  // Elements of the arrays, so far.
    std::string tokens;    // Of a completion's log-probabilities, as are the next three.
    std::string top_logprobs;
    std::string text_offsets;
    std::size_t offset = 0;  // In characters, of the next token.
    std::string_view reason;
  };

  void AddStarted(std::size_t part, std::string* out);
  void AddDelta(std::size_t part, const Delta& delta, std::string* out);
  void AddFinished(std::size_t part, const Finished& finished, std::string* out);
  void AddUsage(const Usage& usage);

  std::size_t Index(std::size_t part, std::int32_t choice) const;
  void AppendHead(std::string_view object, std::string* out) const;
  void BeginChunk(std::size_t index, std::string* out) const;
  void EndChunk(std::string_view reason, std::string* out) const;
  void AppendUsage(std::string* out) const;
  // Takes the tokens' log-probabilities into `to`; of a completion, also their offsets.
  void KeepLogprobs(const std::vector<SampledToken>& tokens, Choice* to) const;
  void AppendLogprobs(const Choice& from, std::string* out) const;

  const AnswerFormat format_;
  std::string chunk_head_;  // All of a chunk before its first choice.
  std::vector<Choice> choices_;
  std::size_t kept_bytes_ = 0;
  std::size_t started_ = 0;
  Usage usage_;
};

// "data: {"error": ...}\n\n": in mid-stream. Clients raise it; no [DONE] follows, since the answer
// is not whole.
std::string ErrorChunk(const ApiError& error);

}  // namespace penstock::gateway
