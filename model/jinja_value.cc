// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_value.h"

#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace penstock::model {

std::int64_t IntegerOf(const Value& v) {
  return IsBool(v) ? static_cast<std::int64_t>(std::get<bool>(v)) : std::get<std::int64_t>(v);
}

double FloatOf(const Value& v) {
  return IsFloat(v) ? std::get<double>(v) : static_cast<double>(IntegerOf(v));
}

bool Truthy(const Value& v) {
  if (IsUndefined(v) || IsNone(v)) return false;
  if (IsInteger(v)) return IntegerOf(v) != 0;
  if (IsFloat(v)) return FloatOf(v) != 0;
  if (IsString(v)) return !StringOf(v).empty();
  if (const SequenceObject* s = SequenceOf(v)) {
    return s->kind == SequenceObject::Kind::kGenerator || !s->items.empty();
  }
  if (const DictObject* d = DictOf(v)) return d->is_namespace || !d->entries.empty();
  return true;
}

const char* TypeName(const Value& v) {
  if (IsUndefined(v)) return "undefined";
  if (IsNone(v)) return "None";
  if (IsBool(v)) return "bool";
  if (IsInteger(v)) return "int";
  if (IsFloat(v)) return "float";
  if (IsString(v)) return "str";
  if (const SequenceObject* s = SequenceOf(v)) {
    switch (s->kind) {
      case SequenceObject::Kind::kList:
        return "list";
      case SequenceObject::Kind::kTuple:
        return "tuple";
      case SequenceObject::Kind::kGenerator:
        return "generator";
      case SequenceObject::Kind::kRange:
        return "range";
      case SequenceObject::Kind::kView:
        return "view";
    }
  }
  if (const DictObject* d = DictOf(v)) return d->is_namespace ? "namespace" : "dict";
  return "function";
}

std::string DictKey(const Value& key) {
  if (IsString(key)) return absl::StrCat("s", StringOf(key));
  if (IsNone(key)) return {'n'};
  if (IsInteger(key)) return absl::StrCat("i", IntegerOf(key));
  if (IsFloat(key)) {
    const double f = FloatOf(key);
    // Doubles of this size convert to int64 exactly.
    if (f == std::floor(f) && std::abs(f) < 9e18) {
      return absl::StrCat("i", static_cast<std::int64_t>(f));
    }
    return absl::StrCat("f", FloatRepr(f));
  }
  return {};
}

const Value* FindEntry(const DictObject& dict, const Value& key) {
  const std::string name = DictKey(key);
  if (name.empty()) return nullptr;
  const auto found = dict.index.find(name);
  return found == dict.index.end() ? nullptr : &dict.entries[found->second].second;
}

const Value* FindEntry(const DictObject& dict, std::string_view key) {
  const auto found = dict.index.find(absl::StrCat("s", absl::string_view(key.data(), key.size())));
  return found == dict.index.end() ? nullptr : &dict.entries[found->second].second;
}

void SetEntry(DictObject* dict, Value key, Value value) {
  const auto [at, added] = dict->index.try_emplace(DictKey(key), dict->entries.size());
  if (added) {
    dict->entries.emplace_back(std::move(key), std::move(value));
  } else {
    dict->entries[at->second].second = std::move(value);
  }
}

std::string FloatRepr(double f) {
  if (std::isnan(f)) return "nan";
  if (std::isinf(f)) return f < 0 ? "-inf" : "inf";
  char buffer[40];
  const std::to_chars_result end =
      std::to_chars(buffer, buffer + sizeof(buffer), f, std::chars_format::scientific);
  std::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));
  std::string out;
  if (text[0] == '-') {
    out.push_back('-');
    text.remove_prefix(1);
  }
  const std::size_t e = text.find('e');
  int exponent = 0;
  const char* digits_of_exponent = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_of_exponent, text.data() + text.size(), exponent);
  std::string digits(1, text[0]);
  if (e > 2) digits.append(text.substr(2, e - 2));
  const int count = static_cast<int>(digits.size());
  // Python's rule for repr: positional from 1e-4 up to 1e16.
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out.append(".").append(digits, 1, std::string::npos);
    const int size = std::abs(exponent);
    absl::StrAppend(&out, exponent < 0 ? "e-" : "e+", size < 10 ? "0" : "", size);
  } else if (exponent < 0) {
    out.append("0.").append(static_cast<std::size_t>(-exponent - 1), '0').append(digits);
  } else if (count <= exponent + 1) {
    out.append(digits).append(static_cast<std::size_t>(exponent + 1 - count), '0').append(".0");
  } else {
    out.append(digits, 0, static_cast<std::size_t>(exponent + 1)).append(".");
    out.append(digits, static_cast<std::size_t>(exponent + 1), std::string::npos);
  }
  return out;
}

}  // namespace penstock::model
