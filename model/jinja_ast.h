// SPDX-License-Identifier: Apache-2.0
// A parsed chat template. Plain data, immutable once parsed; any thread. The parser bounds its
// depth, so walking and destroying it by recursion is safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja_value.h"

namespace penstock::model {

struct JinjaExpr;
using JinjaExprPtr = std::unique_ptr<JinjaExpr>;

struct JinjaArguments {
  std::vector<JinjaExprPtr> positional;
  std::vector<std::pair<std::string, JinjaExprPtr>> named;
};

struct JinjaExpr {
  enum class Kind : std::uint8_t {
    kConstant,  // `constant`
    kName,      // `name`
    kList,      // `parts`
    kTuple,     // `parts`
    kDict,      // `parts`: key, value, key, value, ...
    kNegative,  // `parts` [0]; so the three after
    kPositive,
    kNot,
    kBinary,   // `name` is the operator, `parts` both sides
    kConcat,   // `parts`
    kCompare,  // `parts`, `operators` between them
    kAnd,      // `parts`: both sides
    kOr,
    kCondition,  // `parts`: condition, then, else (may be null)
    kAttribute,  // `parts` [0], `name`
    kItem,       // `parts`: object, key
    kSlice,      // `parts`: object, start, stop, step; all but the first may be null
    kCall,       // `parts` [0], `arguments`
    kFilter,     // `parts` [0] (null in a filter block), `name`, `arguments`
    kTest,       // `parts` [0], `name`, `arguments`
  };
  Kind kind = Kind::kConstant;
  int line = 0;
  int depth = 1;  // Of the tree below, itself counted.
  std::string name;
  Value constant;
  std::vector<JinjaExprPtr> parts;
  std::vector<std::string> operators;
  JinjaArguments arguments;
};

// What can be assigned to.
struct JinjaTarget {
  std::string name;                // A variable; or with
  std::string attribute;           // not empty, of a namespace.
  std::vector<JinjaTarget> parts;  // Not empty: a tuple to unpack into.
};

struct JinjaStatement;
using JinjaBody = std::vector<std::unique_ptr<JinjaStatement>>;

struct JinjaMacro {
  struct Parameter {
    std::string name;
    JinjaExprPtr fallback;  // May be null.
  };
  std::string name;
  std::vector<Parameter> parameters;
  JinjaBody body;
  bool takes_varargs = false;  // The body names `varargs`; so the two below.
  bool takes_kwargs = false;
  bool takes_caller = false;
};

struct JinjaStatement {
  enum class Kind : std::uint8_t {
    kText,      // `text`
    kPrint,     // `value`
    kIf,        // `branches`, `otherwise`
    kFor,       // `target`, `value`, `filter`, `body`, `otherwise`
    kSet,       // `target`, `value`
    kSetBlock,  // `target`, `body`, `value`: filters over null, may be null
    kMacro,     // `macro`
    kCall,      // `macro` (the caller), `value`: the call
    kFilter,    // `value`: filters over null, `body`
    kWith,      // `assignments`, `body`
    kScope,     // `body`: generation tags, blocks
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  JinjaExprPtr value;
  JinjaExprPtr filter;
  JinjaTarget target;
  std::vector<std::pair<JinjaExprPtr, JinjaBody>> branches;
  std::vector<std::pair<JinjaTarget, JinjaExprPtr>> assignments;
  JinjaBody body;
  JinjaBody otherwise;
  std::unique_ptr<JinjaMacro> macro;
};

}  // namespace penstock::model
