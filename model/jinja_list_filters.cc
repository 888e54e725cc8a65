// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_list_filters.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "model/jinja_strings.h"

namespace penstock::model {
namespace {

using Kind = SequenceObject::Kind;

Value Generator(JinjaRuntime* runtime, std::vector<Value> items) {
  return runtime->NewSequence(Kind::kGenerator, std::move(items));
}

// "a.b.0" of an item; the item itself without an attribute.
Value AttributeOf(JinjaRuntime* runtime, const Value& item, const Value* attribute) {
  if (attribute == nullptr || IsNone(*attribute)) return item;
  if (IsInteger(*attribute)) return GetItem(runtime, item, *attribute);
  if (!IsString(*attribute)) {
    return runtime->Fail(absl::StrCat("an attribute name is a ", TypeName(*attribute)));
  }
  Value value = item;
  for (const absl::string_view part : absl::StrSplit(StringOf(*attribute), '.')) {
    std::int64_t index = 0;
    if (!part.empty() && part[0] >= '0' && part[0] <= '9' && absl::SimpleAtoi(part, &index)) {
      value = GetItem(runtime, value, index);
    } else {
      value = GetItem(runtime, value, runtime->NewString(std::string(part)));
    }
    if (runtime->failed()) break;
  }
  return value;
}

// For comparisons that ignore case.
Value Folded(JinjaRuntime* runtime, const Value& v, bool case_sensitive) {
  if (case_sensitive || !IsString(v)) return v;
  return runtime->NewString(ToLower(StringOf(v)));
}

// Sorts `items` by `keys`, stable. Comparing is ours: std::sort with an order that breaks its
// rules (NaN, errors half way) would be undefined, a merge sort just gives some order.
void SortByKeys(JinjaRuntime* runtime, std::vector<Value> keys, bool reverse,
                std::vector<Value>* items) {
  std::vector<std::size_t> order(items->size()), merged(items->size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (std::size_t width = 1; width < order.size(); width *= 2) {
    for (std::size_t begin = 0; begin < order.size(); begin += 2 * width) {
      const std::size_t middle = std::min(begin + width, order.size());
      const std::size_t end = std::min(begin + 2 * width, order.size());
      std::size_t left = begin, right = middle;
      for (std::size_t out = begin; out < end; ++out) {
        bool take_right = left == middle;
        if (left < middle && right < end && !runtime->failed()) {
          const Value& a = keys[order[left]];
          const Value& b = keys[order[right]];
          take_right = reverse ? Less(runtime, a, b) : Less(runtime, b, a);
        }
        merged[out] = order[take_right ? right++ : left++];
      }
    }
    order.swap(merged);
  }
  std::vector<Value> sorted;
  sorted.reserve(items->size());
  for (const std::size_t i : order) sorted.push_back((*items)[i]);
  *items = std::move(sorted);
}

// map and select take whatever is false (none, most of all) for an empty list.
std::vector<Value> ItemsIfAny(JinjaRuntime* runtime, const Value& input) {
  return Truthy(input) ? Iterate(runtime, input) : std::vector<Value>();
}

JinjaArgs Rest(const JinjaArgs& args, std::size_t from) {
  JinjaArgs rest;
  for (std::size_t i = from; i < args.positional.size(); ++i) {
    rest.positional.push_back(args.positional[i]);
  }
  rest.named = args.named;
  return rest;
}

}  // namespace

Value FilterMap(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  std::vector<Value> items = ItemsIfAny(runtime, input);
  const Value* attribute = args.Get(SIZE_MAX, "attribute");
  if (args.positional.empty() && attribute != nullptr) {
    const Value* fallback = args.Get(SIZE_MAX, "default");
    for (Value& item : items) {
      item = AttributeOf(runtime, item, attribute);
      if (IsUndefined(item) && fallback != nullptr) item = *fallback;
      if (runtime->failed()) break;
    }
    return Generator(runtime, std::move(items));
  }
  if (args.positional.empty() || !IsString(args.positional[0])) {
    return runtime->Fail("map needs the name of a filter, or attribute=");
  }
  const JinjaArgs rest = Rest(args, 1);
  for (Value& item : items) {
    item = ApplyFilter(runtime, StringOf(args.positional[0]), item, rest);
    if (runtime->failed()) break;
  }
  return Generator(runtime, std::move(items));
}

Value FilterSelect(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args, bool keep,
                   bool by_attribute) {
  const std::size_t test_at = by_attribute ? 1 : 0;
  if (by_attribute && args.positional.empty()) return runtime->Fail("missing attribute name");
  const Value* test = args.positional.size() > test_at ? &args.positional[test_at] : nullptr;
  if (test != nullptr && !IsString(*test)) return runtime->Fail("the name of a test is no string");
  const JinjaArgs rest = test != nullptr ? Rest(args, test_at + 1) : JinjaArgs();
  std::vector<Value> kept;
  for (const Value& item : ItemsIfAny(runtime, input)) {
    const Value value = by_attribute ? AttributeOf(runtime, item, &args.positional[0]) : item;
    const bool holds =
        test != nullptr ? ApplyTest(runtime, StringOf(*test), value, rest) : Truthy(value);
    if (runtime->failed()) break;
    if (holds == keep) kept.push_back(item);
  }
  return Generator(runtime, std::move(kept));
}

Value FilterSort(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  if (!args.Check(runtime, "sort", {"reverse", "case_sensitive", "attribute"})) return Undefined{};
  std::vector<Value> items = Iterate(runtime, input);
  const bool case_sensitive = args.GetBool(1, "case_sensitive", false);
  std::vector<Value> keys;
  for (const Value& item : items) {
    keys.push_back(
        Folded(runtime, AttributeOf(runtime, item, args.Get(2, "attribute")), case_sensitive));
    if (runtime->failed()) return Undefined{};
  }
  SortByKeys(runtime, std::move(keys), args.GetBool(0, "reverse", false), &items);
  return runtime->NewList(std::move(items));
}

Value FilterDictSort(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  if (!args.Check(runtime, "dictsort", {"case_sensitive", "by", "reverse"})) return Undefined{};
  const DictObject* dict = DictOf(input);
  if (dict == nullptr) return runtime->Fail(absl::StrCat("dictsort of a ", TypeName(input)));
  const Value* by = args.Get(1, "by");
  const bool by_value = by != nullptr && IsString(*by) && StringOf(*by) == "value";
  std::vector<Value> items, keys;
  for (const auto& [key, value] : dict->entries) {
    items.push_back(runtime->NewSequence(Kind::kTuple, {key, value}));
    keys.push_back(
        Folded(runtime, by_value ? value : key, args.GetBool(0, "case_sensitive", false)));
    if (runtime->failed()) return Undefined{};
  }
  SortByKeys(runtime, std::move(keys), args.GetBool(2, "reverse", false), &items);
  return runtime->NewList(std::move(items));
}

Value FilterUnique(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  if (!args.Check(runtime, "unique", {"case_sensitive", "attribute"})) return Undefined{};
  DictObject* seen = runtime->NewDict();
  std::vector<Value> kept;
  for (const Value& item : Iterate(runtime, input)) {
    const Value key = Folded(runtime, AttributeOf(runtime, item, args.Get(1, "attribute")),
                             args.GetBool(0, "case_sensitive", false));
    if (FindEntry(*seen, key) == nullptr) kept.push_back(item);
    runtime->Set(seen, key, true);
    if (runtime->failed()) break;
  }
  return Generator(runtime, std::move(kept));
}

Value FilterJoin(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  if (!args.Check(runtime, "join", {"d", "attribute"})) return Undefined{};
  const Value* separator = args.Get(0, "d");
  const std::string between = separator == nullptr ? "" : ToPrinted(runtime, *separator);
  std::string out;
  bool first = true;
  for (const Value& item : Iterate(runtime, input)) {
    if (!first) out += between;
    first = false;
    out += ToPrinted(runtime, AttributeOf(runtime, item, args.Get(1, "attribute")));
    if (runtime->failed() || out.size() > JinjaRuntime::kTextBytesMax) break;
  }
  return runtime->NewString(std::move(out));
}

Value FilterSum(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  if (!args.Check(runtime, "sum", {"attribute", "start"})) return Undefined{};
  const Value* start = args.Get(1, "start");
  Value sum = start == nullptr ? Value(std::int64_t{0}) : *start;
  for (const Value& item : Iterate(runtime, input)) {
    sum = BinaryOperator(runtime, "+", sum, AttributeOf(runtime, item, args.Get(0, "attribute")));
    if (runtime->failed()) break;
  }
  return sum;
}

Value FilterExtreme(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args, bool most) {
  if (!args.Check(runtime, "min", {"case_sensitive", "attribute"})) return Undefined{};
  const bool case_sensitive = args.GetBool(0, "case_sensitive", false);
  Value best = Undefined{};
  Value best_key;
  bool any = false;
  for (const Value& item : Iterate(runtime, input)) {
    Value key =
        Folded(runtime, AttributeOf(runtime, item, args.Get(1, "attribute")), case_sensitive);
    if (!any || (most ? Less(runtime, best_key, key) : Less(runtime, key, best_key))) {
      best = item;
      best_key = std::move(key);
    }
    any = true;
    if (runtime->failed()) break;
  }
  return best;
}

Value FilterReverse(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "reverse", 0, 0)) return Undefined{};
  if (IsString(input)) {
    const Value back = std::int64_t{-1};
    return GetSlice(runtime, input, nullptr, nullptr, &back);
  }
  std::vector<Value> items = Iterate(runtime, input);
  std::reverse(items.begin(), items.end());
  return Generator(runtime, std::move(items));
}

Value FilterItems(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args) {
  if (!args.CheckCount(runtime, "items", 0, 0)) return Undefined{};
  std::vector<Value> items;
  const DictObject* dict = DictOf(input);
  if (dict == nullptr && !IsUndefined(input)) {
    return runtime->Fail("Can only get item pairs from a mapping.");
  }
  if (dict != nullptr) {
    for (const auto& [key, value] : dict->entries) {
      items.push_back(runtime->NewSequence(Kind::kTuple, {key, value}));
      if (runtime->failed()) break;
    }
  }
  return Generator(runtime, std::move(items));
}

Value FilterEnd(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args, bool last) {
  if (!args.CheckCount(runtime, last ? "last" : "first", 0, 0)) return Undefined{};
  const SequenceObject* s = SequenceOf(input);
  if (last && s != nullptr && s->kind == Kind::kGenerator) {
    return runtime->Fail("a generator is not reversible");
  }
  const std::vector<Value> items = Iterate(runtime, input);
  if (items.empty()) return Undefined{};
  return last ? items.back() : items.front();
}

}  // namespace penstock::model
