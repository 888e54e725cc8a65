// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_interpreter.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::model {

JinjaScope* JinjaInterpreter::NewScope(JinjaScope* parent) {
  if (free_scopes_.empty()) {
    runtime_->Work(4);
    free_scopes_.push_back(&scopes_.emplace_back());
  }
  JinjaScope* scope = free_scopes_.back();
  free_scopes_.pop_back();
  scope->parent = parent;
  return scope;
}

void JinjaInterpreter::FreeScope(JinjaScope* scope) {
  if (scope->captured) return;
  scope->variables.clear();
  free_scopes_.push_back(scope);
}

void JinjaInterpreter::SetVariable(std::string_view name, Value value) {
  root_->variables.emplace_back(name, std::move(value));
}

std::string JinjaInterpreter::Run(const JinjaBody& body) {
  std::string text;
  out_ = &text;
  Execute(body, root_);
  out_ = nullptr;
  return text;
}

void JinjaInterpreter::Write(std::string_view text) {
  if (!runtime_->WorkOnBytes(text.size())) return;
  if (text.size() > JinjaRuntime::kTextBytesMax - out_bytes_) {
    runtime_->FailExhausted(
        absl::StrCat("the text grew beyond ", JinjaRuntime::kTextBytesMax, " bytes"));
    return;
  }
  out_bytes_ += text.size();
  out_->append(text);
}

JinjaInterpreter::Flow JinjaInterpreter::Execute(const JinjaBody& body, JinjaScope* scope) {
  const JinjaRuntime::Depth depth(runtime_);
  if (!depth.ok()) return Flow::kNext;
  for (const auto& statement : body) {
    runtime_->set_line(statement->line);
    if (!runtime_->Work(1)) return Flow::kNext;
    const Flow flow = ExecuteOne(*statement, scope);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

JinjaInterpreter::Flow JinjaInterpreter::ExecuteOne(const JinjaStatement& s, JinjaScope* scope) {
  using Kind = JinjaStatement::Kind;
  switch (s.kind) {
    case Kind::kText:
      Write(s.text);
      break;
    case Kind::kPrint: {
      const Value value = Evaluate(*s.value, scope);
      if (IsString(value)) {
        Write(StringOf(value));
      } else {
        Write(ToPrinted(runtime_, value));
      }
      break;
    }
    case Kind::kIf:
      return ExecuteIf(s, scope);
    case Kind::kFor:
      ExecuteFor(s, scope);
      break;
    case Kind::kSet:
      Assign(s.target, Evaluate(*s.value, scope), scope);
      break;
    case Kind::kSetBlock: {
      Value text = Capture(s.body, scope);
      if (s.value != nullptr) text = ApplyFilters(*s.value, std::move(text), scope);
      Assign(s.target, text, scope);
      break;
    }
    case Kind::kMacro:
      Define(s.macro->name, MakeMacro(*s.macro, scope), scope);
      break;
    case Kind::kCall:
      ExecuteCall(s, scope);
      break;
    case Kind::kFilter:
      Write(ToPrinted(runtime_, ApplyFilters(*s.value, Capture(s.body, scope), scope)));
      break;
    case Kind::kWith:
      ExecuteWith(s, scope);
      break;
    case Kind::kScope:
      return ExecuteInner(s.body, scope);
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

JinjaInterpreter::Flow JinjaInterpreter::ExecuteIf(const JinjaStatement& s, JinjaScope* scope) {
  for (const auto& [condition, body] : s.branches) {
    const bool taken = Truthy(Evaluate(*condition, scope));
    if (runtime_->failed()) return Flow::kNext;
    if (taken) return Execute(body, scope);
  }
  return Execute(s.otherwise, scope);
}

JinjaInterpreter::Flow JinjaInterpreter::ExecuteInner(const JinjaBody& body, JinjaScope* scope) {
  JinjaScope* inner = NewScope(scope);
  const Flow flow = Execute(body, inner);
  FreeScope(inner);
  return flow;
}

void JinjaInterpreter::FilterItems(const JinjaStatement& s, JinjaScope* scope,
                                   std::vector<Value>* items) {
  std::vector<Value> kept;
  for (const Value& item : *items) {
    JinjaScope* inner = NewScope(scope);
    Assign(s.target, item, inner);
    if (Truthy(Evaluate(*s.filter, inner))) kept.push_back(item);
    FreeScope(inner);
    if (runtime_->failed()) return;
  }
  *items = std::move(kept);
}

void JinjaInterpreter::ExecuteFor(const JinjaStatement& s, JinjaScope* scope) {
  std::vector<Value> items = Iterate(runtime_, Evaluate(*s.value, scope));
  if (s.filter != nullptr) FilterItems(s, scope, &items);
  if (runtime_->failed()) return;
  if (items.empty()) {
    ExecuteInner(s.otherwise, scope);
    return;
  }
  JinjaLoop loop{.items = &items, .index0 = 0, .last_changed = {}};
  CallableObject* handle = runtime_->NewCallable(CallableObject::Kind::kLoop, "loop");
  handle->loop = &loop;
  for (; loop.index0 < items.size() && !runtime_->failed(); ++loop.index0) {
    JinjaScope* turn = NewScope(scope);
    turn->variables.emplace_back("loop", handle);
    Assign(s.target, items[loop.index0], turn);
    const Flow flow = Execute(s.body, turn);
    FreeScope(turn);
    if (flow == Flow::kBreak) break;
  }
  handle->loop = nullptr;
}

void JinjaInterpreter::ExecuteWith(const JinjaStatement& s, JinjaScope* scope) {
  JinjaScope* inner = NewScope(scope);
  for (const auto& [target, expr] : s.assignments) {
    Assign(target, Evaluate(*expr, scope), inner);
  }
  // break and continue cannot leave: a `with` around them ends as its body does.
  Execute(s.body, inner);
  FreeScope(inner);
}

void JinjaInterpreter::ExecuteCall(const JinjaStatement& s, JinjaScope* scope) {
  const Value callee = Evaluate(*s.value->parts[0], scope);
  JinjaArgs args = EvaluateArguments(s.value->arguments, scope);
  args.named.emplace_back("caller", MakeMacro(*s.macro, scope));
  runtime_->set_line(s.line);
  Write(ToPrinted(runtime_, Call(callee, args)));
}

void JinjaInterpreter::Assign(const JinjaTarget& target, const Value& value, JinjaScope* scope) {
  if (runtime_->failed()) return;
  if (!target.parts.empty()) {
    const std::vector<Value> items = Iterate(runtime_, value);
    if (!runtime_->failed() && items.size() != target.parts.size()) {
      runtime_->Fail(absl::StrCat("cannot unpack ", items.size(), " values into ",
                                  target.parts.size(), " names"));
    }
    for (std::size_t i = 0; i < items.size() && !runtime_->failed(); ++i) {
      Assign(target.parts[i], items[i], scope);
    }
    return;
  }
  if (!target.attribute.empty()) {
    JinjaExpr name;
    name.name = target.name;
    DictObject* space = DictOf(LookUp(name, scope));
    if (space == nullptr || !space->is_namespace) {
      runtime_->Fail("cannot assign attribute on non-namespace object");
      return;
    }
    runtime_->Set(space, std::make_shared<const std::string>(target.attribute), value);
    return;
  }
  Define(target.name, value, scope);
}

void JinjaInterpreter::Define(std::string_view name, const Value& value, JinjaScope* scope) {
  for (auto& variable : scope->variables) {
    if (variable.first == name) {
      variable.second = value;
      return;
    }
  }
  if (runtime_->Work(2)) scope->variables.emplace_back(name, value);
}

Value JinjaInterpreter::Capture(const JinjaBody& body, JinjaScope* scope) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  ExecuteInner(body, scope);
  out_ = outer;
  out_bytes_ -= text.size();
  return runtime_->NewString(std::move(text));
}

Value JinjaInterpreter::MakeMacro(const JinjaMacro& macro, JinjaScope* scope) {
  CallableObject* made = runtime_->NewCallable(CallableObject::Kind::kMacro, macro.name);
  made->macro = &macro;
  made->scope = scope;
  for (JinjaScope* s = scope; s != nullptr && !s->captured; s = s->parent) s->captured = true;
  return made;
}

}  // namespace penstock::model
