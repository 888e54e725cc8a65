// SPDX-License-Identifier: Apache-2.0
#include "gateway/openai_request.h"

#include <array>
#include <charconv>
#include <chrono>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "gateway/json_fields.h"
#include "model/json.h"

namespace penstock::gateway {
namespace {

using nlohmann::json;

constexpr std::size_t kReuseBytesMax = 16;
constexpr std::int32_t kTokensMax = std::numeric_limits<std::int32_t>::max();

// What would give another answer than was asked for, if it were ignored.
constexpr std::array<std::string_view, 37> kRefused = {
    "tools", "functions", "function_call", "audio", "web_search_options", "suffix", "echo",
    // vLLM's and SGLang's.
    "use_beam_search", "min_tokens", "prompt_logprobs", "include_stop_str_in_output", "bad_words",
    "allowed_token_ids", "truncate_prompt_tokens", "continue_final_message", "chat_template",
    "chat_template_kwargs", "documents", "logits_processors", "guided_json", "guided_regex",
    "guided_choice", "guided_grammar", "structured_outputs", "json_schema", "regex", "ebnf",
    "return_token_ids", "return_tokens_as_token_ids", "prompt_embeds", "mm_processor_kwargs",
    "lora_path", "no_stop_trim", "custom_logit_processor", "session_params", "input_ids",
    "return_hidden_states"};

void ReadSampling(JsonFields& fields, SamplingParams* params) {
  fields.Number("temperature", &params->temperature);
  fields.Number("top_p", &params->top_p);
  fields.Number("min_p", &params->min_p);
  fields.Number("typical_p", &params->typical_p);
  fields.Number("repetition_penalty", &params->repetition_penalty);
  fields.Number("presence_penalty", &params->presence_penalty);
  fields.Number("frequency_penalty", &params->frequency_penalty);
  fields.Int("top_k", -1, kTokensMax, &params->top_k);
  if (params->top_k < 0) params->top_k = 0;  // vLLM's way to say: all.
  fields.Seed("seed", &params->seed);
}

void ReadLogitBias(JsonFields& fields, std::map<TokenId, double>* bias) {
  const json* const found = fields.Find("logit_bias");
  if (found == nullptr) return;
  if (!found->is_object()) return fields.Wrong("logit_bias", "an object", *found);
  for (const auto& [name, value] : found->items()) {
    TokenId token = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), token);
    if (error != std::errc() || end != name.data() + name.size() || name.empty()) {
      return fields.Fail(
          "logit_bias",
          absl::StrCat("the names in logit_bias must be token ids, got ", model::Quoted(name)));
    }
    if (!value.is_number()) {
      return fields.Wrong(absl::StrCat("logit_bias.", token), "a number", value);
    }
    (*bias)[token] = value.get<double>();
  }
}

void ReadLogprobs(OpenAiKind kind, JsonFields& fields, std::int32_t* logprobs) {
  if (kind == OpenAiKind::kCompletion) return fields.Int("logprobs", 0, kLogprobsMax, logprobs);
  bool wanted = false;
  std::int32_t top = 0;
  fields.Bool("logprobs", &wanted);
  fields.Int("top_logprobs", 0, kLogprobsMax, &top);
  if (wanted) {
    *logprobs = top;
  } else if (top > 0) {
    fields.Fail("top_logprobs", "top_logprobs needs logprobs to be true");
  }
}

void ReadReuse(JsonFields& fields, LossClass* reuse) {
  std::string name;
  fields.Text("reuse", kReuseBytesMax, &name);
  if (name.empty()) return;
  const absl::StatusOr<LossClass> loss = ParseLossClass(name);
  if (loss.ok()) {
    *reuse = *loss;
  } else {
    fields.Fail("reuse", absl::StrCat("reuse: ", loss.status().message()));
  }
}

void ReadTokensMax(OpenAiKind kind, JsonFields& fields, std::int32_t* max_tokens) {
  if (kind == OpenAiKind::kCompletion) *max_tokens = kCompletionTokensDefault;
  fields.Int("max_tokens", 1, kTokensMax, max_tokens);
  if (kind == OpenAiKind::kChat) fields.Int("max_completion_tokens", 1, kTokensMax, max_tokens);
}

void ReadTimeout(JsonFields& fields, std::optional<Duration>* end_within) {
  const json* const found = fields.Find("timeout");
  if (found == nullptr) return;
  const double most = ToSeconds(kEndWithinMax);
  const double seconds = found->is_number() ? found->get<double>() : 0;
  if (!(seconds > 0 && seconds <= most)) {
    return fields.Wrong("timeout", absl::StrCat("seconds, above 0 and at most ", most), *found);
  }
  *end_within = FromSeconds(seconds);
}

void ReadStream(JsonFields& fields, OpenAiRequest* out) {
  fields.Bool("stream", &out->stream);
  const json* const options = fields.Find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return fields.Wrong("stream_options", "an object", *options);
  if (!out->stream) {
    return fields.Fail("stream_options", "stream_options needs stream to be true");
  }
  const json* const usage = model::Member(*options, "include_usage");
  if (usage == nullptr) return;
  if (!usage->is_boolean()) {
    return fields.Wrong("stream_options.include_usage", "true or false", *usage);
  }
  out->include_usage = usage->get<bool>();
}

// Features of which one value asks for nothing.
void RefuseFeatures(JsonFields& fields, std::int32_t n) {
  for (const std::string_view name : kRefused) fields.Refuse(name);
  const json* const format = fields.Find("response_format");
  if (format != nullptr && !(format->is_object() && format->value("type", json()) == "text")) {
    fields.Fail("response_format", R"(response_format is not supported but for {"type": "text"})");
  }
  const json* const choice = fields.Find("tool_choice");
  if (choice != nullptr && *choice != "none" && *choice != "auto") {
    fields.Fail("tool_choice", "tool_choice is not supported: there are no tools");
  }
  const json* const modalities = fields.Find("modalities");
  if (modalities != nullptr && *modalities != json::array({"text"})) {
    fields.Fail("modalities", R"(modalities is not supported but for ["text"])");
  }
  const json* const best = fields.Find("best_of");
  if (best != nullptr && *best != n) {
    fields.Fail("best_of",
                absl::StrCat("best_of is not supported but for the value of n, which is ", n,
                             ", got ", model::Brief(*best)));
  }
  for (const std::string_view name : {"add_generation_prompt", "skip_special_tokens"}) {
    const json* const found = fields.Find(name);
    if (found != nullptr && *found != true) {
      fields.Fail(name, absl::StrCat(ToAbsl(name), " is not supported but for true"));
    }
  }
}

// A string, or the parts of one.
void ReadContent(JsonFields& fields, const std::string& param, const json& content,
                 std::string* text) {
  if (content.is_string()) {
    *text = content.get<std::string>();
    return;
  }
  if (!content.is_array()) {
    return fields.Wrong(param, "a string or an array of text parts", content);
  }
  for (std::size_t i = 0; i < content.size(); ++i) {
    const std::string at = absl::StrCat(param, "[", i, "]");
    const json* const type = model::Member(content[i], "type");
    if (type == nullptr || !type->is_string()) {
      return fields.Fail(at, absl::StrCat(at, " must be an object with a type"));
    }
    if (*type != "text") {
      return fields.Fail(at, absl::StrCat(at, ".type is not supported but for \"text\", got ",
                                          model::Brief(*type)));
    }
    const json* const part = model::Member(content[i], "text");
    if (part == nullptr || !part->is_string()) {
      return fields.Fail(at, absl::StrCat(at, ".text must be a string"));
    }
    if (i > 0) text->push_back('\n');
    text->append(part->get_ref<const std::string&>());
  }
}

void ReadMessage(JsonFields& fields, const std::string& param, const json& message,
                 model::ChatMessage* out) {
  if (!message.is_object()) return fields.Wrong(param, "an object", message);
  const json* const role = model::Member(message, "role");
  if (role == nullptr || !role->is_string()) {
    return fields.Fail(param + ".role", absl::StrCat(param, ".role must be a string"));
  }
  out->role = *role == "developer" ? "system" : role->get<std::string>();
  for (const std::string_view name : {"tool_calls", "function_call", "audio"}) {
    const json* const found = model::Member(message, name);
    if (found == nullptr || found->empty()) continue;
    const std::string at = absl::StrCat(param, ".", ToAbsl(name));
    return fields.Fail(at, absl::StrCat(at, " is not supported"));
  }
  const json* const content = model::Member(message, "content");
  if (content == nullptr) {
    return fields.Fail(param + ".content",
                       absl::StrCat(param, ".content must be a string or an array of text parts"));
  }
  ReadContent(fields, param + ".content", *content, &out->content);
}

void ReadMessages(JsonFields& fields, OpenAiRequest* out) {
  const json* const messages = fields.Find("messages");
  if (messages == nullptr) return fields.Fail("messages", "messages is missing");
  if (!messages->is_array()) return fields.Wrong("messages", "an array", *messages);
  if (messages->empty() || messages->size() > kMessagesMax) {
    return fields.Fail("messages", absl::StrCat("messages must have from 1 to ", kMessagesMax,
                                                " entries, got ", messages->size()));
  }
  Request::Chat chat(messages->size());
  for (std::size_t i = 0; i < chat.size() && !fields.error(); ++i) {
    ReadMessage(fields, absl::StrCat("messages[", i, "]"), (*messages)[i], &chat[i]);
  }
  out->requests.emplace_back().prompt = std::move(chat);
}

void AddPrompt(JsonFields& fields, std::string_view param, const json& prompt, OpenAiRequest* out) {
  if (prompt.is_string()) {
    out->requests.emplace_back().prompt = prompt.get<std::string>();
    return;
  }
  constexpr std::string_view kWant = "a string or an array of token ids";
  if (!prompt.is_array() || prompt.empty()) return fields.Wrong(param, kWant, prompt);
  std::optional<std::vector<TokenId>> tokens = TokensOf(prompt);
  if (!tokens.has_value()) return fields.Wrong(param, kWant, prompt);
  out->requests.emplace_back().prompt = *std::move(tokens);
}

void ReadPrompts(JsonFields& fields, OpenAiRequest* out) {
  const json* const prompt = fields.Find("prompt");
  if (prompt == nullptr) return fields.Fail("prompt", "prompt is missing");
  const bool several = prompt->is_array() && !prompt->empty() &&
                       ((*prompt)[0].is_string() || (*prompt)[0].is_array());
  if (!several) return AddPrompt(fields, "prompt", *prompt, out);
  if (prompt->size() > kPromptsMax) {
    return fields.Fail("prompt", absl::StrCat("prompt must have at most ", kPromptsMax,
                                              " entries, got ", prompt->size()));
  }
  for (std::size_t i = 0; i < prompt->size() && !fields.error(); ++i) {
    AddPrompt(fields, absl::StrCat("prompt[", i, "]"), (*prompt)[i], out);
  }
}

void CheckAnswers(JsonFields& fields, const OpenAiRequest& request) {
  const std::size_t prompts = request.requests.size();
  const auto n = static_cast<std::size_t>(request.requests[0].n);
  if (prompts * n > static_cast<std::size_t>(kAnswersMax)) {
    fields.Fail("n", absl::StrCat("n times the number of prompts must be at most ", kAnswersMax,
                                  ", got ", n, " times ", prompts));
  }
}

}  // namespace

std::optional<ApiError> ParseOpenAiRequest(OpenAiKind kind, std::string_view body,
                                           std::size_t bytes_max, OpenAiRequest* out) {
  const absl::StatusOr<json> object =
      model::ParseJsonObject(body, "the body", bytes_max, kJsonValuesMax);
  if (!object.ok()) return ToApiError(object.status());
  JsonFields fields(*object);
  out->kind = kind;
  Request request;
  fields.Text("model", kModelNameBytesMax, &request.model);
  fields.Int("n", 1, kAnswersMax, &request.n);
  ReadTokensMax(kind, fields, &request.max_tokens);
  ReadSampling(fields, &request.sampling);
  ReadLogitBias(fields, &request.sampling.logit_bias);
  ReadLogprobs(kind, fields, &request.sampling.logprobs);
  fields.Strings("stop", kStopsMax, &request.stops);
  fields.Tokens("stop_token_ids", kStopTokensMax, &request.stop_tokens);
  fields.Bool("ignore_eos", &request.ignore_eos);
  fields.Int("priority", -kPriorityMax, kPriorityMax, &request.priority);
  fields.Text("cache_salt", kTenantBytesMax, &request.tenant);
  ReadReuse(fields, &request.reuse);
  ReadTimeout(fields, &request.end_within);
  ReadStream(fields, out);
  RefuseFeatures(fields, request.n);
  if (kind == OpenAiKind::kChat) {
    ReadMessages(fields, out);
  } else {
    ReadPrompts(fields, out);
  }
  if (fields.error().has_value()) return fields.error();
  for (Request& one : out->requests) {
    auto prompt = std::move(one.prompt);
    one = request;
    one.prompt = std::move(prompt);
    if (const absl::Status status = CheckRequest(one); !status.ok()) return ToApiError(status);
  }
  CheckAnswers(fields, *out);
  return fields.error();
}

}  // namespace penstock::gateway
