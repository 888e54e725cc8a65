// SPDX-License-Identifier: Apache-2.0
// What one rendering of a chat template may use up, the objects it made, and its first error.
//
// After the first error every function of the interpreter returns at once with any value; callers
// look at failed() before they believe a result that matters. One rendering, one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "model/jinja_value.h"

namespace penstock::model {

class JinjaRuntime {
 public:
  static constexpr std::int64_t kStepsMax = 10'000'000;
  static constexpr std::size_t kTextBytesMax = std::size_t{16} << 20;  // Of any one string.
  static constexpr std::size_t kItemsMax = 1'000'000;                  // Of any one list.
  static constexpr int kDepthMax = 1000;      // Expressions and calls inside each other.
  static constexpr int kValueDepthMax = 200;  // Lists inside lists.

  bool failed() const { return !status_.ok(); }
  const absl::Status& status() const { return status_; }

  // Both keep the first error, with the line; they return an undefined value for convenience.
  Value Fail(std::string_view message);
  Value FailExhausted(std::string_view message);

  // Counts work; false once there was an error or too much of it. Copying 32 bytes is a step, an
  // item of a list another: so steps bound the memory as well, to about 400 MB.
  bool Work(std::size_t steps);
  bool WorkOnBytes(std::size_t bytes) { return Work(1 + bytes / 32); }

  Value NewString(std::string text);
  SequenceObject* NewSequence(SequenceObject::Kind kind, std::vector<Value> items);
  Value NewList(std::vector<Value> items) {
    return NewSequence(SequenceObject::Kind::kList, std::move(items));
  }
  DictObject* NewDict();
  // SetEntry with an error for keys that cannot be.
  void Set(DictObject* dict, Value key, Value value);
  CallableObject* NewCallable(CallableObject::Kind kind, std::string_view name);

  void set_line(int line) { line_ = line; }

  // Counts how deep calls are inside each other: `if (JinjaRuntime::Depth d(runtime); d.ok())`.
  class Depth {
   public:
    explicit Depth(JinjaRuntime* runtime) : runtime_(runtime) { ++runtime_->depth_; }
    ~Depth() { --runtime_->depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    bool ok() const;

   private:
    JinjaRuntime* const runtime_;
  };

 private:
  absl::Status status_;
  std::int64_t steps_ = 0;
  int depth_ = 0;
  int line_ = 0;
  std::deque<SequenceObject> sequences_;  // Deques: pointers into them stay valid.
  std::deque<DictObject> dicts_;
  std::deque<CallableObject> callables_;
};

// str() and repr() as Python prints them.
std::string ToPrinted(JinjaRuntime* runtime, const Value& v);
std::string ToRepr(JinjaRuntime* runtime, const Value& v);

// json.dumps(v, ensure_ascii=False, indent, separators, sort_keys). indent < 0: none.
struct JsonStyle {
  int indent = -1;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
  bool ensure_ascii = false;
};
std::string ToJson(JinjaRuntime* runtime, const Value& v, const JsonStyle& style);

// Python's == and <. Less fails on types that have no order between them.
bool Equal(JinjaRuntime* runtime, const Value& a, const Value& b);
bool Less(JinjaRuntime* runtime, const Value& a, const Value& b);
bool Contains(JinjaRuntime* runtime, const Value& container, const Value& item);

// What a for loop goes over: items of sequences, keys of dicts, characters of strings. Empty for
// undefined values, an error for what has none.
std::vector<Value> Iterate(JinjaRuntime* runtime, const Value& v);
// len(); -1 with an error where there is none.
std::int64_t Length(JinjaRuntime* runtime, const Value& v);

}  // namespace penstock::model
