// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_builtins.h"
#include "model/jinja_list_filters.h"
#include "model/jinja_strings.h"

namespace penstock::model {
namespace {

std::int64_t IntegerArgument(JinjaRuntime* runtime, const Value* v, std::int64_t fallback) {
  if (v == nullptr) return fallback;
  if (IsInteger(*v)) return IntegerOf(*v);
  runtime->Fail(absl::StrCat("expected an integer argument, got ", TypeName(*v)));
  return fallback;
}

// The input as a string, with `args` empty.
Value Cased(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args,
            std::string (*to)(std::string_view)) {
  if (!args.CheckCount(runtime, "the filter", 0, 0)) return Undefined{};
  return runtime->NewString(to(ToPrinted(runtime, v)));
}

Value ToJsonFilter(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"})) {
    return Undefined{};
  }
  JsonStyle style;
  style.ensure_ascii = args.GetBool(0, "ensure_ascii", false);
  style.sort_keys = args.GetBool(3, "sort_keys", false);
  if (const Value* indent = args.Get(1, "indent"); indent != nullptr && !IsNone(*indent)) {
    constexpr std::int64_t kIndentMax = 64;
    const std::int64_t spaces = IntegerArgument(runtime, indent, 0);
    if (spaces < 0 || spaces > kIndentMax) {
      return runtime->Fail(absl::StrCat("tojson indent is ", spaces, ", not 0 to ", kIndentMax));
    }
    style.indent = static_cast<int>(spaces);
    style.item_separator.resize(1);  // "," as json.dumps has it between lines.
  }
  if (const Value* separators = args.Get(2, "separators");
      separators != nullptr && !IsNone(*separators)) {
    const std::vector<Value> both = Iterate(runtime, *separators);
    if (both.size() != 2 || !IsString(both[0]) || !IsString(both[1])) {
      return runtime->Fail("tojson separators must be two strings");
    }
    style.item_separator = StringOf(both[0]);
    style.key_separator = StringOf(both[1]);
    if (!runtime->Work(style.item_separator.size() + style.key_separator.size())) {
      return Undefined{};
    }
  }
  return runtime->NewString(ToJson(runtime, v, style));
}

Value Trim(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "trim", {"chars"})) return Undefined{};
  const Value text = runtime->NewString(ToPrinted(runtime, v));
  JinjaArgs strip;
  if (const Value* characters = args.Get(0, "chars")) strip.positional.push_back(*characters);
  if (runtime->failed()) return Undefined{};
  return CallMethod(runtime, text, "strip", strip);
}

Value Default(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "default", {"default_value", "boolean"})) return Undefined{};
  const bool missing = IsUndefined(v) || (args.GetBool(1, "boolean", false) && !Truthy(v));
  if (!missing) return v;
  const Value* fallback = args.Get(0, "default_value");
  return fallback != nullptr ? *fallback : runtime->NewString("");
}

Value Replace(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "replace", {"old", "new", "count"})) return Undefined{};
  const Value* from = args.Get(0, "old");
  const Value* to = args.Get(1, "new");
  const Value* count = args.Get(2, "count");
  if (from == nullptr || to == nullptr) return runtime->Fail("replace needs two strings");
  JinjaArgs strings;
  strings.positional.push_back(runtime->NewString(ToPrinted(runtime, *from)));
  strings.positional.push_back(runtime->NewString(ToPrinted(runtime, *to)));
  if (count != nullptr && !IsNone(*count)) strings.positional.push_back(*count);
  const Value text = runtime->NewString(ToPrinted(runtime, v));
  if (runtime->failed()) return Undefined{};
  return CallMethod(runtime, text, "replace", strings);
}

// Python's int() of a string: white space around, a sign, underscores between digits.
bool ParseInteger(std::string_view text, std::int64_t base, std::int64_t* value) {
  std::string digits;
  text = StripSpace(text, true, true);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool between = i > 0 && i + 1 < text.size() && text[i - 1] != '_';
    if (text[i] != '_') {
      digits.push_back(text[i]);
    } else if (!between) {
      return false;
    }
  }
  if (base != 10 && base != 16) return false;
  return base == 10 ? absl::SimpleAtoi(digits, value) : absl::SimpleHexAtoi(digits, value);
}

bool ParseFloat(std::string_view text, double* value) {
  text = StripSpace(text, true, true);
  if (text.empty() || text.find_first_of("xXpP") != std::string_view::npos) return false;
  return absl::SimpleAtod(ToAbsl(text), value);
}

Value ToInteger(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "int", {"default", "base"})) return Undefined{};
  const Value* given = args.Get(0, "default");
  Value fallback = given != nullptr ? *given : Value(std::int64_t{0});
  if (IsInteger(v)) return IntegerOf(v);
  double f = 0;
  if (IsString(v)) {
    std::int64_t value = 0;
    if (ParseInteger(StringOf(v), IntegerArgument(runtime, args.Get(1, "base"), 10), &value)) {
      return value;
    }
    if (!ParseFloat(StringOf(v), &f)) return fallback;
  } else if (IsFloat(v)) {
    f = FloatOf(v);
  } else {
    return fallback;
  }
  if (!(std::abs(f) < 9.2e18)) return std::isfinite(f) ? runtime->Fail("int too large") : fallback;
  return static_cast<std::int64_t>(f);
}

Value ToFloat(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "float", {"default"})) return Undefined{};
  if (IsNumber(v)) return FloatOf(v);
  double f = 0;
  if (IsString(v) && ParseFloat(StringOf(v), &f)) return f;
  const Value* given = args.Get(0, "default");
  return given != nullptr ? *given : Value(0.0);
}

Value Indent(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "indent", {"width", "first", "blank"})) return Undefined{};
  const Value* width = args.Get(0, "width");
  std::string indentation;
  if (width != nullptr && IsString(*width)) {
    indentation = StringOf(*width);
  } else {
    constexpr std::int64_t kWidthMax = 1000;
    const std::int64_t spaces = IntegerArgument(runtime, width, 4);
    if (spaces > kWidthMax) return runtime->Fail(absl::StrCat("indent by ", spaces, " spaces"));
    indentation.assign(static_cast<std::size_t>(std::max<std::int64_t>(spaces, 0)), ' ');
  }
  const bool blank = args.GetBool(2, "blank", false);
  std::string out = args.GetBool(1, "first", false) ? indentation : "";
  bool first = true;
  // Jinja adds a newline before it splits, so that a newline at the end starts one more line.
  for (const std::string& line : SplitLines(absl::StrCat(ToPrinted(runtime, v), "\n"), false)) {
    if (!first) {
      out += '\n';
      if (blank || !line.empty()) out += indentation;
    }
    first = false;
    out += line;
    if (!runtime->WorkOnBytes(line.size() + indentation.size())) break;
  }
  return runtime->NewString(std::move(out));
}

Value Absolute(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "abs", 0, 0)) return Undefined{};
  if (IsFloat(v)) return std::abs(FloatOf(v));
  if (!IsInteger(v)) return runtime->Fail(absl::StrCat("abs of a ", TypeName(v)));
  return IntegerOf(v) < 0 ? Negate(runtime, v) : Value(IntegerOf(v));
}

Value Round(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "round", {"precision", "method"})) return Undefined{};
  const std::int64_t precision = IntegerArgument(runtime, args.Get(0, "precision"), 0);
  const Value* method = args.Get(1, "method");
  std::string_view how = "common";
  if (method != nullptr && IsString(*method)) how = StringOf(*method);
  if (!IsNumber(v)) return runtime->Fail(absl::StrCat("round of a ", TypeName(v)));
  if (precision < 0 || precision > 20) {
    return runtime->Fail(absl::StrCat("round precision is ", precision, ", not 0 to 20"));
  }
  if (how != "common" && how != "ceil" && how != "floor") {
    return runtime->Fail("method must be common, ceil or floor");
  }
  if (IsInteger(v) && how == "common") return IntegerOf(v);
  const double f = FloatOf(v);
  if (!std::isfinite(f)) return f;
  if (how != "common") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    return (how == "ceil" ? std::ceil(f * scale) : std::floor(f * scale)) / scale;
  }
  // Printing rounds the exact decimal value, as Python's round does.
  char buffer[400];
  std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision), f);
  return std::strtod(buffer, nullptr);
}

Value Escape(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "escape", 0, 0)) return Undefined{};
  std::string out;
  for (const char c : ToPrinted(runtime, v)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return runtime->NewString(std::move(out));
}

Value Format(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.named.empty()) return runtime->Fail("format takes positional arguments here");
  const Value values = runtime->NewSequence(SequenceObject::Kind::kTuple, args.positional);
  return PercentFormat(runtime, ToPrinted(runtime, v), values);
}

Value LengthOf(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "length", 0, 0)) return Undefined{};
  return Length(runtime, v);
}

Value Attribute(JinjaRuntime* runtime, const Value& v, const JinjaArgs& args) {
  if (!args.Check(runtime, "attr", {"name"})) return Undefined{};
  const Value* name = args.Get(0, "name");
  if (name == nullptr || !IsString(*name)) return runtime->Fail("attr needs a name");
  // Unlike object.name, it does not look at keys.
  if (DictOf(v) != nullptr && !DictOf(v)->is_namespace && !HasMethod(v, StringOf(*name))) {
    return Undefined{std::get<Text>(*name)};
  }
  return GetAttribute(runtime, v, std::get<Text>(*name));
}

#define FILTER(expression)                                   \
  [](JinjaRuntime* runtime, [[maybe_unused]] const Value& v, \
     [[maybe_unused]] const JinjaArgs& args) -> Value { return (expression); }

struct Entry {
  std::string_view name;
  Value (*apply)(JinjaRuntime*, const Value&, const JinjaArgs&);
};
constexpr Entry kFilters[] = {
    {"abs", Absolute},
    {"attr", Attribute},
    {"capitalize", FILTER(Cased(runtime, v, args, ToCapitalized))},
    {"count", LengthOf},
    {"d", Default},
    {"default", Default},
    {"dictsort", FilterDictSort},
    {"e", Escape},
    {"escape", Escape},
    {"first", FILTER(FilterEnd(runtime, v, args, false))},
    {"float", ToFloat},
    {"format", Format},
    {"indent", Indent},
    {"int", ToInteger},
    {"items", FilterItems},
    {"join", FilterJoin},
    {"last", FILTER(FilterEnd(runtime, v, args, true))},
    {"length", LengthOf},
    {"list", FILTER(runtime->NewList(Iterate(runtime, v)))},
    {"lower", FILTER(Cased(runtime, v, args, ToLower))},
    {"map", FilterMap},
    {"max", FILTER(FilterExtreme(runtime, v, args, true))},
    {"min", FILTER(FilterExtreme(runtime, v, args, false))},
    {"reject", FILTER(FilterSelect(runtime, v, args, false, false))},
    {"rejectattr", FILTER(FilterSelect(runtime, v, args, false, true))},
    {"replace", Replace},
    {"reverse", FilterReverse},
    {"round", Round},
    {"safe", FILTER(runtime->NewString(ToPrinted(runtime, v)))},
    {"select", FILTER(FilterSelect(runtime, v, args, true, false))},
    {"selectattr", FILTER(FilterSelect(runtime, v, args, true, true))},
    {"sort", FilterSort},
    {"string", FILTER(runtime->NewString(ToPrinted(runtime, v)))},
    {"sum", FilterSum},
    {"title", FILTER(Cased(runtime, v, args, ToWordsTitle))},
    {"tojson", ToJsonFilter},
    {"trim", Trim},
    {"unique", FilterUnique},
    {"upper", FILTER(Cased(runtime, v, args, ToUpper))},
};

const Entry* FindFilter(std::string_view name) {
  const auto at = std::find_if(std::begin(kFilters), std::end(kFilters),
                               [&](const Entry& e) { return e.name == name; });
  return at == std::end(kFilters) ? nullptr : at;
}

}  // namespace

bool IsJinjaFilter(std::string_view name) { return FindFilter(name) != nullptr; }

Value ApplyFilter(JinjaRuntime* runtime, std::string_view name, const Value& input,
                  const JinjaArgs& args) {
  if (!runtime->Work(1)) return Undefined{};
  // `map('map', 'map', ...)` calls itself once per argument.
  const JinjaRuntime::Depth depth(runtime);
  if (!depth.ok()) return Undefined{};
  if (const Entry* entry = FindFilter(name)) return entry->apply(runtime, input, args);
  return runtime->Fail(absl::StrCat("filter '", ToAbsl(name), "' is not supported"));
}

}  // namespace penstock::model
