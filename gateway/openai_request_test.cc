// SPDX-License-Identifier: Apache-2.0
#include "gateway/openai_request.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace penstock::gateway {
namespace {

constexpr std::size_t kBytesMax = std::size_t{1} << 20;
constexpr auto kChat = OpenAiKind::kChat;
constexpr auto kCompletion = OpenAiKind::kCompletion;

OpenAiRequest Good(OpenAiKind kind, const std::string& body) {
  OpenAiRequest request;
  const std::optional<ApiError> error = ParseOpenAiRequest(kind, body, kBytesMax, &request);
  EXPECT_FALSE(error.has_value()) << body << ": " << error->message;
  return request;
}

ApiError Bad(OpenAiKind kind, const std::string& body) {
  OpenAiRequest request;
  const std::optional<ApiError> error = ParseOpenAiRequest(kind, body, kBytesMax, &request);
  EXPECT_TRUE(error.has_value()) << body;
  return error.value_or(ApiError{});
}

std::string ChatWith(const std::string& fields) {
  return absl::StrCat(R"({"messages":[{"role":"user","content":"hi"}])", fields.empty() ? "" : ",",
                      fields, "}");
}

std::string PromptWith(const std::string& fields) {
  return absl::StrCat(R"({"prompt":"hi")", fields.empty() ? "" : ",", fields, "}");
}

TEST(OpenAiRequestTest, ReadsAllThatIsUnderstood) {
  const OpenAiRequest request = Good(kChat, ChatWith(R"(
      "model":"m","max_tokens":7,"temperature":0.5,"top_p":0.25,"n":3,"stop":["a","b"],"seed":11,
      "presence_penalty":1.5,"frequency_penalty":-1.5,"logit_bias":{"5":-100,"6":2.5},
      "logprobs":true,"top_logprobs":4,"stream":true,"stream_options":{"include_usage":true},
      "user":"u","top_k":40,"min_p":0.1,"repetition_penalty":1.1,"typical_p":0.9,"ignore_eos":true,
      "stop_token_ids":[1,2],"priority":-3,"timeout":1.5,"cache_salt":"s","metadata":{"a":"b"},
      "never_heard_of":[1]
  )"));
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
  ASSERT_EQ(request.requests.size(), 1u);
  const Request& one = request.requests[0];
  EXPECT_EQ(one.model, "m");
  EXPECT_EQ(one.max_tokens, 7);
  EXPECT_EQ(one.sampling.temperature, 0.5);
  EXPECT_EQ(one.sampling.top_p, 0.25);
  EXPECT_EQ(one.n, 3);
  EXPECT_EQ(one.stops, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(one.sampling.seed, 11u);
  EXPECT_EQ(one.sampling.presence_penalty, 1.5);
  EXPECT_EQ(one.sampling.frequency_penalty, -1.5);
  EXPECT_EQ(one.sampling.logit_bias, (std::map<TokenId, double>{{5, -100}, {6, 2.5}}));
  EXPECT_EQ(one.sampling.logprobs, 4);
  EXPECT_EQ(one.sampling.top_k, 40);
  EXPECT_EQ(one.sampling.min_p, 0.1);
  EXPECT_EQ(one.sampling.repetition_penalty, 1.1);
  EXPECT_EQ(one.sampling.typical_p, 0.9);
  EXPECT_TRUE(one.ignore_eos);
  EXPECT_EQ(one.stop_tokens, (std::vector<TokenId>{1, 2}));
  EXPECT_EQ(one.priority, -3);
  EXPECT_EQ(one.end_within, std::chrono::milliseconds(1500));
  EXPECT_EQ(one.tenant, "s");
  EXPECT_EQ(std::get<Request::Chat>(one.prompt)[0].content, "hi");
}

TEST(OpenAiRequestTest, LeavesDefaultsWhereNothingIsSaid) {
  const OpenAiRequest chat = Good(kChat, ChatWith(""));
  EXPECT_FALSE(chat.stream);
  EXPECT_EQ(chat.requests[0].max_tokens, 0);  // What the context leaves.
  EXPECT_EQ(chat.requests[0].n, 1);
  EXPECT_EQ(chat.requests[0].sampling.temperature, 1);
  EXPECT_EQ(chat.requests[0].sampling.logprobs, -1);
  EXPECT_FALSE(chat.requests[0].sampling.seed.has_value());
  EXPECT_EQ(Good(kCompletion, PromptWith("")).requests[0].max_tokens, 16);
  // null is as good as nothing.
  EXPECT_EQ(Good(kChat, ChatWith(R"("temperature":null,"stop":null,"seed":null,"tools":null)"))
                .requests[0]
                .sampling.temperature,
            1);
}

TEST(OpenAiRequestTest, ReadsWhatHasSeveralForms) {
  EXPECT_EQ(Good(kChat, ChatWith(R"("stop":"x")")).requests[0].stops,
            std::vector<std::string>{"x"});
  EXPECT_EQ(Good(kChat, ChatWith(R"("max_completion_tokens":9)")).requests[0].max_tokens, 9);
  EXPECT_EQ(Good(kChat, ChatWith(R"("top_k":-1)")).requests[0].sampling.top_k, 0);
  EXPECT_EQ(Good(kChat, ChatWith(R"("seed":-1)")).requests[0].sampling.seed, ~std::uint64_t{0});
  EXPECT_EQ(Good(kChat, ChatWith(R"("logprobs":true)")).requests[0].sampling.logprobs, 0);
  EXPECT_EQ(Good(kChat, ChatWith(R"("logprobs":false)")).requests[0].sampling.logprobs, -1);
  EXPECT_EQ(Good(kCompletion, PromptWith(R"("logprobs":3)")).requests[0].sampling.logprobs, 3);
  const Request::Chat chat =
      std::get<Request::Chat>(Good(kChat,
                                   R"({"messages":[{"role":"developer","content":"be kind"},
               {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]})")
                                  .requests[0]
                                  .prompt);
  ASSERT_EQ(chat.size(), 2u);
  EXPECT_EQ(chat[0].role, "system");
  EXPECT_EQ(chat[1].content, "a\nb");
}

TEST(OpenAiRequestTest, ReadsPromptsOfEveryKind) {
  struct Case {
    const char* prompt;
    std::size_t requests;
  };
  for (const Case& c : {Case{R"("a")", 1}, Case{"[1,2,3]", 1}, Case{R"(["a","b"])", 2},
                        Case{"[[1,2],[3]]", 2}, Case{R"(["a",[1]])", 2}, Case{R"([""])", 1}}) {
    SCOPED_TRACE(c.prompt);
    const OpenAiRequest request = Good(kCompletion, absl::StrCat(R"({"prompt":)", c.prompt, "}"));
    EXPECT_EQ(request.requests.size(), c.requests);
  }
  const OpenAiRequest two = Good(kCompletion, R"({"prompt":[[1,2],[3]],"seed":4,"max_tokens":5})");
  EXPECT_EQ(std::get<Request::Tokens>(two.requests[0].prompt), (Request::Tokens{1, 2}));
  EXPECT_EQ(std::get<Request::Tokens>(two.requests[1].prompt), (Request::Tokens{3}));
  EXPECT_EQ(two.requests[1].sampling.seed, 4u);
  EXPECT_EQ(two.requests[1].max_tokens, 5);
}

TEST(OpenAiRequestTest, NamesTheFieldThatIsWrong) {
  struct Case {
    OpenAiKind kind;
    const char* fields;
    const char* param;
    const char* says;  // A part of the message.
  };
  for (const Case& c : std::initializer_list<Case>{
           {kChat, R"("temperature":"hot")", "temperature", "must be a number, got \"hot\""},
           {kChat, R"("temperature":-1)", "temperature", "got -1"},
           {kChat, R"("temperature":1e999)", "", "not valid JSON"},
           {kChat, R"("top_p":0)", "top_p", "got 0"},
           {kChat, R"("n":0)", "n", "from 1 to 64, got 0"},
           {kChat, R"("n":65)", "n", "from 1 to 64, got 65"},
           {kChat, R"("n":1.5)", "n", "got 1.5"},
           {kChat, R"("max_tokens":0)", "max_tokens", "got 0"},
           {kChat, R"("max_tokens":99999999999)", "max_tokens", "got 99999999999"},
           {kChat, R"("max_completion_tokens":"many")", "max_completion_tokens", "got \"many\""},
           {kChat, R"("stop":5)", "stop", "a string or an array of strings, got 5"},
           {kChat, R"("stop":["a",5])", "stop[1]", "must be a string, got 5"},
           {kChat, R"("stop":[""])", "stop[0]", "got 0"},
           {kChat, R"("seed":1.5)", "seed", "got 1.5"},
           {kChat, R"("seed":"x")", "seed", "got \"x\""},
           {kChat, R"("logit_bias":[1])", "logit_bias", "must be an object"},
           {kChat, R"("logit_bias":{"x":1})", "logit_bias", "got \"x\""},
           {kChat, R"("logit_bias":{"1":"a"})", "logit_bias.1", "must be a number"},
           {kChat, R"("logit_bias":{"1":101})", "logit_bias", "from -100 to 100, got 101"},
           {kChat, R"("logprobs":3)", "logprobs", "true or false, got 3"},
           {kChat, R"("top_logprobs":3)", "top_logprobs", "needs logprobs"},
           {kChat, R"("logprobs":true,"top_logprobs":21)", "top_logprobs", "from 0 to 20, got 21"},
           {kCompletion, R"("logprobs":true)", "logprobs", "got true"},
           {kChat, R"("stream":1)", "stream", "true or false, got 1"},
           {kChat, R"("stream_options":{"include_usage":true})", "stream_options", "needs stream"},
           {kChat, R"("stream":true,"stream_options":{"include_usage":1})",
            "stream_options.include_usage", "got 1"},
           {kChat, R"("model":7)", "model", "must be a string, got 7"},
           {kChat, R"("priority":1.5)", "priority", "got 1.5"},
           {kChat, R"("timeout":0)", "timeout", "above 0"},
           {kChat, R"("timeout":"1")", "timeout", "got \"1\""},
           {kChat, R"("stop_token_ids":[-1])", "stop_token_ids", "token ids"},
           {kCompletion, R"("echo":true)", "echo", "not supported"},
           {kCompletion, R"("suffix":"x")", "suffix", "not supported"},
           {kCompletion, R"("best_of":2)", "best_of", "got 2"},
           {kChat, R"("tools":[{"type":"function"}])", "tools", "not supported"},
           {kChat, R"("tool_choice":"required")", "tool_choice", "not supported"},
           {kChat, R"("response_format":{"type":"json_object"})", "response_format",
            "not supported"},
           {kChat, R"("response_format":{"type":["text"]})", "response_format", "not supported"},
           {kChat, R"("modalities":["audio"])", "modalities", "not supported"},
           {kChat, R"("guided_json":{"a":1})", "guided_json", "not supported"},
           {kChat, R"("min_tokens":3)", "min_tokens", "not supported"},
       }) {
    SCOPED_TRACE(c.fields);
    const ApiError error = Bad(c.kind, c.kind == kChat ? ChatWith(c.fields) : PromptWith(c.fields));
    EXPECT_EQ(error.http_status, 400);
    EXPECT_EQ(error.type, "invalid_request_error");
    EXPECT_EQ(error.param, c.param);
    EXPECT_NE(error.message.find(c.says), std::string::npos) << error.message;
  }
}

TEST(OpenAiRequestTest, WhatChangesNothingIsNotRefused) {
  Good(kChat, ChatWith(R"("tools":[],"tool_choice":"none","response_format":{"type":"text"},
                          "modalities":["text"],"n":2,"best_of":2,"min_tokens":0,"echo":false,
                          "skip_special_tokens":true,"parallel_tool_calls":true,"store":true)"));
}

TEST(OpenAiRequestTest, NamesTheMessageThatIsWrong) {
  struct Case {
    const char* messages;
    const char* param;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"5", "messages"},
           {"[]", "messages"},
           {"[5]", "messages[0]"},
           {R"([{"content":"x"}])", "messages[0].role"},
           {R"([{"role":5,"content":"x"}])", "messages[0].role"},
           {R"([{"role":"king","content":"x"}])", "messages[0].role"},
           {R"([{"role":"user"}])", "messages[0].content"},
           {R"([{"role":"user","content":5}])", "messages[0].content"},
           {R"([{"role":"user","content":[5]}])", "messages[0].content[0]"},
           {R"([{"role":"user","content":[{"type":"text"}]}])", "messages[0].content[0]"},
           {R"([{"role":"user","content":"a"},{"role":"user","content":[{"type":"image_url"}]}])",
            "messages[1].content[0]"},
           {R"([{"role":"assistant","content":"x","tool_calls":[{"id":"1"}]}])",
            "messages[0].tool_calls"},
       }) {
    SCOPED_TRACE(c.messages);
    EXPECT_EQ(Bad(kChat, absl::StrCat(R"({"messages":)", c.messages, "}")).param, c.param);
  }
  EXPECT_EQ(Bad(kChat, "{}").message, "messages is missing");
}

TEST(OpenAiRequestTest, NamesThePromptThatIsWrong) {
  for (const auto& [prompt, param] : std::initializer_list<std::pair<const char*, const char*>>{
           {"5", "prompt"},
           {"[]", "prompt"},
           {"[1,\"a\"]", "prompt"},
           {"[1.5]", "prompt"},
           {"[true]", "prompt"},
           {"[-1]", "prompt"},
           {"[2147483648]", "prompt"},
           {"[\"a\",5]", "prompt[1]"},
           {"[[1],[]]", "prompt[1]"},
           {"[[[1]]]", "prompt[0]"},
       }) {
    SCOPED_TRACE(prompt);
    EXPECT_EQ(Bad(kCompletion, absl::StrCat(R"({"prompt":)", prompt, "}")).param, param);
  }
  std::string many = R"({"prompt":[)";
  for (int i = 0; i < 65; ++i) absl::StrAppend(&many, i == 0 ? "" : ",", "\"a\"");
  EXPECT_NE(Bad(kCompletion, many + "]}").message.find("at most 64 entries, got 65"),
            std::string::npos);
  const ApiError product = Bad(kCompletion, R"({"prompt":["a","b"],"n":33})");
  EXPECT_EQ(product.param, "n");
  EXPECT_NE(product.message.find("at most 64, got 33 times 2"), std::string::npos);
}

TEST(OpenAiRequestTest, HostileBodiesAreRefused) {
  for (const char* body : {"", "{", "[]", "5", "nul", "\xff\xfe", R"({"messages":"\ud800"})",
                           R"({"prompt":"a","prompt":"b"})", "{\"prompt\":\"\xff\"}"}) {
    SCOPED_TRACE(body);
    EXPECT_EQ(Bad(kCompletion, body).http_status, 400);
  }
  const std::string deep = R"({"a":)" + std::string(5000, '[') + std::string(5000, ']') + "}";
  EXPECT_NE(Bad(kChat, deep).message.find("nests deeper than 64"), std::string::npos);
  const std::string longer =
      PromptWith(absl::StrCat("\"x\":\"", std::string(kBytesMax, 'x'), "\""));
  EXPECT_NE(Bad(kCompletion, longer).message.find("the limit is 1048576"), std::string::npos);
  std::string wide = R"({"a":[0)";
  for (std::size_t i = 0; i < kJsonValuesMax; ++i) wide += ",0";
  OpenAiRequest request;
  const auto error = ParseOpenAiRequest(kChat, wide + "]}", wide.size() + 2, &request);
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(error->message.find("more than 1048576 values"), std::string::npos) << error->message;
}

TEST(OpenAiErrorTest, SaysWhatClientsKnow) {
  struct Case {
    absl::Status status;
    int http_status;
    const char* code;
  };
  absl::Status overflow = absl::InvalidArgumentError("the prompt has 9 tokens, the context is 8");
  overflow.SetPayload(kContextOverflow, absl::Cord());
  for (const Case& c : {Case{overflow, 400, "context_length_exceeded"},
                        Case{absl::InvalidArgumentError("x"), 400, ""},
                        Case{absl::NotFoundError("x"), 404, "model_not_found"},
                        Case{absl::AlreadyExistsError("x"), 409, "request_id_in_use"},
                        Case{absl::ResourceExhaustedError("x"), 429, "rate_limit_exceeded"},
                        Case{absl::UnavailableError("x"), 503, "service_unavailable"},
                        Case{absl::DeadlineExceededError("x"), 504, "deadline_exceeded"},
                        Case{absl::InternalError("x"), 500, ""}}) {
    SCOPED_TRACE(c.status.ToString());
    const ApiError error = ToApiError(c.status);
    EXPECT_EQ(error.http_status, c.http_status);
    EXPECT_EQ(error.code, c.code);
    const nlohmann::json json = nlohmann::json::parse(ErrorJson(error));
    EXPECT_EQ(json["error"]["message"], std::string(c.status.message()));
    EXPECT_TRUE(json["error"].contains("param"));
  }
  EXPECT_EQ(ToApiError(absl::InvalidArgumentError("length of stop[2] must be x")).param, "stop[2]");
  EXPECT_EQ(nlohmann::json::parse(ErrorJson({.message = "\xff\"\n"}))["error"]["message"],
            "\xEF\xBF\xBD\"\n");
}

}  // namespace
}  // namespace penstock::gateway
