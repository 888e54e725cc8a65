// SPDX-License-Identifier: Apache-2.0
// The values that chat templates compute with, after Python's: None, bool, int (64 bits), float,
// str, list, tuple, dict, and what templates can call.
//
// Strings are shared and immutable. Objects belong to the JinjaRuntime of one rendering and live as
// long as it does: hostile templates can build cycles of them (through namespaces) and nothing
// leaks. One rendering, one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace penstock::model {

using Text = std::shared_ptr<const std::string>;

struct SequenceObject;
struct DictObject;
struct CallableObject;

struct Undefined {
  Text name;  // What was looked up, for errors; may be null.
};
struct None {};

using Value = std::variant<Undefined, None, bool, std::int64_t, double, Text, SequenceObject*,
                           DictObject*, CallableObject*>;

struct SequenceObject {
  enum class Kind : std::uint8_t { kList, kTuple, kGenerator, kRange, kView };
  Kind kind = Kind::kList;
  std::vector<Value> items;
};

// Keeps the order of insertion. Equal numbers are one key, as in Python.
struct DictObject {
  bool is_namespace = false;
  std::vector<std::pair<Value, Value>> entries;
  absl::flat_hash_map<std::string, std::size_t> index;  // DictKey() -> entry
};

struct JinjaMacro;  // jinja_ast.h
struct JinjaScope;  // jinja_interpreter.h
struct JinjaLoop;   // jinja_interpreter.h

struct CallableObject {
  enum class Kind : std::uint8_t { kMacro, kMethod, kGlobal, kLoop };
  Kind kind = Kind::kGlobal;
  std::string name;                   // Of the global or method.
  Value self;                         // kMethod: what it is called on.
  const JinjaMacro* macro = nullptr;  // kMacro, with the scope it was defined in:
  JinjaScope* scope = nullptr;
  JinjaLoop* loop = nullptr;  // kLoop: null once the loop is over.
};

inline bool IsUndefined(const Value& v) { return std::holds_alternative<Undefined>(v); }
inline bool IsNone(const Value& v) { return std::holds_alternative<None>(v); }
inline bool IsBool(const Value& v) { return std::holds_alternative<bool>(v); }
inline bool IsFloat(const Value& v) { return std::holds_alternative<double>(v); }
inline bool IsString(const Value& v) { return std::holds_alternative<Text>(v); }
// As Python: a bool is an int.
inline bool IsInteger(const Value& v) {
  return std::holds_alternative<std::int64_t>(v) || IsBool(v);
}
inline bool IsNumber(const Value& v) { return IsInteger(v) || IsFloat(v); }

inline const std::string& StringOf(const Value& v) { return *std::get<Text>(v); }
inline SequenceObject* SequenceOf(const Value& v) {
  const auto* p = std::get_if<SequenceObject*>(&v);
  return p == nullptr ? nullptr : *p;
}
inline DictObject* DictOf(const Value& v) {
  const auto* p = std::get_if<DictObject*>(&v);
  return p == nullptr ? nullptr : *p;
}
inline CallableObject* CallableOf(const Value& v) {
  const auto* p = std::get_if<CallableObject*>(&v);
  return p == nullptr ? nullptr : *p;
}
// Of IsInteger / IsNumber values.
std::int64_t IntegerOf(const Value& v);
double FloatOf(const Value& v);

bool Truthy(const Value& v);
const char* TypeName(const Value& v);  // "str", "list", ...: Python's names, for errors.

// What names `key` in a dict's index; empty for what Python cannot hash (or we do not: tuples).
std::string DictKey(const Value& key);
// Null if there is none.
const Value* FindEntry(const DictObject& dict, const Value& key);
const Value* FindEntry(const DictObject& dict, std::string_view key);
// Adds or replaces; `key` must have a DictKey.
void SetEntry(DictObject* dict, Value key, Value value);

// repr() of a float: the shortest digits that read back as `f`.
std::string FloatRepr(double f);

}  // namespace penstock::model
