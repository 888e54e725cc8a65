// SPDX-License-Identifier: Apache-2.0
// The recursive-descent parser behind ParseJinja. After the first error the current token is kEnd
// for ever, so every loop ends and nodes may have null parts; the tree is then thrown away.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "model/jinja_ast.h"
#include "model/jinja_lexer.h"

namespace penstock::model {

class JinjaParser {
 public:
  explicit JinjaParser(std::vector<JinjaToken> tokens) : tokens_(std::move(tokens)) {}

  // The whole template; believe it only if status() is OK.
  JinjaBody ParseTemplate();
  const absl::Status& status() const { return status_; }

 private:
  using TokenKind = JinjaToken::Kind;
  using ExprKind = JinjaExpr::Kind;
  using StatementKind = JinjaStatement::Kind;

  // Bounds the recursion of the parser itself.
  class Nesting {
   public:
    explicit Nesting(JinjaParser* parser);
    ~Nesting() { --parser_->nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    JinjaParser* const parser_;
  };

  // jinja_parser.cc: tokens and statements.
  const JinjaToken& Current() const { return tokens_[at_]; }
  const JinjaToken& Ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void Next() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  void Fail(std::string_view message);
  bool IsOperator(std::string_view op) const;
  bool IsName(std::string_view name) const;
  bool SkipOperator(std::string_view op);
  bool SkipName(std::string_view name);
  void ExpectOperator(std::string_view op);
  std::string ExpectName();

  // Statements up to a block that starts with one of `ends` (left as the current token).
  JinjaBody ParseUntil(std::initializer_list<std::string_view> ends);
  // As above, and the end block as well.
  JinjaBody ParseBlock(std::string_view end);
  void ExpectBlockEnd();
  std::unique_ptr<JinjaStatement> NewStatement(StatementKind kind) const;
  std::unique_ptr<JinjaStatement> ParseStatement();
  std::unique_ptr<JinjaStatement> ParseIf();
  std::unique_ptr<JinjaStatement> ParseFor();
  std::unique_ptr<JinjaStatement> ParseSet();
  std::unique_ptr<JinjaStatement> ParseMacro();
  std::unique_ptr<JinjaStatement> ParseCall();
  std::unique_ptr<JinjaStatement> ParseFilterBlock();
  std::unique_ptr<JinjaStatement> ParseWith();
  std::unique_ptr<JinjaStatement> ParseScope();
  void ParseParameters(JinjaMacro* macro);
  void ParseMacroBody(JinjaMacro* macro, std::string_view end);
  JinjaTarget ParseTarget(bool with_attribute);
  JinjaTarget ParseTargetItem(bool with_attribute);

  // jinja_expression_parser.cc
  JinjaExprPtr NewExpr(ExprKind kind, std::vector<JinjaExprPtr> parts = {});
  void SetDepth(JinjaExpr* expr);
  JinjaExprPtr ParseExpression(bool with_condition = true);
  JinjaExprPtr ParseTuple(bool with_condition = true);
  JinjaExprPtr ParseCondition();
  JinjaExprPtr ParseOr();
  JinjaExprPtr ParseAnd();
  JinjaExprPtr ParseNot();
  JinjaExprPtr ParseCompare();
  JinjaExprPtr ParseSum();
  JinjaExprPtr ParseConcat();
  JinjaExprPtr ParseProduct();
  JinjaExprPtr ParsePower();
  JinjaExprPtr ParseUnary(bool with_filter);
  JinjaExprPtr ParsePrimary();
  JinjaExprPtr ParseNumber();
  JinjaExprPtr ParseBracketed();
  JinjaExprPtr ParsePostfix(JinjaExprPtr expr);
  JinjaExprPtr ParseSubscript(JinjaExprPtr expr);
  JinjaExprPtr ParseCallOf(JinjaExprPtr expr);
  JinjaExprPtr ParseFilters(JinjaExprPtr expr);
  JinjaExprPtr ParseFilter(JinjaExprPtr expr);
  JinjaExprPtr ParseTest(JinjaExprPtr expr);
  JinjaArguments ParseArguments();

  std::vector<JinjaToken> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;                    // Around the current statement: break needs one.
  std::vector<JinjaMacro*> macros_;  // Whose bodies are being parsed, innermost last.
  absl::Status status_;
};

}  // namespace penstock::model
