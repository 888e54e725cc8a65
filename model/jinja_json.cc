// SPDX-License-Identifier: Apache-2.0
// json.dumps, as transformers' tojson filter calls it.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "model/jinja_runtime.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

void AppendUnit(std::uint32_t unit, std::string* out) {
  const char* hex = "0123456789abcdef";
  out->append("\\u");
  for (int shift = 12; shift >= 0; shift -= 4) out->push_back(hex[(unit >> shift) & 15]);
}

void AppendString(std::string_view text, bool ensure_ascii, std::string* out) {
  out->push_back('"');
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    const std::string_view bytes = text.substr(0, static_cast<std::size_t>(step.bytes));
    text.remove_prefix(bytes.size());
    const std::uint32_t c = step.valid ? step.code_point : 0xFFFD;
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (c == '\b') {
      out->append("\\b");
    } else if (c == '\f') {
      out->append("\\f");
    } else if (c >= 0x20 && (c < 0x7F || !ensure_ascii)) {
      out->append(bytes);
    } else if (c < 0x10000) {
      AppendUnit(c, out);
    } else {
      AppendUnit(0xD800 + ((c - 0x10000) >> 10), out);
      AppendUnit(0xDC00 + ((c - 0x10000) & 0x3FF), out);
    }
  }
  out->push_back('"');
}

std::string FloatJson(double f) {
  if (std::isnan(f)) return "NaN";
  if (std::isinf(f)) return f < 0 ? "-Infinity" : "Infinity";
  return FloatRepr(f);
}

class JsonWriter {
 public:
  JsonWriter(JinjaRuntime* runtime, const JsonStyle& style, std::string* out)
      : runtime_(runtime), style_(style), out_(out) {}

  void Write(const Value& v, int depth) {
    if (depth > JinjaRuntime::kValueDepthMax) {
      runtime_->FailExhausted("a value nested too deep for tojson");
      return;
    }
    if (!runtime_->Work(1) || out_->size() > JinjaRuntime::kTextBytesMax) return;
    if (IsNone(v)) {
      out_->append("null");
    } else if (IsBool(v)) {
      out_->append(std::get<bool>(v) ? "true" : "false");
    } else if (IsInteger(v)) {
      absl::StrAppend(out_, IntegerOf(v));
    } else if (IsFloat(v)) {
      out_->append(FloatJson(FloatOf(v)));
    } else if (IsString(v)) {
      if (runtime_->WorkOnBytes(StringOf(v).size())) {
        AppendString(StringOf(v), style_.ensure_ascii, out_);
      }
    } else if (const SequenceObject* s = SequenceOf(v);
               s != nullptr && (s->kind == SequenceObject::Kind::kList ||
                                s->kind == SequenceObject::Kind::kTuple)) {
      WriteItems('[', ']', s->items.size(), depth,
                 [&](std::size_t i) { Write(s->items[i], depth + 1); });
    } else if (const DictObject* d = DictOf(v); d != nullptr && !d->is_namespace) {
      WriteDict(*d, depth);
    } else {
      runtime_->Fail(absl::StrCat("a ", TypeName(v), " cannot be written as JSON"));
    }
  }

 private:
  void NewLine(int depth) {
    if (style_.indent < 0) return;
    out_->push_back('\n');
    const std::size_t spaces =
        static_cast<std::size_t>(style_.indent) * static_cast<std::size_t>(depth);
    if (runtime_->WorkOnBytes(spaces)) out_->append(spaces, ' ');
  }

  template <typename WriteItem>
  void WriteItems(char open, char close, std::size_t count, int depth, const WriteItem& item) {
    out_->push_back(open);
    for (std::size_t i = 0; i < count && !runtime_->failed(); ++i) {
      if (i > 0) out_->append(style_.item_separator);
      NewLine(depth + 1);
      item(i);
    }
    if (count > 0) NewLine(depth);
    out_->push_back(close);
  }

  void WriteDict(const DictObject& dict, int depth) {
    std::vector<std::size_t> order(dict.entries.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (style_.sort_keys) {
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return Less(runtime_, dict.entries[a].first, dict.entries[b].first);
      });
    }
    WriteItems('{', '}', order.size(), depth, [&](std::size_t i) {
      const auto& [key, value] = dict.entries[order[i]];
      if (IsString(key)) {
        if (!runtime_->WorkOnBytes(StringOf(key).size())) return;
        AppendString(StringOf(key), style_.ensure_ascii, out_);
      } else {
        out_->push_back('"');
        Write(key, depth + 1);  // null, true, 1 and 1.5 in quotes.
        out_->push_back('"');
      }
      out_->append(style_.key_separator);
      Write(value, depth + 1);
    });
  }

  JinjaRuntime* const runtime_;
  const JsonStyle& style_;
  std::string* const out_;
};

}  // namespace

std::string ToJson(JinjaRuntime* runtime, const Value& v, const JsonStyle& style) {
  std::string out;
  JsonWriter(runtime, style, &out).Write(v, 0);
  return out;
}

}  // namespace penstock::model
