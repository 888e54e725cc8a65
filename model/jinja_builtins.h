// SPDX-License-Identifier: Apache-2.0
// Jinja's filters, tests, operators, globals and Python's methods, over values only. Every function
// reports errors through the runtime and then returns an undefined value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_runtime.h"

namespace penstock::model {

struct JinjaArgs {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;

  // The argument at this position or of this name; null if it was not given.
  const Value* Get(std::size_t position, std::string_view name) const;
  bool GetBool(std::size_t position, std::string_view name, bool fallback) const;
  // Fails if more were given, or others than `names`.
  bool Check(JinjaRuntime* runtime, std::string_view function,
             std::initializer_list<std::string_view> names) const;
  bool CheckCount(JinjaRuntime* runtime, std::string_view function, std::size_t least,
                  std::size_t most) const;
};

bool IsJinjaFilter(std::string_view name);
bool IsJinjaTest(std::string_view name);
Value ApplyFilter(JinjaRuntime* runtime, std::string_view name, const Value& input,
                  const JinjaArgs& args);
bool ApplyTest(JinjaRuntime* runtime, std::string_view name, const Value& input,
               const JinjaArgs& args);

// jinja_operators.cc. `op`: + - * / // % **
Value BinaryOperator(JinjaRuntime* runtime, std::string_view op, const Value& a, const Value& b);
Value Negate(JinjaRuntime* runtime, const Value& v);
// object.name: methods before keys. object[key]: keys before methods.
Value GetAttribute(JinjaRuntime* runtime, const Value& object, const Text& name);
Value GetItem(JinjaRuntime* runtime, const Value& object, const Value& key);
// Missing limits are null.
Value GetSlice(JinjaRuntime* runtime, const Value& object, const Value* start, const Value* stop,
               const Value* step);

// jinja_methods.cc. Methods of str, list, tuple and dict; undefined if there is no such.
bool HasMethod(const Value& object, std::string_view name);
Value CallMethod(JinjaRuntime* runtime, const Value& self, std::string_view name,
                 const JinjaArgs& args);

// jinja_format.cc. "%s" % values, "{}".format(values), strftime.
Value PercentFormat(JinjaRuntime* runtime, std::string_view format, const Value& values);
Value BraceFormat(JinjaRuntime* runtime, std::string_view format, const JinjaArgs& args);
Value FormatTime(JinjaRuntime* runtime, std::string_view format, std::int64_t unix_seconds);

// jinja_globals.cc. `now`: what strftime_now tells, in seconds since 1970 UTC.
bool IsJinjaGlobal(std::string_view name, bool has_now);
Value CallGlobal(JinjaRuntime* runtime, std::string_view name, const JinjaArgs& args,
                 std::optional<std::int64_t> now);

}  // namespace penstock::model
