// SPDX-License-Identifier: Apache-2.0
// The filters that go over lists. As ApplyFilter; jinja_filters.cc has their names.
#pragma once

#include "model/jinja_builtins.h"

namespace penstock::model {

Value FilterMap(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
// select, reject, selectattr, rejectattr.
Value FilterSelect(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args, bool keep,
                   bool by_attribute);
Value FilterSort(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
Value FilterDictSort(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
Value FilterUnique(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
Value FilterJoin(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
Value FilterSum(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
Value FilterExtreme(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args, bool most);
Value FilterReverse(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
Value FilterItems(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args);
Value FilterEnd(JinjaRuntime* runtime, const Value& input, const JinjaArgs& args, bool last);

}  // namespace penstock::model
