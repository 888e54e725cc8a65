// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_builtins.h"

namespace penstock::model {
namespace {

constexpr std::int64_t kRangeMax = 100'000;  // As Jinja's sandbox.

Value MakeRange(JinjaRuntime* runtime, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "range", 1, 3)) return Undefined{};
  std::int64_t limits[3] = {0, 0, 1};
  for (std::size_t i = 0; i < args.positional.size(); ++i) {
    if (!IsInteger(args.positional[i])) {
      return runtime->Fail(
          absl::StrCat("range needs integers, not a ", TypeName(args.positional[i])));
    }
    limits[args.positional.size() == 1 ? 1 : i] = IntegerOf(args.positional[i]);
  }
  const auto [start, stop, step] = limits;
  if (step == 0) return runtime->Fail("range: the step must not be zero");
  std::vector<Value> items;
  for (std::int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<std::int64_t>(items.size()) >= kRangeMax) {
      return runtime->FailExhausted(absl::StrCat("a range of more than ", kRangeMax, " numbers"));
    }
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return runtime->NewSequence(SequenceObject::Kind::kRange, std::move(items));
}

Value MakeDict(JinjaRuntime* runtime, const JinjaArgs& args, bool is_namespace) {
  if (args.positional.size() > 1) return runtime->Fail("at most one positional argument");
  DictObject* made = runtime->NewDict();
  made->is_namespace = is_namespace;
  if (!args.positional.empty()) {
    if (const DictObject* from = DictOf(args.positional[0])) {
      for (const auto& [key, value] : from->entries) runtime->Set(made, key, value);
    } else {
      for (const Value& pair : Iterate(runtime, args.positional[0])) {
        std::vector<Value> both = Iterate(runtime, pair);
        if (both.size() != 2) return runtime->Fail("a dict is made from pairs");
        runtime->Set(made, both[0], both[1]);
      }
    }
  }
  for (const auto& [name, value] : args.named) {
    runtime->Set(made, runtime->NewString(std::string(name)), value);
  }
  return made;
}

}  // namespace

const Value* JinjaArgs::Get(std::size_t position, std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& argument : named) {
    if (argument.first == name) return &argument.second;
  }
  return nullptr;
}

bool JinjaArgs::GetBool(std::size_t position, std::string_view name, bool fallback) const {
  const Value* v = Get(position, name);
  return v == nullptr ? fallback : Truthy(*v);
}

bool JinjaArgs::Check(JinjaRuntime* runtime, std::string_view function,
                      std::initializer_list<std::string_view> names) const {
  if (runtime->failed()) return false;
  if (positional.size() > names.size()) {
    runtime->Fail(absl::StrCat(ToAbsl(function), " takes at most ", names.size(),
                               " arguments, got ", positional.size()));
    return false;
  }
  for (const auto& argument : named) {
    if (std::find(names.begin(), names.end(), argument.first) == names.end()) {
      runtime->Fail(
          absl::StrCat(ToAbsl(function), " has no argument '", ToAbsl(argument.first), "'"));
      return false;
    }
  }
  return true;
}

bool JinjaArgs::CheckCount(JinjaRuntime* runtime, std::string_view function, std::size_t least,
                           std::size_t most) const {
  if (runtime->failed()) return false;
  if (named.empty() && positional.size() >= least && positional.size() <= most) return true;
  runtime->Fail(absl::StrCat(ToAbsl(function), " takes ", least, " to ", most,
                             " positional arguments, got ", positional.size(), " and ",
                             named.size(), " named ones"));
  return false;
}

bool IsJinjaGlobal(std::string_view name, bool has_now) {
  return name == "range" || name == "namespace" || name == "dict" || name == "raise_exception" ||
         (has_now && name == "strftime_now");
}

Value CallGlobal(JinjaRuntime* runtime, std::string_view name, const JinjaArgs& args,
                 std::optional<std::int64_t> now) {
  if (runtime->failed()) return Undefined{};
  if (name == "range") return MakeRange(runtime, args);
  if (name == "namespace") return MakeDict(runtime, args, true);
  if (name == "dict") return MakeDict(runtime, args, false);
  if (name == "raise_exception") {
    if (!args.Check(runtime, name, {"message"})) return Undefined{};
    const Value* message = args.Get(0, "message");
    return runtime->Fail(message == nullptr ? "raised" : ToPrinted(runtime, *message));
  }
  if (name == "strftime_now" && now) {
    if (!args.Check(runtime, name, {"format"})) return Undefined{};
    const Value* format = args.Get(0, "format");
    if (format == nullptr || !IsString(*format)) {
      return runtime->Fail("strftime_now needs a format string");
    }
    return FormatTime(runtime, StringOf(*format), *now);
  }
  return runtime->Fail(absl::StrCat("'", ToAbsl(name), "' cannot be called"));
}

}  // namespace penstock::model
