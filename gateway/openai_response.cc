// SPDX-License-Identifier: Apache-2.0
#include "gateway/openai_response.h"

#include <algorithm>
#include <array>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"
#include "gateway/json_text.h"
#include "model/utf8.h"

namespace penstock::gateway {
namespace {

template <typename... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

std::string_view ReasonOf(FinishReason reason) {
  return reason == FinishReason::kStop ? "stop" : "length";
}

void AppendComma(std::string* out) {
  if (!out->empty()) out->push_back(',');
}

// {"token": ..., "logprob": ..., "bytes": [...] without the closing brace.
void AppendChatToken(std::string_view piece, double logprob, std::string* out) {
  out->append(R"({"token":)");
  AppendJsonString(piece, out);
  out->append(R"(,"logprob":)");
  AppendJsonLogprob(logprob, out);
  out->append(R"(,"bytes":)");
  AppendJsonBytes(piece, out);
}

void AppendChatLogprob(const SampledToken& token, std::string* out) {
  AppendComma(out);
  AppendChatToken(token.piece, *token.logprob, out);
  out->append(R"(,"top_logprobs":[)");
  bool first = true;
  for (const TokenLogprob& top : token.top) {
    if (!std::exchange(first, false)) out->push_back(',');
    AppendChatToken(top.piece, top.logprob, out);
    out->push_back('}');
  }
  out->append("]}");
}

// In completions tokens have no bytes: one that is part of a character is written like
// "bytes:\xe2\x80", as OpenAI does.
std::string NameOf(std::string_view piece) {
  if (model::ValidUtf8Prefix(piece) == piece.size()) return std::string(piece);
  std::string name = "bytes:";
  for (const char c : piece) {
    absl::StrAppendFormat(&name, "\\x%02x", static_cast<unsigned>(c) & 0xff);
  }
  return name;
}

std::size_t CharactersIn(std::string_view text) {
  std::size_t characters = 0;
  while (!text.empty()) {
    text.remove_prefix(static_cast<std::size_t>(model::NextUtf8(text).bytes));
    ++characters;
  }
  return characters;
}

}  // namespace

OpenAiAnswer::OpenAiAnswer(AnswerFormat format)
    : format_(std::move(format)), choices_(format_.parts * static_cast<std::size_t>(format_.n)) {
  usage_.attempts = 0;
  AppendHead(format_.kind == OpenAiKind::kChat ? "chat.completion.chunk" : "text_completion",
             &chunk_head_);
}

std::size_t OpenAiAnswer::Index(std::size_t part, std::int32_t choice) const {
  CHECK(choice >= 0 && choice < format_.n && part < format_.parts);
  return part * static_cast<std::size_t>(format_.n) + static_cast<std::size_t>(choice);
}

void OpenAiAnswer::AppendHead(std::string_view object, std::string* out) const {
  out->append(R"({"id":)");
  AppendJsonString(
      absl::StrCat(format_.kind == OpenAiKind::kChat ? "chatcmpl-" : "cmpl-", format_.request_id),
      out);
  absl::StrAppend(out, R"(,"object":")", ToAbsl(object), R"(","created":)", format_.created,
                  R"(,"model":)");
  AppendJsonString(format_.model, out);
  out->append(R"(,"choices":[)");
}

void OpenAiAnswer::BeginChunk(std::size_t index, std::string* out) const {
  absl::StrAppend(out, "data: ", chunk_head_, R"({"index":)", index);
}

// After `"logprobs": ...`.
void OpenAiAnswer::EndChunk(std::string_view reason, std::string* out) const {
  if (reason.empty()) {
    out->append(R"(,"finish_reason":null}])");
  } else {
    absl::StrAppend(out, R"(,"finish_reason":")", ToAbsl(reason), R"("}])");
  }
  // Who asked for usage finds the field in every chunk, with a value in the last.
  out->append(format_.include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

void OpenAiAnswer::Add(std::size_t part, const Event& event, std::string* out) {
  std::visit(Overloaded{[&](const Started&) { AddStarted(part, out); },
                        [&](const Delta& delta) { AddDelta(part, delta, out); },
                        [&](const Finished& finished) { AddFinished(part, finished, out); },
                        [&](const Usage& usage) { AddUsage(usage); }},
             event);
}

void OpenAiAnswer::AddStarted(std::size_t part, std::string* out) {
  ++started_;
  if (!format_.stream || format_.kind != OpenAiKind::kChat) return;
  for (std::int32_t c = 0; c < format_.n; ++c) {
    BeginChunk(Index(part, c), out);
    out->append(R"(,"delta":{"role":"assistant","content":""},"logprobs":null)");
    EndChunk({}, out);
  }
}

void OpenAiAnswer::AddDelta(std::size_t part, const Delta& delta, std::string* out) {
  const std::size_t index = Index(part, delta.choice);
  Choice& choice = choices_[index];
  if (!format_.stream) {
    const std::size_t before = choice.logprobs.size() + choice.tokens.size() +
                               choice.top_logprobs.size() + choice.text_offsets.size();
    choice.text += delta.text;
    if (format_.logprobs) KeepLogprobs(delta.tokens, &choice);
    kept_bytes_ += delta.text.size() + choice.logprobs.size() + choice.tokens.size() +
                   choice.top_logprobs.size() + choice.text_offsets.size() - before;
    return;
  }
  // A token that only begins a character or a stop string says nothing yet.
  if (delta.text.empty() && !format_.logprobs) return;
  BeginChunk(index, out);
  out->append(format_.kind == OpenAiKind::kChat ? R"(,"delta":{"content":)" : R"(,"text":)");
  AppendJsonString(delta.text, out);
  if (format_.kind == OpenAiKind::kChat) out->push_back('}');
  out->append(R"(,"logprobs":)");
  if (format_.logprobs) {
    Choice chunk;
    chunk.offset = choice.offset;
    KeepLogprobs(delta.tokens, &chunk);
    choice.offset = chunk.offset;
    AppendLogprobs(chunk, out);
  } else {
    out->append("null");
  }
  EndChunk({}, out);
}

void OpenAiAnswer::AddFinished(std::size_t part, const Finished& finished, std::string* out) {
  const std::size_t index = Index(part, finished.choice);
  choices_[index].reason = ReasonOf(finished.reason);
  if (!format_.stream) return;
  BeginChunk(index, out);
  out->append(format_.kind == OpenAiKind::kChat ? R"(,"delta":{})" : R"(,"text":"")");
  out->append(R"(,"logprobs":null)");
  EndChunk(choices_[index].reason, out);
}

void OpenAiAnswer::AddUsage(const Usage& usage) {
  usage_.prompt_tokens += usage.prompt_tokens;
  usage_.cached_tokens += usage.cached_tokens;
  usage_.completion_tokens += usage.completion_tokens;
}

void OpenAiAnswer::KeepLogprobs(const std::vector<SampledToken>& tokens, Choice* to) const {
  for (const SampledToken& token : tokens) {
    if (!token.logprob.has_value()) continue;
    if (format_.kind == OpenAiKind::kChat) {
      AppendChatLogprob(token, &to->logprobs);
      continue;
    }
    AppendComma(&to->tokens);
    AppendJsonString(NameOf(token.piece), &to->tokens);
    AppendComma(&to->logprobs);
    AppendJsonLogprob(*token.logprob, &to->logprobs);
    AppendComma(&to->text_offsets);
    absl::StrAppend(&to->text_offsets, to->offset);
    to->offset += CharactersIn(token.piece);
    AppendComma(&to->top_logprobs);
    // The chosen token is always among them; tokens of one name count once, the likelier one.
    std::vector<std::string> names = {NameOf(token.piece)};
    absl::StrAppend(&to->top_logprobs, "{");
    AppendJsonString(names[0], &to->top_logprobs);
    to->top_logprobs += ":";
    AppendJsonLogprob(*token.logprob, &to->top_logprobs);
    for (const TokenLogprob& top : token.top) {
      std::string name = NameOf(top.piece);
      if (std::ranges::find(names, name) != names.end()) continue;
      to->top_logprobs += ",";
      AppendJsonString(name, &to->top_logprobs);
      to->top_logprobs += ":";
      AppendJsonLogprob(top.logprob, &to->top_logprobs);
      names.push_back(std::move(name));
    }
    to->top_logprobs += "}";
  }
}

void OpenAiAnswer::AppendLogprobs(const Choice& from, std::string* out) const {
  if (format_.kind == OpenAiKind::kChat) {
    absl::StrAppend(out, R"({"content":[)", from.logprobs, R"(],"refusal":null})");
    return;
  }
  absl::StrAppend(out, R"({"tokens":[)", from.tokens, R"(],"token_logprobs":[)", from.logprobs,
                  R"(],"top_logprobs":[)", from.top_logprobs, R"(],"text_offset":[)",
                  from.text_offsets, "]}");
}

void OpenAiAnswer::AppendUsage(std::string* out) const {
  absl::StrAppend(out, R"({"prompt_tokens":)", usage_.prompt_tokens, R"(,"completion_tokens":)",
                  usage_.completion_tokens, R"(,"total_tokens":)",
                  std::int64_t{usage_.prompt_tokens} + usage_.completion_tokens,
                  R"(,"prompt_tokens_details":{"cached_tokens":)", usage_.cached_tokens, "}}");
}

void OpenAiAnswer::AppendEnd(std::string* out) const {
  if (format_.include_usage) {
    absl::StrAppend(out, "data: ", chunk_head_, R"(],"usage":)");
    AppendUsage(out);
    out->append("}\n\n");
  }
  out->append("data: [DONE]\n\n");
}

std::string OpenAiAnswer::Body() const {
  const bool chat = format_.kind == OpenAiKind::kChat;
  std::string body;
  body.reserve(kept_bytes_ + 512);
  AppendHead(chat ? "chat.completion" : "text_completion", &body);
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    absl::StrAppend(&body, i == 0 ? "" : ",", R"({"index":)", i);
    body += chat ? R"(,"message":{"role":"assistant","content":)" : R"(,"text":)";
    AppendJsonString(choice.text, &body);
    if (chat) body += R"(,"refusal":null})";
    body += R"(,"logprobs":)";
    if (format_.logprobs) {
      AppendLogprobs(choice, &body);
    } else {
      body += "null";
    }
    absl::StrAppend(&body, R"(,"finish_reason":")", ToAbsl(choice.reason), R"("})");
  }
  body += R"(],"usage":)";
  AppendUsage(&body);
  body += "}";
  return body;
}

std::string ErrorChunk(const ApiError& error) {
  return absl::StrCat("data: ", ErrorJson(error), "\n\n");
}

}  // namespace penstock::gateway
