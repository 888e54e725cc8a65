// SPDX-License-Identifier: Apache-2.0
// What may stand after `is`.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_builtins.h"

namespace penstock::model {
namespace {

using Kind = SequenceObject::Kind;

bool IsMapping(const Value& v) { return DictOf(v) != nullptr && !DictOf(v)->is_namespace; }

bool IsIterable(const Value& v) {
  return IsUndefined(v) || IsString(v) || IsMapping(v) || SequenceOf(v) != nullptr;
}

bool IsSequenceLike(const Value& v) {
  const SequenceObject* s = SequenceOf(v);
  return IsUndefined(v) || IsString(v) || IsMapping(v) ||
         (s != nullptr && s->kind != Kind::kGenerator && s->kind != Kind::kView);
}

// The one argument of tests that take one.
const Value& Argument(JinjaRuntime* runtime, std::string_view name, const JinjaArgs& args) {
  static const Value kNothing = Undefined{};
  return args.CheckCount(runtime, name, 1, 1) ? args.positional[0] : kNothing;
}

bool Remainder(JinjaRuntime* runtime, const Value& v, std::int64_t divisor, std::int64_t want) {
  if (!IsInteger(v)) {
    runtime->Fail(absl::StrCat("expected an integer, got ", TypeName(v)));
    return false;
  }
  if (divisor == 0 || divisor == -1) return divisor == -1 && want == 0;
  const std::int64_t remainder = IntegerOf(v) % divisor;
  return (remainder < 0 ? -remainder : remainder) == want;
}

bool DivisibleBy(JinjaRuntime* runtime, const Value& v, const Value& divisor) {
  if (IsInteger(divisor) && IntegerOf(divisor) != 0) {
    return Remainder(runtime, v, IntegerOf(divisor), 0);
  }
  runtime->Fail("divisibleby needs an integer that is not 0");
  return false;
}

bool IsCase(JinjaRuntime* runtime, const Value& v, std::string_view method) {
  const Value text = runtime->NewString(ToPrinted(runtime, v));
  return IsString(text) && Truthy(CallMethod(runtime, text, method, {}));
}

bool Compare(JinjaRuntime* runtime, const Value& a, const Value& b, bool or_equal) {
  return Less(runtime, a, b) || (or_equal && !runtime->failed() && Equal(runtime, a, b));
}

#define TEST_OF(expression)                                                         \
  [](JinjaRuntime* runtime, [[maybe_unused]] std::string_view name, const Value& v, \
     [[maybe_unused]] const JinjaArgs& args) -> bool { return runtime->Work(1) && (expression); }
#define ARGUMENT Argument(runtime, name, args)

struct Entry {
  std::string_view name;
  bool (*holds)(JinjaRuntime*, std::string_view, const Value&, const JinjaArgs&);
};
constexpr Entry kTests[] = {
    {"defined", TEST_OF(!IsUndefined(v))},
    {"undefined", TEST_OF(IsUndefined(v))},
    {"none", TEST_OF(IsNone(v))},
    {"string", TEST_OF(IsString(v))},
    {"number", TEST_OF(IsNumber(v))},
    {"integer", TEST_OF(IsInteger(v) && !IsBool(v))},
    {"float", TEST_OF(IsFloat(v))},
    {"boolean", TEST_OF(IsBool(v))},
    {"true", TEST_OF(IsBool(v) && Truthy(v))},
    {"false", TEST_OF(IsBool(v) && !Truthy(v))},
    {"mapping", TEST_OF(IsMapping(v))},
    {"iterable", TEST_OF(IsIterable(v))},
    {"sequence", TEST_OF(IsSequenceLike(v))},
    {"callable", TEST_OF(CallableOf(v) != nullptr || IsUndefined(v))},
    {"even", TEST_OF(Remainder(runtime, v, 2, 0))},
    {"odd", TEST_OF(Remainder(runtime, v, 2, 1))},
    {"divisibleby", TEST_OF(DivisibleBy(runtime, v, ARGUMENT))},
    {"lower", TEST_OF(IsCase(runtime, v, "islower"))},
    {"upper", TEST_OF(IsCase(runtime, v, "isupper"))},
    {"escaped", TEST_OF(false && IsNone(v))},
    {"sameas", TEST_OF(v.index() == ARGUMENT.index() && Equal(runtime, v, ARGUMENT))},
    {"equalto", TEST_OF(Equal(runtime, v, ARGUMENT))},
    {"eq", TEST_OF(Equal(runtime, v, ARGUMENT))},
    {"ne", TEST_OF(!Equal(runtime, v, ARGUMENT))},
    {"lt", TEST_OF(Compare(runtime, v, ARGUMENT, false))},
    {"lessthan", TEST_OF(Compare(runtime, v, ARGUMENT, false))},
    {"le", TEST_OF(Compare(runtime, v, ARGUMENT, true))},
    {"gt", TEST_OF(Compare(runtime, ARGUMENT, v, false))},
    {"greaterthan", TEST_OF(Compare(runtime, ARGUMENT, v, false))},
    {"ge", TEST_OF(Compare(runtime, ARGUMENT, v, true))},
    {"in", TEST_OF(Contains(runtime, ARGUMENT, v))},
};

const Entry* FindTest(std::string_view name) {
  const auto at = std::find_if(std::begin(kTests), std::end(kTests),
                               [&](const Entry& e) { return e.name == name; });
  return at == std::end(kTests) ? nullptr : at;
}

}  // namespace

bool IsJinjaTest(std::string_view name) { return FindTest(name) != nullptr; }

bool ApplyTest(JinjaRuntime* runtime, std::string_view name, const Value& input,
               const JinjaArgs& args) {
  const Entry* entry = FindTest(name);
  if (entry != nullptr) return !runtime->failed() && entry->holds(runtime, name, input, args);
  runtime->Fail(absl::StrCat("test '", ToAbsl(name), "' is not supported"));
  return false;
}

}  // namespace penstock::model
