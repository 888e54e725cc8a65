// SPDX-License-Identifier: Apache-2.0
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_interpreter.h"

namespace penstock::model {

Value JinjaInterpreter::Evaluate(const JinjaExpr& expr, JinjaScope* scope) {
  if (!runtime_->Work(1)) return Undefined{};
  if (expr.kind == JinjaExpr::Kind::kConstant) return expr.constant;
  if (expr.kind == JinjaExpr::Kind::kName) return LookUp(expr, scope);
  const JinjaRuntime::Depth depth(runtime_);
  if (!depth.ok()) return Undefined{};
  return EvaluateDeep(expr, scope);
}

Value JinjaInterpreter::EvaluateDeep(const JinjaExpr& expr, JinjaScope* scope) {
  using Kind = JinjaExpr::Kind;
  const auto part = [&](std::size_t i) { return Evaluate(*expr.parts[i], scope); };
  const auto at_line = [&] { runtime_->set_line(expr.line); };
  switch (expr.kind) {
    case Kind::kConstant:
    case Kind::kName:
      break;  // Evaluate has them.
    case Kind::kList:
      return runtime_->NewList(EvaluateParts(expr, scope));
    case Kind::kTuple:
      return runtime_->NewSequence(SequenceObject::Kind::kTuple, EvaluateParts(expr, scope));
    case Kind::kDict:
      return EvaluateDict(expr, scope);
    case Kind::kNegative:
      return Negate(runtime_, part(0));
    case Kind::kPositive: {
      Value v = part(0);
      if (IsBool(v)) return IntegerOf(v);
      return IsNumber(v) ? v : runtime_->Fail("bad operand type for unary +");
    }
    case Kind::kNot:
      return !Truthy(part(0));
    case Kind::kBinary: {
      const Value left = part(0);
      const Value right = part(1);
      at_line();
      return BinaryOperator(runtime_, expr.name, left, right);
    }
    case Kind::kConcat:
      return EvaluateConcat(expr, scope);
    case Kind::kCompare:
      return EvaluateCompare(expr, scope);
    case Kind::kAnd: {
      Value left = part(0);
      return Truthy(left) ? part(1) : left;
    }
    case Kind::kOr: {
      Value left = part(0);
      return Truthy(left) ? left : part(1);
    }
    case Kind::kCondition:
      if (Truthy(part(0))) return part(1);
      return expr.parts[2] != nullptr ? part(2) : Value(Undefined{});
    case Kind::kAttribute: {
      const Value object = part(0);
      at_line();
      return GetAttribute(runtime_, object, std::get<Text>(expr.constant));
    }
    case Kind::kItem: {
      const Value object = part(0);
      const Value key = part(1);
      at_line();
      return GetItem(runtime_, object, key);
    }
    case Kind::kSlice:
      return EvaluateSlice(expr, scope);
    case Kind::kCall: {
      const Value callee = part(0);
      const JinjaArgs args = EvaluateArguments(expr.arguments, scope);
      at_line();
      return Call(callee, args);
    }
    case Kind::kFilter: {
      const Value input = expr.parts[0] != nullptr ? part(0) : filter_input_;
      const JinjaArgs args = EvaluateArguments(expr.arguments, scope);
      at_line();
      return ApplyFilter(runtime_, expr.name, input, args);
    }
    case Kind::kTest: {
      const Value input = part(0);
      const JinjaArgs args = EvaluateArguments(expr.arguments, scope);
      at_line();
      return ApplyTest(runtime_, expr.name, input, args);
    }
  }
  return Undefined{};
}

Value JinjaInterpreter::LookUp(const JinjaExpr& name, const JinjaScope* scope) {
  for (const JinjaScope* s = scope; s != nullptr; s = s->parent) {
    for (const auto& variable : s->variables) {
      if (variable.first == name.name) return variable.second;
    }
  }
  if (IsJinjaGlobal(name.name, now_.has_value())) {
    return runtime_->NewCallable(CallableObject::Kind::kGlobal, name.name);
  }
  return Undefined{IsString(name.constant) ? std::get<Text>(name.constant) : nullptr};
}

std::vector<Value> JinjaInterpreter::EvaluateParts(const JinjaExpr& expr, JinjaScope* scope) {
  std::vector<Value> values;
  values.reserve(expr.parts.size());
  for (const JinjaExprPtr& part : expr.parts) values.push_back(Evaluate(*part, scope));
  return values;
}

Value JinjaInterpreter::EvaluateDict(const JinjaExpr& expr, JinjaScope* scope) {
  DictObject* dict = runtime_->NewDict();
  for (std::size_t i = 0; i + 1 < expr.parts.size() && !runtime_->failed(); i += 2) {
    Value key = Evaluate(*expr.parts[i], scope);
    Value value = Evaluate(*expr.parts[i + 1], scope);
    runtime_->Set(dict, std::move(key), std::move(value));
  }
  return dict;
}

Value JinjaInterpreter::EvaluateConcat(const JinjaExpr& expr, JinjaScope* scope) {
  std::string text;
  for (const JinjaExprPtr& part : expr.parts) {
    text += ToPrinted(runtime_, Evaluate(*part, scope));
    if (runtime_->failed() || text.size() > JinjaRuntime::kTextBytesMax) break;
  }
  return runtime_->NewString(std::move(text));
}

bool JinjaInterpreter::CompareOnce(std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return Equal(runtime_, a, b);
  if (op == "!=") return !Equal(runtime_, a, b);
  if (op == "in") return Contains(runtime_, b, a);
  if (op == "not in") return !Contains(runtime_, b, a);
  for (const Value* v : {&a, &b}) {
    if (!IsUndefined(*v)) continue;
    const Text& name = std::get<Undefined>(*v).name;
    runtime_->Fail(absl::StrCat("'", name == nullptr ? "value" : *name, "' is undefined"));
    return false;
  }
  // NaN is in no order: a >= b is not the opposite of a < b.
  if (op == "<") return Less(runtime_, a, b);
  if (op == ">") return Less(runtime_, b, a);
  if (op == "<=") return Less(runtime_, a, b) || (!runtime_->failed() && Equal(runtime_, a, b));
  return Less(runtime_, b, a) || (!runtime_->failed() && Equal(runtime_, a, b));
}

Value JinjaInterpreter::EvaluateCompare(const JinjaExpr& expr, JinjaScope* scope) {
  Value left = Evaluate(*expr.parts[0], scope);
  for (std::size_t i = 0; i < expr.operators.size(); ++i) {
    Value right = Evaluate(*expr.parts[i + 1], scope);
    runtime_->set_line(expr.line);
    if (runtime_->failed() || !CompareOnce(expr.operators[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value JinjaInterpreter::EvaluateSlice(const JinjaExpr& expr, JinjaScope* scope) {
  const Value object = Evaluate(*expr.parts[0], scope);
  Value limits[3];
  const Value* given[3] = {};
  for (std::size_t i = 0; i < 3; ++i) {
    if (expr.parts[i + 1] == nullptr) continue;
    limits[i] = Evaluate(*expr.parts[i + 1], scope);
    given[i] = &limits[i];
  }
  runtime_->set_line(expr.line);
  return GetSlice(runtime_, object, given[0], given[1], given[2]);
}

JinjaArgs JinjaInterpreter::EvaluateArguments(const JinjaArguments& arguments, JinjaScope* scope) {
  JinjaArgs args;
  for (const JinjaExprPtr& argument : arguments.positional) {
    args.positional.push_back(Evaluate(*argument, scope));
  }
  for (const auto& [name, argument] : arguments.named) {
    args.named.emplace_back(name, Evaluate(*argument, scope));
  }
  return args;
}

Value JinjaInterpreter::Call(const Value& callee, const JinjaArgs& args) {
  if (!runtime_->Work(1)) return Undefined{};
  if (IsUndefined(callee)) {
    const Text& name = std::get<Undefined>(callee).name;
    return runtime_->Fail(absl::StrCat("'", name == nullptr ? "value" : *name, "' is undefined"));
  }
  const CallableObject* callable = CallableOf(callee);
  if (callable == nullptr) {
    return runtime_->Fail(absl::StrCat("a ", TypeName(callee), " cannot be called"));
  }
  switch (callable->kind) {
    case CallableObject::Kind::kMacro:
      return CallMacro(*callable, args);
    case CallableObject::Kind::kGlobal:
      return CallGlobal(runtime_, callable->name, args, now_);
    case CallableObject::Kind::kMethod:
      if (CallableOf(callable->self) != nullptr) return CallLoopMethod(*callable, args);
      return CallMethod(runtime_, callable->self, callable->name, args);
    case CallableObject::Kind::kLoop:
      break;
  }
  return runtime_->Fail("recursive loops are not supported");
}

Value JinjaInterpreter::CallMacro(const CallableObject& callee, const JinjaArgs& args) {
  const JinjaRuntime::Depth depth(runtime_);
  if (!depth.ok()) return Undefined{};
  JinjaScope* scope = NewScope(callee.scope);
  BindArguments(*callee.macro, args, scope);
  Value text = Undefined{};
  if (!runtime_->failed()) text = Capture(callee.macro->body, scope);
  FreeScope(scope);
  return text;
}

void JinjaInterpreter::BindArguments(const JinjaMacro& macro, const JinjaArgs& args,
                                     JinjaScope* scope) {
  const std::size_t count = macro.parameters.size();
  const auto set = [&](std::string_view name, Value value) {
    scope->variables.emplace_back(name, std::move(value));
  };
  for (std::size_t i = 0; i < count && !runtime_->failed(); ++i) {
    const JinjaMacro::Parameter& parameter = macro.parameters[i];
    if (const Value* given = args.Get(i, parameter.name)) {
      set(parameter.name, *given);
    } else if (parameter.fallback != nullptr) {
      set(parameter.name, Evaluate(*parameter.fallback, scope));
    } else {
      set(parameter.name, Undefined{std::make_shared<const std::string>(parameter.name)});
    }
  }
  if (args.positional.size() > count && !macro.takes_varargs) {
    runtime_->Fail(
        absl::StrCat("macro '", macro.name, "' takes not more than ", count, " argument(s)"));
  }
  std::vector<Value> more;
  for (std::size_t i = count; i < args.positional.size(); ++i) more.push_back(args.positional[i]);
  if (macro.takes_varargs) {
    set("varargs", runtime_->NewSequence(SequenceObject::Kind::kTuple, std::move(more)));
  }
  DictObject* kwargs = macro.takes_kwargs ? runtime_->NewDict() : nullptr;
  for (const auto& [name, value] : args.named) {
    std::size_t at = 0;
    while (at < count && macro.parameters[at].name != name) ++at;
    if (at < count) {
      if (at < args.positional.size()) {
        runtime_->Fail(absl::StrCat("macro '", macro.name, "' got '", ToAbsl(name), "' twice"));
      }
    } else if (name == "caller" && macro.takes_caller) {
      set("caller", value);
    } else if (kwargs != nullptr) {
      runtime_->Set(kwargs, runtime_->NewString(std::string(name)), value);
    } else {
      runtime_->Fail(
          absl::StrCat("macro '", macro.name, "' takes no argument '", ToAbsl(name), "'"));
    }
  }
  if (kwargs != nullptr) set("kwargs", kwargs);
}

Value LoopAttribute(JinjaRuntime* runtime, const CallableObject& handle, std::string_view name) {
  const JinjaLoop* loop = handle.loop;
  const auto undefined = [&] {
    return Undefined{std::make_shared<const std::string>(absl::StrCat("loop.", ToAbsl(name)))};
  };
  if (loop == nullptr) return undefined();
  const auto index0 = static_cast<std::int64_t>(loop->index0);
  const auto length = static_cast<std::int64_t>(loop->items->size());
  if (name == "index") return index0 + 1;
  if (name == "index0") return index0;
  if (name == "revindex") return length - index0;
  if (name == "revindex0") return length - index0 - 1;
  if (name == "first") return index0 == 0;
  if (name == "last") return index0 == length - 1;
  if (name == "length") return length;
  // Only recursive loops, which there are none of, get deeper.
  if (name == "depth") return std::int64_t{1};
  if (name == "depth0") return std::int64_t{0};
  if (name == "previtem" && index0 > 0) return (*loop->items)[loop->index0 - 1];
  if (name == "nextitem" && index0 + 1 < length) return (*loop->items)[loop->index0 + 1];
  if (name == "cycle" || name == "changed") {
    CallableObject* method = runtime->NewCallable(CallableObject::Kind::kMethod, name);
    method->self = const_cast<CallableObject*>(&handle);
    return method;
  }
  return undefined();
}

Value JinjaInterpreter::CallLoopMethod(const CallableObject& callee, const JinjaArgs& args) {
  JinjaLoop* loop = CallableOf(callee.self)->loop;
  if (loop == nullptr) return runtime_->Fail("the loop is over");
  if (callee.name == "cycle") {
    if (args.positional.empty()) return runtime_->Fail("no items for cycling given");
    return args.positional[loop->index0 % args.positional.size()];
  }
  const Value now = runtime_->NewSequence(SequenceObject::Kind::kTuple, args.positional);
  const bool changed = !loop->last_changed || !Equal(runtime_, *loop->last_changed, now);
  loop->last_changed = now;
  return changed;
}

Value JinjaInterpreter::ApplyFilters(const JinjaExpr& filters, Value input, JinjaScope* scope) {
  const Value outer = std::exchange(filter_input_, std::move(input));
  Value result = Evaluate(filters, scope);
  filter_input_ = outer;
  return result;
}

}  // namespace penstock::model
