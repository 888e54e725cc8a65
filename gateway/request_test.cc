// SPDX-License-Identifier: Apache-2.0
#include "gateway/request.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace penstock::gateway {
namespace {

std::shared_ptr<const ModelFront> TinyModel() {
  static const auto model =
      ModelFront::Open("tiny", std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/tiny/llama3");
  return *model;
}

Request Good() {
  Request request;
  request.id = "r-1";
  request.model = "tiny";
  request.prompt.emplace<Request::Text>("hello");
  return request;
}

Request::Chat Messages(std::size_t count, const char* role, std::string content) {
  return Request::Chat(count, model::ChatMessage{role, std::move(content)});
}

TEST(RequestTest, EveryFaultNamesFieldValueAndLimits) {
  struct Case {
    const char* want;  // Empty: nothing is wrong.
    std::function<void(Request&)> spoil;
  };
  const std::vector<Case> cases = {
      {"", [](Request&) {}},
      {"", [](Request& r) { r.id = std::string(64, '~'); }},
      {"length of request_id must be from 1 to 64, got 65",
       [](Request& r) { r.id = std::string(65, 'a'); }},
      {"request_id must be printable ASCII without spaces; byte 1 is 32",
       [](Request& r) { r.id = "a b"; }},
      {"length of request_id (with n above 1) must be from 0 to 61, got 62",
       [](Request& r) { r.id = std::string(62, 'a'), r.n = 2; }},
      {"n must be from 1 to 64, got 0", [](Request& r) { r.n = 0; }},
      {"n must be from 1 to 64, got 65", [](Request& r) { r.n = 65; }},
      {"max_tokens must be from 0 to 2147483647, got -1", [](Request& r) { r.max_tokens = -1; }},
      {"temperature must be from 0 to 100, got nan",
       [](Request& r) { r.sampling.temperature = std::nan(""); }},
      {"top_p must be above 0 and at most 1, got 0", [](Request& r) { r.sampling.top_p = 0; }},
      {"typical_p must be above 0 and at most 1, got 2",
       [](Request& r) { r.sampling.typical_p = 2; }},
      {"min_p must be from 0 to 1, got -1", [](Request& r) { r.sampling.min_p = -1; }},
      {"top_k must be from 0 to 2147483647, got -5", [](Request& r) { r.sampling.top_k = -5; }},
      {"presence_penalty must be from -2 to 2, got inf",
       [](Request& r) { r.sampling.presence_penalty = std::numeric_limits<double>::infinity(); }},
      {"logprobs must be from -1 to 20, got 21", [](Request& r) { r.sampling.logprobs = 21; }},
      {"logit_bias of token 5 must be from -100 to 100, got 101",
       [](Request& r) { r.sampling.logit_bias[5] = 101; }},
      {"number of entries in logit_bias must be from 0 to 300, got 301",
       [](Request& r) {
         for (TokenId i = 0; i < 301; ++i) r.sampling.logit_bias[i] = 0;
       }},
      {"number of stop strings must be from 0 to 16, got 17",
       [](Request& r) { r.stops.assign(17, "x"); }},
      {"length of stop[1] must be from 1 to 256, got 0",
       [](Request& r) {
         r.stops = {"a", ""};
       }},
      {"length of stop[0] must be from 1 to 256, got 257",
       [](Request& r) { r.stops = {std::string(257, 'a')}; }},
      {"stop[0] must be valid UTF-8; byte 1 of 2 is not", [](Request& r) { r.stops = {"a\xC3"}; }},
      {"number of stop tokens must be from 0 to 64, got 65",
       [](Request& r) { r.stop_tokens.assign(65, 1); }},
      {"length of tenant must be from 0 to 64, got 65",
       [](Request& r) { r.tenant = std::string(65, 't'); }},
      {"prompt must be valid UTF-8; byte 0 of 1 is not",
       [](Request& r) { r.prompt.emplace<Request::Text>("\xFF"); }},
      {"length of prompt must be from 0 to 16777216, got 16777217",
       [](Request& r) { r.prompt.emplace<Request::Text>((16 << 20) + 1, 'a'); }},
      {"number of messages must be from 1 to 4096, got 0",
       [](Request& r) { r.prompt = Request::Chat(); }},
      {"number of messages must be from 1 to 4096, got 4097",
       [](Request& r) { r.prompt = Messages(4097, "user", ""); }},
      {"messages[0].role must be system, user, assistant or tool, got '<|im_end|>'",
       [](Request& r) { r.prompt = Messages(2, "<|im_end|>", "b"); }},
      {"messages[0].content must be valid UTF-8; byte 1 of 2 is not",
       [](Request& r) { r.prompt = Messages(1, "user", "a\xC0"); }},
      {"bytes in messages must be from 0 to 16777216, got 16777218",
       [](Request& r) { r.prompt = Messages(2, "user", std::string((8 << 20) + 1, 'a')); }},
      {"number of prompt tokens must be from 1 to 16777216, got 0",
       [](Request& r) { r.prompt = Request::Tokens(); }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.want);
    Request request = Good();
    c.spoil(request);
    const absl::Status status = CheckRequest(request);
    EXPECT_EQ(status.message(), c.want);
    EXPECT_EQ(status.ok(), *c.want == '\0');
  }
}

TEST(RequestTest, PreparesAgainstTheModel) {
  struct Case {
    const char* name;
    std::size_t tokens;
    std::int32_t max_tokens, want;  // 0: refused.
  };
  for (const Case& c :
       {Case{"what the context leaves", 10, 0, 91}, Case{"as asked", 10, 5, 5},
        Case{"cut", 10, 1000, 91}, Case{"full", 100, 0, 1}, Case{"over", 101, 0, 0}}) {
    SCOPED_TRACE(c.name);
    Request request = Good();
    request.prompt = Request::Tokens(c.tokens, 5);
    request.max_tokens = c.max_tokens;
    const auto prepared = Prepare(std::move(request), TinyModel(),
                                  {.block_tokens = 32, .context_tokens = 100}, 77, CivilTime());
    if (c.want == 0) {
      EXPECT_EQ(prepared.status().message(),
                "the prompt has 101 tokens, the context of model 'tiny' is 100");
      continue;
    }
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    EXPECT_EQ(prepared->max_tokens, c.want);
    EXPECT_EQ(prepared->sampling.seed, 77U);
    EXPECT_EQ(prepared->chains, ChainsOf(prepared->prompt, "", 32));
    EXPECT_EQ(prepared->root, RootChain("", 32));
    EXPECT_EQ(prepared->tenant, 0U);
  }
}

TEST(RequestTest, OfASaltARootAndANumberAreLeft) {
  Request request = Good();
  request.prompt = Request::Tokens(70, 5);
  request.tenant = "salt";
  const auto prepared = Prepare(std::move(request), TinyModel(),
                                {.block_tokens = 32, .context_tokens = 100}, 77, CivilTime());
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(prepared->root, RootChain("salt", 32));
  EXPECT_EQ(prepared->tenant, TenantOf("salt"));
  EXPECT_EQ(prepared->chains, ChainsOf(prepared->prompt, "salt", 32));
}

TEST(RequestTest, ATextThatCannotFitIsNotTokenized) {
  Request request = Good();
  request.prompt.emplace<Request::Text>(16 << 20, 'a');
  const absl::Status status = Prepare(std::move(request), TinyModel(),
                                      {.block_tokens = 32, .context_tokens = 100}, 0, CivilTime())
                                  .status();
  EXPECT_EQ(status.message(), absl::StrCat("the prompt has 16777216 bytes, that is at least ",
                                           16777216 / TinyModel()->token_bytes_max(),
                                           " tokens, the context of model 'tiny' is 100"));
  EXPECT_TRUE(status.GetPayload(kContextOverflow).has_value());
}

TEST(RequestTest, TokensMustBeInTheVocabulary) {
  const std::int32_t vocab = TinyModel()->vocab();
  const ModelLimits limits{.block_tokens = 32, .context_tokens = 100};
  Request prompt = Good();
  prompt.prompt = Request::Tokens{1, vocab};
  Request stop = Good();
  stop.stop_tokens = {-1};
  Request bias = Good();
  bias.sampling.logit_bias[vocab] = 1;
  for (Request* const request : {&prompt, &stop, &bias}) {
    const absl::Status status =
        Prepare(std::move(*request), TinyModel(), limits, 0, CivilTime()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(absl::StrCat("must be token ids from 0 to ", vocab - 1)),
              absl::string_view::npos)
        << status;
  }
}

TEST(RequestTest, AModelWithoutAChatTemplateSaysSo) {
  Request request = Good();
  request.prompt = Messages(1, "user", "hello");
  const absl::Status status = Prepare(std::move(request), TinyModel(),
                                      {.block_tokens = 32, .context_tokens = 100}, 0, CivilTime())
                                  .status();
  EXPECT_EQ(TinyModel()->has_chat_template(), status.ok()) << status;
}

}  // namespace
}  // namespace penstock::gateway
