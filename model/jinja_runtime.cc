// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_runtime.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_strings.h"
#include "model/utf8.h"

namespace penstock::model {

Value JinjaRuntime::Fail(std::string_view message) {
  if (status_.ok()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("chat template, line ", line_, ": ", ToAbsl(message)));
  }
  return Undefined{};
}

Value JinjaRuntime::FailExhausted(std::string_view message) {
  if (status_.ok()) {
    status_ = absl::ResourceExhaustedError(
        absl::StrCat("chat template, line ", line_, ": ", ToAbsl(message)));
  }
  return Undefined{};
}

bool JinjaRuntime::Work(std::size_t steps) {
  if (failed()) return false;
  if (steps > static_cast<std::size_t>(kStepsMax - steps_)) {
    FailExhausted(absl::StrCat("more than ", kStepsMax, " steps"));
    return false;
  }
  steps_ += static_cast<std::int64_t>(steps);
  return true;
}

Value JinjaRuntime::NewString(std::string text) {
  if (text.size() > kTextBytesMax) {
    return FailExhausted(absl::StrCat("a string of ", text.size(), " bytes, at most ",
                                      kTextBytesMax, " are allowed"));
  }
  if (!WorkOnBytes(text.size())) return Undefined{};
  return std::make_shared<const std::string>(std::move(text));
}

SequenceObject* JinjaRuntime::NewSequence(SequenceObject::Kind kind, std::vector<Value> items) {
  if (items.size() > kItemsMax) {
    FailExhausted(absl::StrCat("a list of ", items.size(), " items, at most ", kItemsMax));
    items.clear();
  }
  if (!Work(4 + items.size())) items.clear();
  return &sequences_.emplace_back(SequenceObject{kind, std::move(items)});
}

DictObject* JinjaRuntime::NewDict() {
  Work(4);
  return &dicts_.emplace_back();
}

void JinjaRuntime::Set(DictObject* dict, Value key, Value value) {
  if (!Work(4 + (IsString(key) ? StringOf(key).size() / 32 : 0))) return;
  if (DictKey(key).empty()) {
    Fail(absl::StrCat("a ", TypeName(key), " cannot be the key of a dict"));
    return;
  }
  SetEntry(dict, std::move(key), std::move(value));
}

CallableObject* JinjaRuntime::NewCallable(CallableObject::Kind kind, std::string_view name) {
  Work(4);
  CallableObject& made = callables_.emplace_back();
  made.kind = kind;
  made.name = name;
  return &made;
}

bool JinjaRuntime::Depth::ok() const {
  if (runtime_->failed()) return false;
  if (runtime_->depth_ <= kDepthMax) return true;
  runtime_->FailExhausted(absl::StrCat("nested deeper than ", kDepthMax));
  return false;
}

namespace {

using Kind = SequenceObject::Kind;

// Appends str() or repr(); stops growing once there was an error.
class Printer {
 public:
  Printer(JinjaRuntime* runtime, std::string* out) : runtime_(runtime), out_(out) {}

  void Print(const Value& v, bool repr, int depth) {
    if (depth > JinjaRuntime::kValueDepthMax) {
      runtime_->FailExhausted("a value nested too deep to print");
      return;
    }
    if (!runtime_->Work(1) || out_->size() > JinjaRuntime::kTextBytesMax) return;
    if (IsUndefined(v)) {
      if (repr) out_->append("Undefined");
    } else if (IsNone(v)) {
      out_->append("None");
    } else if (IsBool(v)) {
      out_->append(std::get<bool>(v) ? "True" : "False");
    } else if (IsInteger(v)) {
      absl::StrAppend(out_, IntegerOf(v));
    } else if (IsFloat(v)) {
      out_->append(FloatRepr(FloatOf(v)));
    } else if (IsString(v)) {
      if (!runtime_->WorkOnBytes(StringOf(v).size())) return;
      repr ? AppendStringRepr(StringOf(v), out_) : static_cast<void>(out_->append(StringOf(v)));
    } else if (const SequenceObject* s = SequenceOf(v)) {
      PrintSequence(*s, depth);
    } else if (const DictObject* d = DictOf(v)) {
      PrintDict(*d, depth);
    } else {
      absl::StrAppend(out_, "<function ", CallableOf(v)->name, ">");
    }
  }

 private:
  void PrintSequence(const SequenceObject& s, int depth) {
    if (s.kind == Kind::kGenerator) {
      out_->append("<generator object>");
      return;
    }
    const bool tuple = s.kind == Kind::kTuple;
    out_->append(tuple ? "(" : "[");
    for (std::size_t i = 0; i < s.items.size(); ++i) {
      if (i > 0) out_->append(", ");
      Print(s.items[i], true, depth + 1);
      if (runtime_->failed()) return;
    }
    if (tuple && s.items.size() == 1) out_->append(",");
    out_->append(tuple ? ")" : "]");
  }

  void PrintDict(const DictObject& d, int depth) {
    out_->append(d.is_namespace ? "<Namespace {" : "{");
    for (std::size_t i = 0; i < d.entries.size(); ++i) {
      if (i > 0) out_->append(", ");
      Print(d.entries[i].first, true, depth + 1);
      out_->append(": ");
      Print(d.entries[i].second, true, depth + 1);
      if (runtime_->failed()) return;
    }
    out_->append(d.is_namespace ? "}>" : "}");
  }

  JinjaRuntime* const runtime_;
  std::string* const out_;
};

bool EqualAt(JinjaRuntime* runtime, const Value& a, const Value& b, int depth) {
  if (depth > JinjaRuntime::kValueDepthMax) {
    runtime->FailExhausted("values nested too deep to compare");
    return false;
  }
  if (!runtime->Work(1)) return false;
  if (IsNumber(a) && IsNumber(b)) {
    if (IsInteger(a) && IsInteger(b)) return IntegerOf(a) == IntegerOf(b);
    return FloatOf(a) == FloatOf(b);
  }
  if (IsString(a) && IsString(b)) {
    return runtime->WorkOnBytes(StringOf(a).size()) && StringOf(a) == StringOf(b);
  }
  if (const SequenceObject* s = SequenceOf(a), *t = SequenceOf(b); s != nullptr && t != nullptr) {
    if (s == t) return true;
    if (s->kind != t->kind || s->kind == Kind::kGenerator || s->items.size() != t->items.size()) {
      return false;
    }
    for (std::size_t i = 0; i < s->items.size(); ++i) {
      if (!EqualAt(runtime, s->items[i], t->items[i], depth + 1)) return false;
    }
    return true;
  }
  if (const DictObject* d = DictOf(a), *e = DictOf(b); d != nullptr && e != nullptr) {
    if (d == e) return true;
    if (d->is_namespace || e->is_namespace || d->entries.size() != e->entries.size()) return false;
    for (const auto& [key, value] : d->entries) {
      const Value* other = FindEntry(*e, key);
      if (other == nullptr || !EqualAt(runtime, value, *other, depth + 1)) return false;
    }
    return true;
  }
  if (a.index() != b.index()) return false;
  return IsUndefined(a) || IsNone(a) ||
         (CallableOf(a) != nullptr && CallableOf(a) == CallableOf(b));
}

bool LessAt(JinjaRuntime* runtime, const Value& a, const Value& b, int depth) {
  if (!runtime->Work(1)) return false;
  if (IsNumber(a) && IsNumber(b)) {
    if (IsInteger(a) && IsInteger(b)) return IntegerOf(a) < IntegerOf(b);
    return FloatOf(a) < FloatOf(b);
  }
  // UTF-8 sorts as code points do.
  if (IsString(a) && IsString(b)) {
    return runtime->WorkOnBytes(StringOf(a).size()) && StringOf(a) < StringOf(b);
  }
  const SequenceObject* s = SequenceOf(a);
  const SequenceObject* t = SequenceOf(b);
  if (s != nullptr && t != nullptr && s->kind == t->kind &&
      (s->kind == Kind::kList || s->kind == Kind::kTuple) && depth < JinjaRuntime::kValueDepthMax) {
    for (std::size_t i = 0; i < std::min(s->items.size(), t->items.size()); ++i) {
      if (EqualAt(runtime, s->items[i], t->items[i], depth + 1)) continue;
      return LessAt(runtime, s->items[i], t->items[i], depth + 1);
    }
    return s->items.size() < t->items.size();
  }
  runtime->Fail(absl::StrCat("'<' not supported between ", TypeName(a), " and ", TypeName(b)));
  return false;
}

}  // namespace

std::string ToPrinted(JinjaRuntime* runtime, const Value& v) {
  std::string out;
  Printer(runtime, &out).Print(v, false, 0);
  return out;
}

std::string ToRepr(JinjaRuntime* runtime, const Value& v) {
  std::string out;
  Printer(runtime, &out).Print(v, true, 0);
  return out;
}

bool Equal(JinjaRuntime* runtime, const Value& a, const Value& b) {
  return EqualAt(runtime, a, b, 0);
}

bool Less(JinjaRuntime* runtime, const Value& a, const Value& b) {
  return LessAt(runtime, a, b, 0);
}

bool Contains(JinjaRuntime* runtime, const Value& container, const Value& item) {
  if (IsString(container)) {
    if (!IsString(item)) {
      runtime->Fail(absl::StrCat("'in <string>' needs a string, not ", TypeName(item)));
      return false;
    }
    return runtime->WorkOnBytes(StringOf(container).size()) &&
           StringOf(container).find(StringOf(item)) != std::string::npos;
  }
  if (const DictObject* d = DictOf(container); d != nullptr && !d->is_namespace) {
    return FindEntry(*d, item) != nullptr;
  }
  if (const SequenceObject* s = SequenceOf(container)) {
    for (const Value& v : s->items) {
      if (Equal(runtime, v, item)) return true;
      if (runtime->failed()) return false;
    }
    return false;
  }
  if (!IsUndefined(container)) {
    runtime->Fail(absl::StrCat("a ", TypeName(container), " cannot be searched with 'in'"));
  }
  return false;
}

std::vector<Value> Iterate(JinjaRuntime* runtime, const Value& v) {
  std::vector<Value> items;
  if (SequenceObject* s = SequenceOf(v)) {
    if (!runtime->Work(s->items.size())) return items;
    if (s->kind == Kind::kGenerator) return std::exchange(s->items, {});  // Once, as in Python.
    return s->items;
  }
  if (const DictObject* d = DictOf(v); d != nullptr && !d->is_namespace) {
    if (!runtime->Work(d->entries.size())) return items;
    for (const auto& entry : d->entries) items.push_back(entry.first);
  } else if (IsString(v)) {
    std::string_view rest = StringOf(v);
    while (!rest.empty() && runtime->Work(4)) {
      const auto bytes = static_cast<std::size_t>(NextUtf8(rest).bytes);
      items.push_back(std::make_shared<const std::string>(rest.substr(0, bytes)));
      rest.remove_prefix(bytes);
    }
  } else if (!IsUndefined(v)) {
    runtime->Fail(absl::StrCat("a ", TypeName(v), " is not iterable"));
  }
  return items;
}

std::int64_t Length(JinjaRuntime* runtime, const Value& v) {
  if (IsUndefined(v)) return 0;
  if (IsString(v)) {
    if (!runtime->WorkOnBytes(StringOf(v).size())) return -1;
    return static_cast<std::int64_t>(CountCharacters(StringOf(v)));
  }
  if (const SequenceObject* s = SequenceOf(v); s != nullptr && s->kind != Kind::kGenerator) {
    return static_cast<std::int64_t>(s->items.size());
  }
  if (const DictObject* d = DictOf(v); d != nullptr && !d->is_namespace) {
    return static_cast<std::int64_t>(d->entries.size());
  }
  runtime->Fail(absl::StrCat("a ", TypeName(v), " has no length"));
  return -1;
}

}  // namespace penstock::model
