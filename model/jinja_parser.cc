// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_parser.h"

#include <algorithm>

#include "base/status.h"
#include "model/jinja_parser_state.h"

namespace penstock::model {

absl::StatusOr<JinjaBody> ParseJinja(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<JinjaToken> tokens, LexJinja(source));
  JinjaParser parser(std::move(tokens));
  JinjaBody body = parser.ParseTemplate();
  RETURN_IF_ERROR(parser.status());
  return body;
}

JinjaParser::Nesting::Nesting(JinjaParser* parser) : parser_(parser) {
  if (++parser->nesting_ > kJinjaDepthMax) {
    parser->Fail(absl::StrCat("nested deeper than ", kJinjaDepthMax));
  }
}

void JinjaParser::Fail(std::string_view message) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(
      absl::StrCat("chat template, line ", Current().line, ": ", ToAbsl(message)));
  at_ = tokens_.size() - 1;
}

bool JinjaParser::IsOperator(std::string_view op) const {
  return Current().kind == TokenKind::kOperator && Current().text == op;
}

bool JinjaParser::IsName(std::string_view name) const {
  return Current().kind == TokenKind::kName && Current().text == name;
}

bool JinjaParser::SkipOperator(std::string_view op) {
  if (!IsOperator(op)) return false;
  Next();
  return true;
}

bool JinjaParser::SkipName(std::string_view name) {
  if (!IsName(name)) return false;
  Next();
  return true;
}

void JinjaParser::ExpectOperator(std::string_view op) {
  if (!SkipOperator(op)) Fail(absl::StrCat("expected '", ToAbsl(op), "'"));
}

std::string JinjaParser::ExpectName() {
  if (Current().kind != TokenKind::kName) {
    Fail("expected a name");
    return {};
  }
  std::string name = Current().text;
  Next();
  return name;
}

JinjaBody JinjaParser::ParseTemplate() {
  JinjaBody body = ParseUntil({});
  if (Current().kind != TokenKind::kEnd) Fail("unexpected end of a block");
  return body;
}

JinjaBody JinjaParser::ParseUntil(std::initializer_list<std::string_view> ends) {
  JinjaBody body;
  const Nesting nesting(this);
  while (Current().kind != TokenKind::kEnd) {
    if (Current().kind == TokenKind::kData) {
      body.push_back(NewStatement(StatementKind::kText));
      body.back()->text = Current().text;
      Next();
    } else if (Current().kind == TokenKind::kPrintBegin) {
      Next();
      body.push_back(NewStatement(StatementKind::kPrint));
      body.back()->value = ParseTuple();
      if (Current().kind != TokenKind::kPrintEnd) Fail("expected '}}'");
      Next();
    } else {
      Next();  // {%
      if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return IsName(end); })) return body;
      if (auto statement = ParseStatement()) body.push_back(std::move(statement));
    }
  }
  if (ends.size() > 0) Fail(absl::StrCat("a block is never closed with ", ToAbsl(*ends.begin())));
  return body;
}

JinjaBody JinjaParser::ParseBlock(std::string_view end) {
  ExpectBlockEnd();
  JinjaBody body = ParseUntil({end});
  Next();
  return body;
}

void JinjaParser::ExpectBlockEnd() {
  if (Current().kind != TokenKind::kBlockEnd) Fail("expected '%}'");
  Next();
}

std::unique_ptr<JinjaStatement> JinjaParser::NewStatement(StatementKind kind) const {
  auto statement = std::make_unique<JinjaStatement>();
  statement->kind = kind;
  statement->line = Current().line;
  return statement;
}

// The name of the tag is the current token.
std::unique_ptr<JinjaStatement> JinjaParser::ParseStatement() {
  const std::string tag = Current().kind == TokenKind::kName ? Current().text : "";
  std::unique_ptr<JinjaStatement> statement;
  if (tag == "if") {
    statement = ParseIf();
  } else if (tag == "for") {
    statement = ParseFor();
  } else if (tag == "set") {
    statement = ParseSet();
  } else if (tag == "macro") {
    statement = ParseMacro();
  } else if (tag == "call") {
    statement = ParseCall();
  } else if (tag == "filter") {
    statement = ParseFilterBlock();
  } else if (tag == "with") {
    statement = ParseWith();
  } else if (tag == "generation" || tag == "block") {
    statement = ParseScope();
  } else if (tag == "break" || tag == "continue") {
    if (loops_ == 0) Fail(absl::StrCat("'", tag, "' outside of a loop"));
    statement = NewStatement(tag == "break" ? StatementKind::kBreak : StatementKind::kContinue);
    Next();
  } else {
    Fail(absl::StrCat("tag '", tag, "' is not supported here"));
    return nullptr;
  }
  ExpectBlockEnd();
  return statement;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseIf() {
  auto statement = NewStatement(StatementKind::kIf);
  do {
    Next();  // if, elif
    JinjaExprPtr condition = ParseTuple(false);
    ExpectBlockEnd();
    JinjaBody body = ParseUntil({"endif", "elif", "else"});
    statement->branches.emplace_back(std::move(condition), std::move(body));
  } while (IsName("elif"));
  if (SkipName("else")) {
    statement->otherwise = ParseBlock("endif");
  } else {
    Next();
  }
  return statement;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseFor() {
  auto statement = NewStatement(StatementKind::kFor);
  Next();
  statement->target = ParseTarget(false);
  if (!SkipName("in")) Fail("expected 'in'");
  statement->value = ParseTuple(false);
  if (SkipName("if")) statement->filter = ParseExpression();
  if (IsName("recursive")) Fail("recursive loops are not supported");
  ExpectBlockEnd();
  ++loops_;
  statement->body = ParseUntil({"endfor", "else"});
  --loops_;
  if (SkipName("else")) {
    statement->otherwise = ParseBlock("endfor");
  } else {
    Next();
  }
  return statement;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseSet() {
  auto statement = NewStatement(StatementKind::kSet);
  Next();
  statement->target = ParseTarget(true);
  if (SkipOperator("=")) {
    statement->value = ParseTuple();
    return statement;
  }
  statement->kind = StatementKind::kSetBlock;
  while (IsOperator("|")) statement->value = ParseFilter(std::move(statement->value));
  statement->body = ParseBlock("endset");
  return statement;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseMacro() {
  auto statement = NewStatement(StatementKind::kMacro);
  Next();
  statement->macro = std::make_unique<JinjaMacro>();
  statement->macro->name = ExpectName();
  ParseParameters(statement->macro.get());
  ParseMacroBody(statement->macro.get(), "endmacro");
  return statement;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseCall() {
  auto statement = NewStatement(StatementKind::kCall);
  Next();
  statement->macro = std::make_unique<JinjaMacro>();
  statement->macro->name = "caller";
  if (IsOperator("(")) ParseParameters(statement->macro.get());
  statement->value = ParseExpression();
  if (statement->value != nullptr && statement->value->kind != ExprKind::kCall) {
    Fail("expected a call");
  }
  ParseMacroBody(statement->macro.get(), "endcall");
  return statement;
}

void JinjaParser::ParseParameters(JinjaMacro* macro) {
  ExpectOperator("(");
  while (status_.ok() && !IsOperator(")")) {
    if (!macro->parameters.empty()) ExpectOperator(",");
    if (IsOperator(")")) break;
    JinjaMacro::Parameter& parameter = macro->parameters.emplace_back();
    parameter.name = ExpectName();
    if (SkipOperator("=")) {
      parameter.fallback = ParseExpression();
    } else if (macro->parameters.size() > 1 &&
               macro->parameters[macro->parameters.size() - 2].fallback != nullptr) {
      Fail("a parameter without default follows one with a default");
    }
  }
  ExpectOperator(")");
}

void JinjaParser::ParseMacroBody(JinjaMacro* macro, std::string_view end) {
  const int loops = std::exchange(loops_, 0);
  macros_.push_back(macro);
  macro->body = ParseBlock(end);
  macros_.pop_back();
  loops_ = loops;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseFilterBlock() {
  auto statement = NewStatement(StatementKind::kFilter);
  // `filter upper | trim`: the first one has no bar before it.
  tokens_[at_].kind = TokenKind::kOperator;
  tokens_[at_].text.assign(1, '|');
  while (IsOperator("|")) statement->value = ParseFilter(std::move(statement->value));
  statement->body = ParseBlock("endfilter");
  return statement;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseWith() {
  auto statement = NewStatement(StatementKind::kWith);
  Next();
  while (status_.ok() && Current().kind != TokenKind::kBlockEnd) {
    if (!statement->assignments.empty()) ExpectOperator(",");
    JinjaTarget target = ParseTarget(false);
    ExpectOperator("=");
    statement->assignments.emplace_back(std::move(target), ParseExpression());
  }
  statement->body = ParseBlock("endwith");
  return statement;
}

std::unique_ptr<JinjaStatement> JinjaParser::ParseScope() {
  auto statement = NewStatement(StatementKind::kScope);
  const bool block = SkipName("block");
  if (!block) Next();
  if (block) ExpectName();
  statement->body = ParseBlock(block ? "endblock" : "endgeneration");
  if (block && Current().kind == TokenKind::kName) Next();
  return statement;
}

JinjaTarget JinjaParser::ParseTarget(bool with_attribute) {
  JinjaTarget first = ParseTargetItem(with_attribute);
  if (!IsOperator(",")) return first;
  JinjaTarget tuple;
  tuple.parts.push_back(std::move(first));
  while (SkipOperator(",")) {
    if (Current().kind != TokenKind::kName && !IsOperator("(")) break;
    if (IsName("in")) break;
    tuple.parts.push_back(ParseTargetItem(with_attribute));
  }
  return tuple;
}

JinjaTarget JinjaParser::ParseTargetItem(bool with_attribute) {
  const Nesting nesting(this);
  if (SkipOperator("(")) {
    JinjaTarget inner = ParseTarget(with_attribute);
    ExpectOperator(")");
    return inner;
  }
  JinjaTarget target;
  target.name = ExpectName();
  for (const std::string_view reserved : {"true", "True", "false", "False", "none", "None"}) {
    if (target.name == reserved) Fail(absl::StrCat("cannot assign to '", target.name, "'"));
  }
  if (with_attribute && SkipOperator(".")) target.attribute = ExpectName();
  return target;
}

}  // namespace penstock::model
