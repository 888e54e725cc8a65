// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_builtins.h"
#include "model/jinja_interpreter.h"
#include "model/jinja_strings.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

Value Overflow(JinjaRuntime* runtime) { return runtime->Fail("an integer grew beyond 64 bits"); }

Value Unsupported(JinjaRuntime* runtime, std::string_view op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b}) {
    if (IsUndefined(*v)) {
      const Text& name = std::get<Undefined>(*v).name;
      return runtime->Fail(absl::StrCat("'", name == nullptr ? "value" : *name, "' is undefined"));
    }
  }
  return runtime->Fail(absl::StrCat("unsupported operand types for ", ToAbsl(op), ": '",
                                    TypeName(a), "' and '", TypeName(b), "'"));
}

Value IntegerPower(JinjaRuntime* runtime, std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      return Overflow(runtime);
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return Overflow(runtime);
  }
  return result;
}

Value IntegerOperator(JinjaRuntime* runtime, std::string_view op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (op == "+") return __builtin_add_overflow(a, b, &result) ? Overflow(runtime) : Value(result);
  if (op == "-") return __builtin_sub_overflow(a, b, &result) ? Overflow(runtime) : Value(result);
  if (op == "*") return __builtin_mul_overflow(a, b, &result) ? Overflow(runtime) : Value(result);
  if (op == "**" && b >= 0) return IntegerPower(runtime, a, b);
  if (op == "**") {
    if (a == 0) return runtime->Fail("zero to a negative power");
    return std::pow(static_cast<double>(a), static_cast<double>(b));
  }
  if (b == 0) return runtime->Fail("division by zero");
  if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
  if (b == -1) {  // INT64_MIN / -1 traps.
    if (op == "%") return std::int64_t{0};
    return __builtin_sub_overflow(std::int64_t{0}, a, &result) ? Overflow(runtime) : Value(result);
  }
  const bool below = a % b != 0 && (a < 0) != (b < 0);  // C rounds to zero, Python down.
  if (op == "//") return a / b - (below ? 1 : 0);
  return a % b + (below ? b : 0);
}

Value FloatOperator(JinjaRuntime* runtime, std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") {
    if (a == 0 && b < 0) return runtime->Fail("zero to a negative power");
    if (a < 0 && b != std::floor(b)) return runtime->Fail("a complex number");
    return std::pow(a, b);
  }
  if (b == 0) return runtime->Fail("division by zero");
  if (op == "/") return a / b;
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  if (op == "%") return remainder == 0 ? std::copysign(0.0, b) : remainder;
  return std::round((a - remainder) / b);
}

// text * n, list * n.
Value Repeat(JinjaRuntime* runtime, const Value& v, std::int64_t times) {
  const std::size_t count = times < 0 ? 0 : static_cast<std::size_t>(times);
  if (IsString(v)) {
    const std::string& text = StringOf(v);
    if (!text.empty() && count > JinjaRuntime::kTextBytesMax / text.size()) {
      return runtime->FailExhausted(absl::StrCat("a string of ", text.size(), " * ", count,
                                                 " bytes, at most ", JinjaRuntime::kTextBytesMax));
    }
    std::string out;
    for (std::size_t i = 0; i < count && !text.empty(); ++i) out += text;
    return runtime->NewString(std::move(out));
  }
  const SequenceObject& s = *SequenceOf(v);
  if (!s.items.empty() && count > JinjaRuntime::kItemsMax / s.items.size()) {
    return runtime->FailExhausted(absl::StrCat("a list of ", s.items.size(), " * ", count,
                                               " items, at most ", JinjaRuntime::kItemsMax));
  }
  std::vector<Value> items;
  for (std::size_t i = 0; i < count && !s.items.empty(); ++i) {
    items.insert(items.end(), s.items.begin(), s.items.end());
  }
  return runtime->NewSequence(s.kind, std::move(items));
}

bool IsListOrTuple(const Value& v) {
  const SequenceObject* s = SequenceOf(v);
  return s != nullptr &&
         (s->kind == SequenceObject::Kind::kList || s->kind == SequenceObject::Kind::kTuple);
}

Value UndefinedNamed(const Text& name) { return Undefined{name}; }

Value FailUndefined(JinjaRuntime* runtime, const Value& v) {
  const Text& name = std::get<Undefined>(v).name;
  return runtime->Fail(absl::StrCat("'", name == nullptr ? "value" : *name, "' is undefined"));
}

Value BoundMethod(JinjaRuntime* runtime, const Value& object, std::string_view name) {
  CallableObject* method = runtime->NewCallable(CallableObject::Kind::kMethod, name);
  method->self = object;
  return method;
}

// Python's indices for a slice: clamped start, stop and step.
struct Range {
  std::int64_t start, stop, step;
};
std::optional<Range> SliceRange(JinjaRuntime* runtime, std::int64_t size, const Value* start,
                                const Value* stop, const Value* step) {
  for (const Value* limit : {start, stop, step}) {
    if (limit != nullptr && !IsInteger(*limit) && !IsNone(*limit)) {
      runtime->Fail(absl::StrCat("slice limits must be integers, not ", TypeName(*limit)));
      return std::nullopt;
    }
  }
  const auto given = [](const Value* v) { return v != nullptr && !IsNone(*v); };
  Range range{0, 0, given(step) ? IntegerOf(*step) : 1};
  if (range.step == 0) {
    runtime->Fail("slice step cannot be zero");
    return std::nullopt;
  }
  const bool down = range.step < 0;
  const auto clamp = [&](std::int64_t at) {
    if (at < 0) at = at < -size ? -1 : at + size;
    return down ? std::clamp<std::int64_t>(at, -1, size - 1)
                : std::clamp<std::int64_t>(at, 0, size);
  };
  range.start = given(start) ? clamp(IntegerOf(*start)) : down ? size - 1 : 0;
  range.stop = given(stop) ? clamp(IntegerOf(*stop)) : down ? -1 : size;
  return range;
}

template <typename Use>
void ForEachIndex(const Range& range, const Use& use) {
  for (std::int64_t i = range.start; range.step > 0 ? i < range.stop : i > range.stop;) {
    use(static_cast<std::size_t>(i));
    if (__builtin_add_overflow(i, range.step, &i)) break;
  }
}

}  // namespace

Value BinaryOperator(JinjaRuntime* runtime, std::string_view op, const Value& a, const Value& b) {
  if (runtime->failed()) return Undefined{};
  if (IsInteger(a) && IsInteger(b)) return IntegerOperator(runtime, op, IntegerOf(a), IntegerOf(b));
  if (IsNumber(a) && IsNumber(b)) return FloatOperator(runtime, op, FloatOf(a), FloatOf(b));
  if (op == "%" && IsString(a)) return PercentFormat(runtime, StringOf(a), b);
  if (op == "+" && IsString(a) && IsString(b)) {
    return runtime->NewString(absl::StrCat(StringOf(a), StringOf(b)));
  }
  if (op == "+" && IsListOrTuple(a) && IsListOrTuple(b) &&
      SequenceOf(a)->kind == SequenceOf(b)->kind) {
    if (!runtime->Work(SequenceOf(a)->items.size())) return Undefined{};
    std::vector<Value> items = SequenceOf(a)->items;
    items.insert(items.end(), SequenceOf(b)->items.begin(), SequenceOf(b)->items.end());
    return runtime->NewSequence(SequenceOf(a)->kind, std::move(items));
  }
  if (op == "*" && (IsString(a) || IsListOrTuple(a)) && IsInteger(b)) {
    return Repeat(runtime, a, IntegerOf(b));
  }
  if (op == "*" && IsInteger(a) && (IsString(b) || IsListOrTuple(b))) {
    return Repeat(runtime, b, IntegerOf(a));
  }
  return Unsupported(runtime, op, a, b);
}

Value Negate(JinjaRuntime* runtime, const Value& v) {
  if (IsFloat(v)) return -FloatOf(v);
  if (IsInteger(v)) return IntegerOperator(runtime, "-", 0, IntegerOf(v));
  return Unsupported(runtime, "unary -", v, v);
}

Value GetAttribute(JinjaRuntime* runtime, const Value& object, const Text& name) {
  if (runtime->failed()) return Undefined{};
  if (IsUndefined(object)) return FailUndefined(runtime, object);
  if (const CallableObject* callable = CallableOf(object)) {
    if (callable->kind == CallableObject::Kind::kLoop) {
      return LoopAttribute(runtime, *callable, *name);
    }
    return UndefinedNamed(name);
  }
  if (HasMethod(object, *name)) return BoundMethod(runtime, object, *name);
  if (const DictObject* dict = DictOf(object)) {
    if (const Value* found = FindEntry(*dict, *name)) return *found;
  }
  return UndefinedNamed(name);
}

Value GetItem(JinjaRuntime* runtime, const Value& object, const Value& key) {
  if (runtime->failed()) return Undefined{};
  if (IsUndefined(object)) return FailUndefined(runtime, object);
  if (const DictObject* dict = DictOf(object)) {
    if (!runtime->Work(1 + (IsString(key) ? StringOf(key).size() / 32 : 0))) return Undefined{};
    if (const Value* found = FindEntry(*dict, key)) return *found;
  }
  if (IsString(key)) return GetAttribute(runtime, object, std::get<Text>(key));
  if (!IsInteger(key)) return Undefined{};
  std::int64_t at = IntegerOf(key);
  if (const SequenceObject* s = SequenceOf(object); s != nullptr &&
                                                    s->kind != SequenceObject::Kind::kGenerator &&
                                                    s->kind != SequenceObject::Kind::kView) {
    const auto size = static_cast<std::int64_t>(s->items.size());
    if (at < 0) at += size;
    if (at >= 0 && at < size) return s->items[static_cast<std::size_t>(at)];
  } else if (IsString(object)) {
    const std::string& text = StringOf(object);
    if (!runtime->WorkOnBytes(2 * text.size())) return Undefined{};
    const auto size = static_cast<std::int64_t>(CountCharacters(text));
    if (at < 0) at += size;
    if (at >= 0 && at < size) {
      const std::size_t begin = ByteOffset(text, static_cast<std::size_t>(at));
      const auto bytes = NextUtf8(std::string_view(text).substr(begin)).bytes;
      return runtime->NewString(text.substr(begin, static_cast<std::size_t>(bytes)));
    }
  }
  return UndefinedNamed(std::make_shared<const std::string>(absl::StrCat("[", at, "]")));
}

Value GetSlice(JinjaRuntime* runtime, const Value& object, const Value* start, const Value* stop,
               const Value* step) {
  if (runtime->failed()) return Undefined{};
  if (IsUndefined(object)) return FailUndefined(runtime, object);
  const bool generator = SequenceOf(object) != nullptr &&
                         (SequenceOf(object)->kind == SequenceObject::Kind::kGenerator ||
                          SequenceOf(object)->kind == SequenceObject::Kind::kView);
  if ((!IsString(object) && SequenceOf(object) == nullptr) || generator) return Undefined{};
  const std::int64_t size = Length(runtime, object);
  if (size < 0) return Undefined{};
  const std::optional<Range> range = SliceRange(runtime, size, start, stop, step);
  if (!range) return Undefined{};
  if (const SequenceObject* s = SequenceOf(object)) {
    std::vector<Value> items;
    ForEachIndex(*range, [&](std::size_t i) { items.push_back(s->items[i]); });
    return runtime->NewSequence(s->kind, std::move(items));
  }
  const std::string_view text = StringOf(object);
  if (!runtime->Work(static_cast<std::size_t>(size) / 4)) return Undefined{};
  std::vector<std::string_view> characters;
  for (std::string_view rest = text; !rest.empty();) {
    characters.push_back(rest.substr(0, static_cast<std::size_t>(NextUtf8(rest).bytes)));
    rest.remove_prefix(characters.back().size());
  }
  std::string out;
  ForEachIndex(*range, [&](std::size_t i) { out.append(characters[i]); });
  return runtime->NewString(std::move(out));
}

}  // namespace penstock::model
