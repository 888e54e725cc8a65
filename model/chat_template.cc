// SPDX-License-Identifier: Apache-2.0
#include "model/chat_template.h"

#include "base/status.h"
#include "model/jinja_interpreter.h"
#include "model/jinja_parser.h"
#include "model/jinja_runtime.h"

namespace penstock::model {
namespace {

using Json = nlohmann::ordered_json;

Value FromJson(JinjaRuntime* runtime, const Json& json, int depth) {
  if (depth > JinjaRuntime::kValueDepthMax) {
    return runtime->FailExhausted(
        absl::StrCat("the variables are nested deeper than ", JinjaRuntime::kValueDepthMax));
  }
  switch (json.type()) {
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
      return json.get<std::int64_t>();
    case Json::value_t::number_unsigned: {
      const auto value = json.get<std::uint64_t>();
      if (value > INT64_MAX) return static_cast<double>(value);
      return static_cast<std::int64_t>(value);
    }
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string:
      return runtime->NewString(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) {
        items.push_back(FromJson(runtime, item, depth + 1));
        if (runtime->failed()) break;
      }
      return runtime->NewList(std::move(items));
    }
    case Json::value_t::object: {
      DictObject* dict = runtime->NewDict();
      for (const auto& [key, value] : json.items()) {
        runtime->Set(dict, runtime->NewString(key), FromJson(runtime, value, depth + 1));
        if (runtime->failed()) break;
      }
      return dict;
    }
    case Json::value_t::null:
    case Json::value_t::binary:
    case Json::value_t::discarded:
      break;
  }
  return None{};
}

class JinjaTemplate : public ChatTemplate {
 public:
  explicit JinjaTemplate(JinjaBody body) : body_(std::move(body)) {}

  absl::StatusOr<std::string> Render(const Json& variables) const override {
    if (!variables.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("chat template variables are a JSON ",
                                                     variables.type_name(), ", not an object"));
    }
    JinjaRuntime runtime;
    std::optional<std::int64_t> now;
    if (const auto at = variables.find("now_unix_seconds");
        at != variables.end() && at->is_number_integer()) {
      now = at->get<std::int64_t>();
    }
    JinjaInterpreter interpreter(&runtime, now);
    for (auto at = variables.begin(); at != variables.end(); ++at) {
      interpreter.SetVariable(at.key(), FromJson(&runtime, at.value(), 0));
    }
    std::string text = interpreter.Run(body_);
    RETURN_IF_ERROR(runtime.status());
    return text;
  }

 private:
  const JinjaBody body_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Compile(std::string_view source) {
  ASSIGN_OR_RETURN(JinjaBody body, ParseJinja(source));
  return std::make_unique<JinjaTemplate>(std::move(body));
}

}  // namespace penstock::model
