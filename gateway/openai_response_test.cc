// SPDX-License-Identifier: Apache-2.0
#include "gateway/openai_response.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "gateway/json_text.h"
#include "nlohmann/json.hpp"

namespace penstock::gateway {
namespace {

using nlohmann::json;

// The data of server-sent events; what is no event fails.
std::vector<std::string> Events(std::string_view text) {
  std::vector<std::string> events;
  while (!text.empty()) {
    const std::size_t end = text.find("\n\n");
    EXPECT_TRUE(text.starts_with("data: ") && end != std::string_view::npos) << text;
    if (end == std::string_view::npos) break;
    events.emplace_back(text.substr(6, end - 6));
    EXPECT_EQ(events.back().find('\n'), std::string::npos);
    text.remove_prefix(end + 2);
  }
  return events;
}

AnswerFormat Format(OpenAiKind kind) {
  return {.kind = kind, .request_id = "r", .model = "m\"", .created = 7};
}

SampledToken Token(TokenId id, double logprob, std::string piece,
                   std::vector<TokenLogprob> top = {}) {
  return {.token = id, .logprob = logprob, .top = std::move(top), .piece = std::move(piece)};
}

// Two choices; the second is cut.
std::string Tell(OpenAiAnswer& answer) {
  std::string out;
  answer.Add(0, Started{.request_id = "r", .prompt_tokens = 5}, &out);
  answer.Add(0, Delta{.choice = 1, .text = "no\n"}, &out);
  answer.Add(0, Delta{.choice = 0, .text = "yes\xF0\x9F\x99\x82"}, &out);
  answer.Add(0, Delta{.choice = 0, .text = ""}, &out);
  answer.Add(0, Finished{.choice = 0, .reason = FinishReason::kStop}, &out);
  answer.Add(0, Finished{.choice = 1, .reason = FinishReason::kLength}, &out);
  answer.Add(0, Usage{.prompt_tokens = 5, .cached_tokens = 4, .completion_tokens = 9}, &out);
  return out;
}

TEST(OpenAiAnswerTest, WholeChat) {
  AnswerFormat format = Format(OpenAiKind::kChat);
  format.n = 2;
  OpenAiAnswer answer(format);
  EXPECT_EQ(Tell(answer), "");
  EXPECT_EQ(json::parse(answer.Body()), json::parse(R"({
    "id":"chatcmpl-r","object":"chat.completion","created":7,"model":"m\"",
    "choices":[
      {"index":0,"message":{"role":"assistant","content":"yes🙂","refusal":null},
       "logprobs":null,"finish_reason":"stop"},
      {"index":1,"message":{"role":"assistant","content":"no\n","refusal":null},
       "logprobs":null,"finish_reason":"length"}],
    "usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14,
             "prompt_tokens_details":{"cached_tokens":4}}})"));
}

TEST(OpenAiAnswerTest, StreamedChat) {
  AnswerFormat format = Format(OpenAiKind::kChat);
  format.n = 2;
  format.stream = true;
  format.include_usage = true;
  OpenAiAnswer answer(format);
  std::string out = Tell(answer);
  answer.AppendEnd(&out);
  const std::vector<std::string> events = Events(out);
  ASSERT_EQ(events.size(), 8u);
  EXPECT_EQ(json::parse(events[0]), json::parse(R"({
    "id":"chatcmpl-r","object":"chat.completion.chunk","created":7,"model":"m\"",
    "choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,
                "finish_reason":null}],"usage":null})"));
  EXPECT_EQ(json::parse(events[2])["choices"][0], json::parse(R"(
    {"index":1,"delta":{"content":"no\n"},"logprobs":null,"finish_reason":null})"));
  EXPECT_EQ(json::parse(events[3])["choices"][0]["delta"]["content"], "yes🙂");
  EXPECT_EQ(json::parse(events[5])["choices"][0], json::parse(R"(
    {"index":1,"delta":{},"logprobs":null,"finish_reason":"length"})"));
  EXPECT_EQ(json::parse(events[6]), json::parse(R"({
    "id":"chatcmpl-r","object":"chat.completion.chunk","created":7,"model":"m\"","choices":[],
    "usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14,
             "prompt_tokens_details":{"cached_tokens":4}}})"));
  EXPECT_EQ(events[7], "[DONE]");
}

TEST(OpenAiAnswerTest, WithoutUsageNoChunkSpeaksOfIt) {
  AnswerFormat format = Format(OpenAiKind::kCompletion);
  format.stream = true;
  OpenAiAnswer answer(format);
  std::string out;
  answer.Add(0, Delta{.text = "a"}, &out);
  answer.AppendEnd(&out);
  const std::vector<std::string> events = Events(out);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(json::parse(events[0]), json::parse(R"({
    "id":"cmpl-r","object":"text_completion","created":7,"model":"m\"",
    "choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]})"));
}

TEST(OpenAiAnswerTest, ChatLogprobsHaveBytes) {
  for (const bool stream : {false, true}) {
    SCOPED_TRACE(stream);
    AnswerFormat format = Format(OpenAiKind::kChat);
    format.logprobs = true;
    format.stream = stream;
    OpenAiAnswer answer(format);
    std::string out;
    answer.Add(0,
               Delta{.text = "",
                     .tokens = {Token(3, -0.1, "\xF0\x9F",
                                      {{3, -0.1, "\xF0\x9F"},
                                       {4, -std::numeric_limits<double>::infinity(), "b"}})}},
               &out);
    const json choice = json::parse(stream ? Events(out).at(0) : answer.Body())["choices"][0];
    EXPECT_EQ(choice["logprobs"], json::parse(R"({"content":[
      {"token":"\ufffd","logprob":-0.1,"bytes":[240,159],"top_logprobs":[
        {"token":"\ufffd","logprob":-0.1,"bytes":[240,159]},
        {"token":"b","logprob":-9999.0,"bytes":[98]}]}],"refusal":null})"));
  }
}

TEST(OpenAiAnswerTest, CompletionLogprobsHaveOffsets) {
  AnswerFormat format = Format(OpenAiKind::kCompletion);
  format.logprobs = true;
  OpenAiAnswer answer(format);
  std::string out;
  answer.Add(0, Delta{.text = "ä", .tokens = {Token(1, -1, "ä", {{2, -0.5, "b"}, {1, -1, "ä"}})}},
             &out);
  answer.Add(0, Delta{.text = "", .tokens = {Token(3, -2, "\xE2\x80")}}, &out);
  answer.Add(0, Delta{.text = "c", .tokens = {Token(4, -3, "c")}}, &out);
  EXPECT_EQ(json::parse(answer.Body())["choices"][0]["logprobs"], json::parse(R"({
    "tokens":["ä","bytes:\\xe2\\x80","c"],"token_logprobs":[-1,-2,-3],
    "top_logprobs":[{"ä":-1,"b":-0.5},{"bytes:\\xe2\\x80":-2},{"c":-3}],
    "text_offset":[0,1,2]})"));
  // Offsets go on from chunk to chunk.
  format.stream = true;
  OpenAiAnswer streamed(format);
  streamed.Add(0, Delta{.text = "xy", .tokens = {Token(1, -1, "xy")}}, &out);
  streamed.Add(0, Delta{.text = "z", .tokens = {Token(2, -1, "z")}}, &out);
  EXPECT_EQ(json::parse(Events(out).at(1))["choices"][0]["logprobs"]["text_offset"],
            json::parse("[2]"));
}

TEST(OpenAiAnswerTest, PartsAreNumberedAndSummed) {
  AnswerFormat format = Format(OpenAiKind::kCompletion);
  format.parts = 2;
  format.n = 2;
  OpenAiAnswer answer(format);
  std::string out;
  answer.Add(1, Started{}, &out);
  EXPECT_FALSE(answer.started());
  answer.Add(0, Started{}, &out);
  EXPECT_TRUE(answer.started());
  answer.Add(1, Delta{.choice = 1, .text = "last"}, &out);
  answer.Add(0, Delta{.choice = 0, .text = "first"}, &out);
  answer.Add(0, Usage{.prompt_tokens = 1, .completion_tokens = 2}, &out);
  answer.Add(1, Usage{.prompt_tokens = 10, .completion_tokens = 20}, &out);
  const json body = json::parse(answer.Body());
  EXPECT_EQ(body["choices"][0]["text"], "first");
  EXPECT_EQ(body["choices"][3]["text"], "last");
  EXPECT_EQ(body["usage"]["total_tokens"], 33);
}

TEST(OpenAiAnswerTest, AnErrorInMidStreamIsAnEvent) {
  const std::vector<std::string> events = Events(ErrorChunk({.message = "gone\nnow"}));
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(json::parse(events[0])["error"]["message"], "gone\nnow");
}

TEST(JsonTextTest, IsAlwaysJson) {
  std::string all;
  for (int c = 0; c < 256; ++c) all.push_back(static_cast<char>(c));
  std::string text;
  AppendJsonString(all, &text);
  const json back = json::parse(text);
  EXPECT_EQ(back.get<std::string>().substr(0, 128), all.substr(0, 128));
  for (const double value : {-0.1, -1e-300, 0.0, -123456789.123}) {
    std::string number;
    AppendJsonLogprob(value, &number);
    EXPECT_EQ(json::parse(number).get<double>(), value);
  }
}

}  // namespace
}  // namespace penstock::gateway
