// SPDX-License-Identifier: Apache-2.0
// Expressions, by Jinja's precedences: if, or, and, not, comparisons, + -, ~, * / // %, **, signs,
// then subscripts, calls, filters and tests.
#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_builtins.h"
#include "model/jinja_parser.h"
#include "model/jinja_parser_state.h"

namespace penstock::model {

JinjaExprPtr JinjaParser::NewExpr(ExprKind kind, std::vector<JinjaExprPtr> parts) {
  auto expr = std::make_unique<JinjaExpr>();
  expr->kind = kind;
  expr->line = Current().line;
  expr->parts = std::move(parts);
  SetDepth(expr.get());
  return expr;
}

void JinjaParser::SetDepth(JinjaExpr* expr) {
  const auto add = [&](const JinjaExprPtr& part) {
    if (part != nullptr) expr->depth = std::max(expr->depth, part->depth + 1);
  };
  for (const JinjaExprPtr& part : expr->parts) add(part);
  for (const JinjaExprPtr& argument : expr->arguments.positional) add(argument);
  for (const auto& argument : expr->arguments.named) add(argument.second);
  if (expr->depth > kJinjaDepthMax) {
    Fail(absl::StrCat("an expression nested deeper than ", kJinjaDepthMax));
  }
}

namespace {

std::vector<JinjaExprPtr> Parts(JinjaExprPtr a, JinjaExprPtr b = nullptr) {
  std::vector<JinjaExprPtr> parts;
  parts.push_back(std::move(a));
  if (b != nullptr) parts.push_back(std::move(b));
  return parts;
}

}  // namespace

JinjaExprPtr JinjaParser::ParseExpression(bool with_condition) {
  const Nesting nesting(this);
  return with_condition ? ParseCondition() : ParseOr();
}

JinjaExprPtr JinjaParser::ParseTuple(bool with_condition) {
  std::vector<JinjaExprPtr> items;
  bool comma = false;
  const auto ends = [this] {
    const TokenKind kind = Current().kind;
    return kind == TokenKind::kPrintEnd || kind == TokenKind::kBlockEnd ||
           kind == TokenKind::kEnd || IsOperator(")");
  };
  while (!ends()) {
    items.push_back(ParseExpression(with_condition));
    comma = SkipOperator(",");
    if (!comma) break;
  }
  if (items.empty()) {
    Fail("expected an expression");
    return nullptr;
  }
  if (items.size() == 1 && !comma) return std::move(items[0]);
  return NewExpr(ExprKind::kTuple, std::move(items));
}

JinjaExprPtr JinjaParser::ParseCondition() {
  JinjaExprPtr value = ParseOr();
  while (SkipName("if")) {
    JinjaExprPtr condition = ParseOr();
    std::vector<JinjaExprPtr> parts = Parts(std::move(condition), std::move(value));
    parts.resize(2);
    const Nesting nesting(this);
    parts.push_back(SkipName("else") ? ParseCondition() : nullptr);
    value = NewExpr(ExprKind::kCondition, std::move(parts));
  }
  return value;
}

JinjaExprPtr JinjaParser::ParseOr() {
  JinjaExprPtr left = ParseAnd();
  while (SkipName("or")) {
    JinjaExprPtr right = ParseAnd();
    left = NewExpr(ExprKind::kOr, Parts(std::move(left), std::move(right)));
  }
  return left;
}

JinjaExprPtr JinjaParser::ParseAnd() {
  JinjaExprPtr left = ParseNot();
  while (SkipName("and")) {
    JinjaExprPtr right = ParseNot();
    left = NewExpr(ExprKind::kAnd, Parts(std::move(left), std::move(right)));
  }
  return left;
}

JinjaExprPtr JinjaParser::ParseNot() {
  const Nesting nesting(this);
  if (SkipName("not")) return NewExpr(ExprKind::kNot, Parts(ParseNot()));
  return ParseCompare();
}

JinjaExprPtr JinjaParser::ParseCompare() {
  JinjaExprPtr first = ParseSum();
  std::vector<JinjaExprPtr> parts;
  std::vector<std::string> operators;
  while (status_.ok()) {
    std::string op;
    for (const std::string_view known : {"==", "!=", "<", "<=", ">", ">="}) {
      if (IsOperator(known)) op = known;
    }
    if (IsName("in")) {
      op = "in";
    } else if (IsName("not") && Ahead().kind == TokenKind::kName && Ahead().text == "in") {
      op = "not in";
      Next();
    }
    if (op.empty()) break;
    Next();
    if (parts.empty()) parts.push_back(std::move(first));
    parts.push_back(ParseSum());
    operators.push_back(op);
  }
  if (operators.empty()) return first;
  JinjaExprPtr compare = NewExpr(ExprKind::kCompare, std::move(parts));
  compare->operators = std::move(operators);
  return compare;
}

JinjaExprPtr JinjaParser::ParseSum() {
  JinjaExprPtr left = ParseConcat();
  while (IsOperator("+") || IsOperator("-")) {
    const std::string op = Current().text;
    Next();
    JinjaExprPtr right = ParseConcat();
    left = NewExpr(ExprKind::kBinary, Parts(std::move(left), std::move(right)));
    left->name = op;
  }
  return left;
}

JinjaExprPtr JinjaParser::ParseConcat() {
  std::vector<JinjaExprPtr> parts = Parts(ParseProduct());
  while (SkipOperator("~")) parts.push_back(ParseProduct());
  if (parts.size() == 1) return std::move(parts[0]);
  return NewExpr(ExprKind::kConcat, std::move(parts));
}

JinjaExprPtr JinjaParser::ParseProduct() {
  JinjaExprPtr left = ParsePower();
  while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
    const std::string op = Current().text;
    Next();
    JinjaExprPtr right = ParsePower();
    left = NewExpr(ExprKind::kBinary, Parts(std::move(left), std::move(right)));
    left->name = op;
  }
  return left;
}

JinjaExprPtr JinjaParser::ParsePower() {
  JinjaExprPtr left = ParseUnary(true);
  while (SkipOperator("**")) {
    JinjaExprPtr right = ParseUnary(true);
    left = NewExpr(ExprKind::kBinary, Parts(std::move(left), std::move(right)));
    left->name = "**";
  }
  return left;
}

JinjaExprPtr JinjaParser::ParseUnary(bool with_filter) {
  const Nesting nesting(this);
  JinjaExprPtr expr;
  if (SkipOperator("-")) {
    expr = NewExpr(ExprKind::kNegative, Parts(ParseUnary(false)));
  } else if (SkipOperator("+")) {
    expr = NewExpr(ExprKind::kPositive, Parts(ParseUnary(false)));
  } else {
    expr = ParsePrimary();
  }
  expr = ParsePostfix(std::move(expr));
  return with_filter ? ParseFilters(std::move(expr)) : std::move(expr);
}

JinjaExprPtr JinjaParser::ParsePrimary() {
  const JinjaToken token = Current();
  if (token.kind == TokenKind::kName) {
    Next();
    JinjaExprPtr expr = NewExpr(ExprKind::kConstant);
    if (token.text == "true" || token.text == "True") {
      expr->constant = true;
    } else if (token.text == "false" || token.text == "False") {
      expr->constant = false;
    } else if (token.text == "none" || token.text == "None") {
      expr->constant = None{};
    } else {
      expr->kind = ExprKind::kName;
      expr->name = token.text;
      expr->constant = std::make_shared<const std::string>(token.text);
      if (!macros_.empty()) {
        if (token.text == "varargs") macros_.back()->takes_varargs = true;
        if (token.text == "kwargs") macros_.back()->takes_kwargs = true;
        if (token.text == "caller") macros_.back()->takes_caller = true;
      }
    }
    return expr;
  }
  if (token.kind == TokenKind::kString) {
    std::string text;
    for (; Current().kind == TokenKind::kString; Next()) text += Current().text;
    JinjaExprPtr expr = NewExpr(ExprKind::kConstant);
    expr->constant = std::make_shared<const std::string>(std::move(text));
    return expr;
  }
  if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) return ParseNumber();
  return ParseBracketed();
}

JinjaExprPtr JinjaParser::ParseNumber() {
  JinjaExprPtr expr = NewExpr(ExprKind::kConstant);
  const std::string text = Current().text;
  if (Current().kind == TokenKind::kFloat) {
    expr->constant = std::strtod(text.c_str(), nullptr);
    Next();
    return expr;
  }
  int base = 10;
  if (text.size() > 1 && text[0] == '0') {
    const char c = static_cast<char>(text[1] | 0x20);
    if (c == 'x') base = 16;
    if (c == 'o') base = 8;
    if (c == 'b') base = 2;
  }
  std::int64_t value = 0;
  const char* begin = text.data() + (base == 10 ? 0 : 2);
  const char* end = text.data() + text.size();
  const std::from_chars_result read = std::from_chars(begin, end, value, base);
  if (read.ec != std::errc() || read.ptr != end) {
    Fail(absl::StrCat("'", text, "' is no integer of 64 bits"));
  }
  expr->constant = value;
  Next();
  return expr;
}

JinjaExprPtr JinjaParser::ParseBracketed() {
  if (SkipOperator("(")) {
    JinjaExprPtr inner = IsOperator(")") ? NewExpr(ExprKind::kTuple) : ParseTuple();
    ExpectOperator(")");
    return inner;
  }
  const bool dict = IsOperator("{");
  if (!dict && !IsOperator("[")) {
    Fail(Current().text.empty() ? "expected an expression"
                                : absl::StrCat("unexpected '", Current().text, "'"));
    return nullptr;
  }
  Next();
  const std::string_view close = dict ? "}" : "]";
  std::vector<JinjaExprPtr> parts;
  while (status_.ok() && !IsOperator(close)) {
    if (!parts.empty()) ExpectOperator(",");
    if (IsOperator(close)) break;
    parts.push_back(ParseExpression());
    if (!dict) continue;
    ExpectOperator(":");
    parts.push_back(ParseExpression());
  }
  ExpectOperator(close);
  return NewExpr(dict ? ExprKind::kDict : ExprKind::kList, std::move(parts));
}

JinjaExprPtr JinjaParser::ParsePostfix(JinjaExprPtr expr) {
  while (status_.ok()) {
    if (IsOperator(".") || IsOperator("[")) {
      expr = ParseSubscript(std::move(expr));
    } else if (IsOperator("(")) {
      expr = ParseCallOf(std::move(expr));
    } else {
      break;
    }
  }
  return expr;
}

JinjaExprPtr JinjaParser::ParseSubscript(JinjaExprPtr expr) {
  if (SkipOperator(".")) {
    if (Current().kind == TokenKind::kInteger) {
      return NewExpr(ExprKind::kItem, Parts(std::move(expr), ParseNumber()));
    }
    JinjaExprPtr attribute = NewExpr(ExprKind::kAttribute, Parts(std::move(expr)));
    attribute->name = ExpectName();
    attribute->constant = std::make_shared<const std::string>(attribute->name);
    return attribute;
  }
  Next();  // [
  std::vector<JinjaExprPtr> parts = Parts(std::move(expr));
  bool slice = false;
  while (status_.ok() && parts.size() < 4) {
    parts.push_back(IsOperator(":") || IsOperator("]") ? nullptr : ParseExpression());
    if (!SkipOperator(":")) break;
    slice = true;
  }
  if (!slice && parts.back() == nullptr) Fail("expected an expression in []");
  if (slice) parts.resize(4);
  ExpectOperator("]");
  return NewExpr(slice ? ExprKind::kSlice : ExprKind::kItem, std::move(parts));
}

JinjaExprPtr JinjaParser::ParseCallOf(JinjaExprPtr expr) {
  JinjaExprPtr call = NewExpr(ExprKind::kCall, Parts(std::move(expr)));
  call->arguments = ParseArguments();
  SetDepth(call.get());
  return call;
}

JinjaArguments JinjaParser::ParseArguments() {
  JinjaArguments arguments;
  ExpectOperator("(");
  bool first = true;
  while (status_.ok() && !IsOperator(")")) {
    if (!first) ExpectOperator(",");
    first = false;
    if (IsOperator(")")) break;
    if (IsOperator("*") || IsOperator("**")) {
      Fail("unpacking of arguments (*, **) is not supported");
    } else if (Current().kind == TokenKind::kName && Ahead().kind == TokenKind::kOperator &&
               Ahead().text == "=") {
      std::string name = ExpectName();
      Next();
      arguments.named.emplace_back(std::move(name), ParseExpression());
    } else {
      if (!arguments.named.empty()) Fail("a positional argument follows a named one");
      arguments.positional.push_back(ParseExpression());
    }
  }
  ExpectOperator(")");
  return arguments;
}

JinjaExprPtr JinjaParser::ParseFilters(JinjaExprPtr expr) {
  while (status_.ok()) {
    if (IsOperator("|")) {
      expr = ParseFilter(std::move(expr));
    } else if (IsName("is")) {
      expr = ParseTest(std::move(expr));
    } else if (IsOperator("(")) {
      expr = ParseCallOf(std::move(expr));
    } else {
      break;
    }
  }
  return expr;
}

JinjaExprPtr JinjaParser::ParseFilter(JinjaExprPtr expr) {
  Next();  // |
  std::vector<JinjaExprPtr> parts;
  parts.push_back(std::move(expr));  // Null in a filter block.
  JinjaExprPtr filter = NewExpr(ExprKind::kFilter, std::move(parts));
  filter->name = ExpectName();
  if (status_.ok() && !IsJinjaFilter(filter->name)) {
    Fail(absl::StrCat("filter '", filter->name, "' is not supported"));
  }
  if (IsOperator("(")) filter->arguments = ParseArguments();
  SetDepth(filter.get());
  return filter;
}

JinjaExprPtr JinjaParser::ParseTest(JinjaExprPtr expr) {
  Next();  // is
  const bool negated = SkipName("not");
  JinjaExprPtr test = NewExpr(ExprKind::kTest, Parts(std::move(expr)));
  test->name = ExpectName();
  if (status_.ok() && !IsJinjaTest(test->name)) {
    Fail(absl::StrCat("test '", test->name, "' is not supported"));
  }
  const TokenKind kind = Current().kind;
  const bool operand = kind == TokenKind::kName || kind == TokenKind::kString ||
                       kind == TokenKind::kInteger || kind == TokenKind::kFloat ||
                       IsOperator("[") || IsOperator("{");
  if (IsOperator("(")) {
    test->arguments = ParseArguments();
  } else if (operand && !IsName("else") && !IsName("or") && !IsName("and")) {
    if (IsName("is")) Fail("tests cannot be chained with 'is'");
    test->arguments.positional.push_back(ParsePostfix(ParsePrimary()));
  }
  SetDepth(test.get());
  return negated ? NewExpr(ExprKind::kNot, Parts(std::move(test))) : std::move(test);
}

}  // namespace penstock::model
