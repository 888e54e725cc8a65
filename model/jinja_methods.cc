// SPDX-License-Identifier: Apache-2.0
// The methods of str, list, tuple and dict that cannot change anything; those that could are
// refused, as by Jinja's immutable sandbox.
#include <utf8proc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_builtins.h"
#include "model/jinja_strings.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

using Kind = SequenceObject::Kind;
using Method = Value (*)(JinjaRuntime*, const Value& self, const JinjaArgs& args);
struct Entry {
  std::string_view name;
  Method method;
};

// The text of an argument; fails and gives an empty one if it is no string.
std::string_view TextArgument(JinjaRuntime* runtime, const Value& v) {
  if (IsString(v)) return StringOf(v);
  runtime->Fail(absl::StrCat("expected a string argument, got ", TypeName(v)));
  return {};
}

std::int64_t CountArgument(JinjaRuntime* runtime, const Value* v, std::int64_t fallback) {
  if (v == nullptr || IsNone(*v)) return fallback;
  if (IsInteger(*v)) return IntegerOf(*v);
  runtime->Fail(absl::StrCat("expected an integer argument, got ", TypeName(*v)));
  return fallback;
}

Value Strings(JinjaRuntime* runtime, std::vector<std::string> parts) {
  std::vector<Value> items;
  for (std::string& part : parts) {
    if (runtime->failed()) break;
    items.push_back(runtime->NewString(std::move(part)));
  }
  return runtime->NewList(std::move(items));
}

Value Strip(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args, bool left,
            bool right) {
  if (!args.CheckCount(runtime, "strip", 0, 1)) return Undefined{};
  const std::string& text = StringOf(self);
  if (args.positional.empty() || IsNone(args.positional[0])) {
    return runtime->NewString(std::string(StripSpace(text, left, right)));
  }
  const std::string_view characters = TextArgument(runtime, args.positional[0]);
  if (!runtime->Work(1 + characters.size() * text.size() / 64)) return Undefined{};
  return runtime->NewString(std::string(StripAny(text, characters, left, right)));
}

Value Split(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args, bool from_right) {
  if (!args.Check(runtime, "split", {"sep", "maxsplit"})) return Undefined{};
  const Value* separator = args.Get(0, "sep");
  const std::int64_t splits_max = CountArgument(runtime, args.Get(1, "maxsplit"), -1);
  const std::string& text = StringOf(self);
  if (!runtime->WorkOnBytes(text.size())) return Undefined{};
  if (separator == nullptr || IsNone(*separator)) {
    if (from_right && splits_max >= 0) return runtime->Fail("rsplit needs a separator here");
    return Strings(runtime, SplitSpace(text, splits_max));
  }
  const std::string_view on = TextArgument(runtime, *separator);
  if (runtime->failed()) return Undefined{};
  if (on.empty()) return runtime->Fail("empty separator");
  return Strings(
      runtime, from_right ? SplitOnFromRight(text, on, splits_max) : SplitOn(text, on, splits_max));
}

Value StartsOrEnds(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args, bool ends) {
  if (!args.CheckCount(runtime, ends ? "endswith" : "startswith", 1, 1)) return Undefined{};
  const std::string_view text = StringOf(self);
  const auto matches = [&](const Value& v) {
    const std::string_view part = TextArgument(runtime, v);
    if (part.size() > text.size()) return false;
    return ends ? text.substr(text.size() - part.size()) == part
                : text.substr(0, part.size()) == part;
  };
  if (const SequenceObject* s = SequenceOf(args.positional[0]);
      s != nullptr && s->kind == Kind::kTuple) {
    if (!runtime->Work(s->items.size())) return Undefined{};
    return std::any_of(s->items.begin(), s->items.end(), matches);
  }
  return matches(args.positional[0]);
}

Value Find(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args, bool from_right) {
  if (!args.CheckCount(runtime, "find", 1, 1)) return Undefined{};
  const std::string_view text = StringOf(self);
  const std::string_view part = TextArgument(runtime, args.positional[0]);
  if (!runtime->WorkOnBytes(2 * text.size())) return Undefined{};
  const std::size_t at = from_right ? text.rfind(part) : text.find(part);
  if (at == std::string_view::npos) return std::int64_t{-1};
  return static_cast<std::int64_t>(CountCharacters(text.substr(0, at)));
}

Value RemoveEnd(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args, bool prefix) {
  if (!args.CheckCount(runtime, "removeprefix", 1, 1)) return Undefined{};
  std::string_view text = StringOf(self);
  const std::string_view part = TextArgument(runtime, args.positional[0]);
  if (part.size() <= text.size()) {
    if (prefix && text.substr(0, part.size()) == part)
      text.remove_prefix(part.size());
    else if (!prefix && text.substr(text.size() - part.size()) == part)
      text.remove_suffix(part.size());
  }
  return runtime->NewString(std::string(text));
}

// True if there are characters and `is` holds for all.
template <typename Is>
bool AllCharacters(std::string_view text, const Is& is) {
  if (text.empty()) return false;
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (!step.valid || !is(step.code_point)) return false;
    text.remove_prefix(static_cast<std::size_t>(step.bytes));
  }
  return true;
}

bool IsLetter(std::uint32_t c) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}
bool IsDecimal(std::uint32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_ND;
}

Value Cased(JinjaRuntime* runtime, const Value& self, std::string (*to)(std::string_view)) {
  if (!runtime->WorkOnBytes(StringOf(self).size())) return Undefined{};
  return runtime->NewString(to(StringOf(self)));
}

Value Replace(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "replace", 2, 3)) return Undefined{};
  const std::string& text = StringOf(self);
  const std::string_view from = TextArgument(runtime, args.positional[0]);
  const std::string_view to = TextArgument(runtime, args.positional[1]);
  const Value* count = args.Get(2, "count");
  const std::int64_t most = CountArgument(runtime, count, -1);
  // The size of the result is known before it is made.
  const std::size_t places = from.empty() ? text.size() + 1 : text.size() / from.size();
  if (!runtime->WorkOnBytes(text.size()) ||
      !runtime->WorkOnBytes(to.size() > from.size() ? places * (to.size() - from.size()) : 0)) {
    return Undefined{};
  }
  return runtime->NewString(ReplaceText(text, from, to, most));
}

Value Join(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "join", 1, 1)) return Undefined{};
  std::string out;
  bool first = true;
  for (const Value& item : Iterate(runtime, args.positional[0])) {
    if (!first) out += StringOf(self);
    first = false;
    out.append(TextArgument(runtime, item));
    if (out.size() > JinjaRuntime::kTextBytesMax || runtime->failed()) break;
  }
  return runtime->NewString(std::move(out));
}

Value CountText(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "count", 1, 1)) return Undefined{};
  const std::string_view text = StringOf(self);
  const std::string_view part = TextArgument(runtime, args.positional[0]);
  if (!runtime->WorkOnBytes(text.size())) return Undefined{};
  if (part.empty()) return static_cast<std::int64_t>(CountCharacters(text)) + 1;
  std::int64_t count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string_view::npos;
       at += part.size()) {
    ++count;
  }
  return count;
}

Value Partition(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args, bool from_right) {
  if (!args.CheckCount(runtime, "partition", 1, 1)) return Undefined{};
  const std::string_view text = StringOf(self);
  const std::string_view on = TextArgument(runtime, args.positional[0]);
  if (runtime->failed()) return Undefined{};
  if (on.empty()) return runtime->Fail("empty separator");
  const std::size_t at = from_right ? text.rfind(on) : text.find(on);
  std::string_view parts[3] = {text, {}, {}};
  if (at != std::string_view::npos) {
    parts[0] = text.substr(0, at);
    parts[1] = on;
    parts[2] = text.substr(at + on.size());
  } else if (from_right) {
    std::swap(parts[0], parts[2]);
  }
  std::vector<Value> items;
  for (const std::string_view part : parts) items.push_back(runtime->NewString(std::string(part)));
  return runtime->NewSequence(Kind::kTuple, std::move(items));
}

Value Zfill(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "zfill", 1, 1)) return Undefined{};
  const std::int64_t width = CountArgument(runtime, &args.positional[0], 0);
  std::string text = StringOf(self);
  const std::int64_t missing = width - static_cast<std::int64_t>(CountCharacters(text));
  if (missing <= 0) return self;
  if (missing > static_cast<std::int64_t>(JinjaRuntime::kTextBytesMax)) {
    return runtime->FailExhausted(absl::StrCat("a string of ", width, " characters"));
  }
  const bool sign = !text.empty() && (text[0] == '-' || text[0] == '+');
  text.insert(sign ? 1 : 0, static_cast<std::size_t>(missing), '0');
  return runtime->NewString(std::move(text));
}

#define METHOD(expression)                                      \
  [](JinjaRuntime* runtime, [[maybe_unused]] const Value& self, \
     [[maybe_unused]] const JinjaArgs& args) -> Value { return (expression); }
#define NO_ARGUMENTS(expression) \
  METHOD(args.CheckCount(runtime, "the method", 0, 0) ? Value(expression) : Value(Undefined{}))

constexpr Entry kStringMethods[] = {
    {"strip", METHOD(Strip(runtime, self, args, true, true))},
    {"lstrip", METHOD(Strip(runtime, self, args, true, false))},
    {"rstrip", METHOD(Strip(runtime, self, args, false, true))},
    {"split", METHOD(Split(runtime, self, args, false))},
    {"rsplit", METHOD(Split(runtime, self, args, true))},
    {"splitlines",
     METHOD(Strings(runtime, SplitLines(StringOf(self), args.GetBool(0, "keepends", false))))},
    {"startswith", METHOD(StartsOrEnds(runtime, self, args, false))},
    {"endswith", METHOD(StartsOrEnds(runtime, self, args, true))},
    {"find", METHOD(Find(runtime, self, args, false))},
    {"rfind", METHOD(Find(runtime, self, args, true))},
    {"count", METHOD(CountText(runtime, self, args))},
    {"replace", METHOD(Replace(runtime, self, args))},
    {"join", METHOD(Join(runtime, self, args))},
    {"format", METHOD(BraceFormat(runtime, StringOf(self), args))},
    {"partition", METHOD(Partition(runtime, self, args, false))},
    {"rpartition", METHOD(Partition(runtime, self, args, true))},
    {"removeprefix", METHOD(RemoveEnd(runtime, self, args, true))},
    {"removesuffix", METHOD(RemoveEnd(runtime, self, args, false))},
    {"zfill", METHOD(Zfill(runtime, self, args))},
    {"upper", NO_ARGUMENTS(Cased(runtime, self, ToUpper))},
    {"lower", NO_ARGUMENTS(Cased(runtime, self, ToLower))},
    {"title", NO_ARGUMENTS(Cased(runtime, self, ToTitle))},
    {"capitalize", NO_ARGUMENTS(Cased(runtime, self, ToCapitalized))},
    {"isdigit", NO_ARGUMENTS(AllCharacters(StringOf(self), IsDecimal))},
    {"isdecimal", NO_ARGUMENTS(AllCharacters(StringOf(self), IsDecimal))},
    {"isalpha", NO_ARGUMENTS(AllCharacters(StringOf(self), IsLetter))},
    {"isalnum", NO_ARGUMENTS(AllCharacters(
                    StringOf(self), [](std::uint32_t c) { return IsLetter(c) || IsDecimal(c); }))},
    {"isspace", NO_ARGUMENTS(AllCharacters(StringOf(self), IsSpaceCharacter))},
    {"islower", NO_ARGUMENTS(ToLower(StringOf(self)) == StringOf(self) &&
                             ToUpper(StringOf(self)) != StringOf(self))},
    {"isupper", NO_ARGUMENTS(ToUpper(StringOf(self)) == StringOf(self) &&
                             ToLower(StringOf(self)) != StringOf(self))},
};

Value DictGet(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "get", 1, 2)) return Undefined{};
  if (const Value* found = FindEntry(*DictOf(self), args.positional[0])) return *found;
  return args.positional.size() > 1 ? args.positional[1] : Value(None{});
}

Value DictView(JinjaRuntime* runtime, const Value& self, bool keys, bool values) {
  std::vector<Value> items;
  for (const auto& [key, value] : DictOf(self)->entries) {
    if (keys && values) {
      items.push_back(runtime->NewSequence(Kind::kTuple, {key, value}));
    } else {
      items.push_back(keys ? key : value);
    }
    if (runtime->failed()) break;
  }
  return runtime->NewSequence(Kind::kView, std::move(items));
}

Value DictCopy(JinjaRuntime* runtime, const Value& self) {
  DictObject* copy = runtime->NewDict();
  for (const auto& [key, value] : DictOf(self)->entries) runtime->Set(copy, key, value);
  return copy;
}

constexpr Entry kDictMethods[] = {
    {"get", DictGet},
    {"items", NO_ARGUMENTS(DictView(runtime, self, true, true))},
    {"keys", NO_ARGUMENTS(DictView(runtime, self, true, false))},
    {"values", NO_ARGUMENTS(DictView(runtime, self, false, true))},
    {"copy", NO_ARGUMENTS(DictCopy(runtime, self))},
};

Value ListCount(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "count", 1, 1)) return Undefined{};
  std::int64_t count = 0;
  for (const Value& item : SequenceOf(self)->items) {
    count += Equal(runtime, item, args.positional[0]) ? 1 : 0;
    if (runtime->failed()) break;
  }
  return count;
}

Value ListIndex(JinjaRuntime* runtime, const Value& self, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "index", 1, 1)) return Undefined{};
  std::int64_t at = 0;
  for (const Value& item : SequenceOf(self)->items) {
    if (Equal(runtime, item, args.positional[0])) return at;
    if (runtime->failed()) break;
    ++at;
  }
  return runtime->Fail("the value is not in the list");
}

constexpr Entry kListMethods[] = {
    {"count", ListCount},
    {"index", ListIndex},
    {"copy", NO_ARGUMENTS(runtime->NewList(SequenceOf(self)->items))},
};

constexpr std::string_view kChangingListMethods[] = {"append", "extend", "insert", "pop",
                                                     "remove", "clear",  "sort",   "reverse"};
constexpr std::string_view kChangingDictMethods[] = {"pop", "popitem", "update", "setdefault",
                                                     "clear"};

const Entry* FindMethod(const Value& object, std::string_view name) {
  const auto find = [name](const auto& table) -> const Entry* {
    const auto at = std::find_if(std::begin(table), std::end(table),
                                 [&](const Entry& e) { return e.name == name; });
    return at == std::end(table) ? nullptr : at;
  };
  if (IsString(object)) return find(kStringMethods);
  if (const DictObject* d = DictOf(object)) return d->is_namespace ? nullptr : find(kDictMethods);
  if (const SequenceObject* s = SequenceOf(object)) {
    if (s->kind == Kind::kList || s->kind == Kind::kTuple) return find(kListMethods);
  }
  return nullptr;
}

bool Changes(const Value& object, std::string_view name) {
  const auto has = [name](const auto& table) {
    return std::find(std::begin(table), std::end(table), name) != std::end(table);
  };
  if (const DictObject* d = DictOf(object)) return !d->is_namespace && has(kChangingDictMethods);
  const SequenceObject* s = SequenceOf(object);
  return s != nullptr && s->kind == Kind::kList && has(kChangingListMethods);
}

}  // namespace

bool HasMethod(const Value& object, std::string_view name) {
  return FindMethod(object, name) != nullptr || Changes(object, name);
}

Value CallMethod(JinjaRuntime* runtime, const Value& self, std::string_view name,
                 const JinjaArgs& args) {
  if (!runtime->Work(1)) return Undefined{};
  if (const Entry* entry = FindMethod(self, name)) return entry->method(runtime, self, args);
  return runtime->Fail(absl::StrCat("'", ToAbsl(name), "' would change a ", TypeName(self),
                                    ", which templates may not"));
}

}  // namespace penstock::model
