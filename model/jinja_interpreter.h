// SPDX-License-Identifier: Apache-2.0
// Walks the tree of a chat template. One rendering, one thread.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_ast.h"
#include "model/jinja_builtins.h"
#include "model/jinja_runtime.h"

namespace penstock::model {

// Variables of a loop turn, a macro call, a block. Names are owned by the tree or by the variables.
struct JinjaScope {
  JinjaScope* parent = nullptr;
  bool captured = false;  // A macro may outlive the block: not to be used again.
  std::vector<std::pair<std::string_view, Value>> variables;
};

// What `loop` tells inside of a for loop.
struct JinjaLoop {
  const std::vector<Value>* items = nullptr;
  std::size_t index0 = 0;
  std::optional<Value> last_changed;  // Of loop.changed().
};

// loop.index and so on; undefined once the loop is over.
Value LoopAttribute(JinjaRuntime* runtime, const CallableObject& loop, std::string_view name);

class JinjaInterpreter {
 public:
  // `runtime` must outlive this. `now`: what strftime_now tells; without, there is no strftime_now.
  JinjaInterpreter(JinjaRuntime* runtime, std::optional<std::int64_t> now)
      : runtime_(runtime), now_(now), root_(NewScope(nullptr)) {}

  void SetVariable(std::string_view name, Value value);
  // The text; believe it only if the runtime has not failed.
  std::string Run(const JinjaBody& body);

 private:
  enum class Flow { kNext, kBreak, kContinue };

  // jinja_interpreter.cc: statements.
  JinjaScope* NewScope(JinjaScope* parent);
  void FreeScope(JinjaScope* scope);
  void Write(std::string_view text);
  Flow Execute(const JinjaBody& body, JinjaScope* scope);
  Flow ExecuteOne(const JinjaStatement& statement, JinjaScope* scope);
  Flow ExecuteIf(const JinjaStatement& statement, JinjaScope* scope);
  Flow ExecuteInner(const JinjaBody& body, JinjaScope* scope);
  void ExecuteFor(const JinjaStatement& statement, JinjaScope* scope);
  void FilterItems(const JinjaStatement& statement, JinjaScope* scope, std::vector<Value>* items);
  void ExecuteWith(const JinjaStatement& statement, JinjaScope* scope);
  void ExecuteCall(const JinjaStatement& statement, JinjaScope* scope);
  // `name` must outlive the rendering.
  void Define(std::string_view name, const Value& value, JinjaScope* scope);
  void Assign(const JinjaTarget& target, const Value& value, JinjaScope* scope);
  // What the body prints, as a string.
  Value Capture(const JinjaBody& body, JinjaScope* scope);
  Value MakeMacro(const JinjaMacro& macro, JinjaScope* scope);

  // jinja_evaluator.cc: expressions.
  Value Evaluate(const JinjaExpr& expr, JinjaScope* scope);
  Value EvaluateDeep(const JinjaExpr& expr, JinjaScope* scope);
  Value LookUp(const JinjaExpr& name, const JinjaScope* scope);
  Value EvaluateDict(const JinjaExpr& expr, JinjaScope* scope);
  Value EvaluateConcat(const JinjaExpr& expr, JinjaScope* scope);
  Value EvaluateCompare(const JinjaExpr& expr, JinjaScope* scope);
  bool CompareOnce(std::string_view op, const Value& a, const Value& b);
  Value EvaluateSlice(const JinjaExpr& expr, JinjaScope* scope);
  JinjaArgs EvaluateArguments(const JinjaArguments& arguments, JinjaScope* scope);
  std::vector<Value> EvaluateParts(const JinjaExpr& expr, JinjaScope* scope);
  Value Call(const Value& callee, const JinjaArgs& args);
  Value CallMacro(const CallableObject& callee, const JinjaArgs& args);
  void BindArguments(const JinjaMacro& macro, const JinjaArgs& args, JinjaScope* scope);
  Value CallLoopMethod(const CallableObject& callee, const JinjaArgs& args);
  // `filters` over `input`.
  Value ApplyFilters(const JinjaExpr& filters, Value input, JinjaScope* scope);

  JinjaRuntime* const runtime_;
  const std::optional<std::int64_t> now_;
  std::deque<JinjaScope> scopes_;
  std::vector<JinjaScope*> free_scopes_;
  JinjaScope* const root_;
  std::string* out_ = nullptr;
  std::size_t out_bytes_ = 0;  // Of all text being built, inside captures as well.
  Value filter_input_;         // What a filter without operand gets.
};

}  // namespace penstock::model
