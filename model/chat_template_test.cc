// SPDX-License-Identifier: Apache-2.0
#include "model/chat_template.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gtest/gtest.h"

namespace penstock::model {
namespace {

using Json = nlohmann::ordered_json;

const std::string kGolden = PENSTOCK_SOURCE_DIR "/tests/golden/";

Json ReadJson(const std::string& name) {
  const auto text = ReadFile(kGolden + name, 16 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? Json::parse(*text) : Json();
}

absl::StatusOr<std::string> Render(std::string_view source, const Json& variables) {
  const auto made = ChatTemplate::Compile(source);
  if (!made.ok()) return made.status();
  return (*made)->Render(variables);
}

// `golden`: {"text"} or {"error": a part of our message, may be empty}.
void ExpectGolden(std::string_view source, const Json& variables, const Json& golden) {
  const absl::StatusOr<std::string> text = Render(source, variables);
  if (golden.contains("error")) {
    ASSERT_FALSE(text.ok()) << *text;
    EXPECT_TRUE(absl::StrContains(text.status().message(), golden["error"].get<std::string>()))
        << text.status();
  } else {
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, golden["text"].get<std::string>());
  }
}

TEST(ChatTemplateTest, PublishedTemplatesAgreeWithJinja2) {
  const Json goldens = ReadJson("chat_templates/renderings.json");
  std::size_t checked = 0;
  for (const auto& [name, renderings] : goldens["templates"].items()) {
    const auto source = ReadFile(absl::StrCat(kGolden, "chat_templates/", name, ".jinja"), 1 << 20);
    ASSERT_TRUE(source.ok()) << source.status();
    for (const auto& [conversation, golden] : renderings.items()) {
      SCOPED_TRACE(absl::StrCat(name, " ", conversation));
      ExpectGolden(*source, goldens["conversations"].at(conversation), golden);
      ++checked;
    }
  }
  EXPECT_GE(checked, 100u);
}

TEST(ChatTemplateTest, ExpressionsAgreeWithJinja2) {
  const Json goldens = ReadJson("chat_templates/expressions.json");
  ASSERT_GE(goldens["cases"].size(), 200u);
  for (const Json& golden : goldens["cases"]) {
    const auto source = golden["source"].get<std::string>();
    SCOPED_TRACE(source);
    ExpectGolden(source, goldens["variables"], golden);
  }
}

TEST(ChatTemplateTest, RefusesWhenCompiled) {
  struct Case {
    const char* source;
    const char* want;
  };
  for (const Case& c : {
           Case{"a\n{% frobnicate %}", "line 2: tag 'frobnicate' is not supported"},
           Case{"{{ x | frobnicate }}", "filter 'frobnicate' is not supported"},
           Case{"{{ x is frobnicate }}", "test 'frobnicate' is not supported"},
           Case{"{{ x", "never closed"},
           Case{"{% if x %}a", "never closed with endif"},
           Case{"{% for x in y %}", "never closed with endfor"},
           Case{"{# x", "never closed"},
           Case{"{% raw %}x", "never closed"},
           Case{"{{ 'x }}", "string is never closed"},
           Case{"{{ ) }}", "unexpected ')'"},
           Case{"{{ }}", "expected an expression"},
           Case{"{% endif %}", "tag 'endif' is not supported here"},
           Case{"{% break %}", "outside of a loop"},
           Case{"{% set true = 1 %}", "cannot assign to 'true'"},
           Case{"{{ 99999999999999999999 }}", "no integer of 64 bits"},
           Case{"{% for x in y recursive %}{% endfor %}", "recursive"},
           Case{"{% include 'x' %}", "tag 'include'"},
           Case{"{{ f(*x) }}", "unpacking"},
           Case{"{{ $ }}", "unexpected character"},
       }) {
    SCOPED_TRACE(c.source);
    const auto made = ChatTemplate::Compile(c.source);
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(made.status().message(), c.want)) << made.status();
  }
}

TEST(ChatTemplateTest, HostileTemplatesEnd) {
  const auto repeated = [](std::string_view before, std::string_view after, int times) {
    std::string text;
    for (int i = 0; i < times; ++i) text += before;
    text += "1";
    for (int i = 0; i < times; ++i) text += after;
    return text;
  };
  for (const std::string& source : {
           absl::StrCat("{{ ", repeated("(", ")", 10000), " }}"),
           absl::StrCat("{{ ", repeated("[", "]", 10000), " }}"),
           absl::StrCat("{{ ", repeated("-", "", 10000), " }}"),
           absl::StrCat("{{ ", repeated("not ", "", 10000), " }}"),
           absl::StrCat("{{ ", repeated("1+", "", 10000), " }}"),
           absl::StrCat("{{ ", repeated("1 if 1 else ", "", 10000), " }}"),
           absl::StrCat("{{ ", repeated("", "|abs", 10000), " }}"),
           absl::StrCat("{{ ", repeated("", ".a", 10000), " }}"),
           repeated("{% if 1 %}", "{% endif %}", 10000),
           repeated("{% for a in b %}", "{% endfor %}", 10000),
           std::string("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
           std::string(
               "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
           std::string("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}"),
           std::string("{{ range(10**18) }}"),
           std::string("{{ 'x' * 10**15 }}"),
           std::string("{{ [0] * 10**15 }}"),
           std::string("{{ 9**9**9 }}"),
           std::string("{{ -9223372036854775807 - 2 }}"),
           std::string("{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
                       "{% set ns.s = ns.s + ns.s %}{% endfor %}"),
           std::string("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}"
                       "{% set ns.l = ns.l + ns.l %}{% endfor %}"),
           std::string("{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
                       "{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}"),
           std::string("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns }}"),
           std::string("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me|tojson }}"),
           std::string("{{ 'aaaaaaaaaa'.replace('', 'x' * 9999999) }}"),
           std::string("{{ '%9999999999d' % 1 }}"),
       }) {
    const absl::StatusOr<std::string> text = Render(source, Json::object());
    EXPECT_FALSE(text.ok()) << source.substr(0, 80);
  }
}

TEST(ChatTemplateTest, MacrosOutliveTheirBlocks) {
  const std::string source =
      "{% set ns = namespace(f=none, loop=none) %}"
      "{% for i in [1, 2, 3] %}{% macro f() %}{{ i }}{% endmacro %}"
      "{% if i == 2 %}{% set ns.f = f %}{% set ns.loop = loop %}{% endif %}{% endfor %}"
      "{% for i in [7, 8, 9] %}{{ ns.f() }}{{ ns.loop.index }}{% endfor %}";
  const absl::StatusOr<std::string> text = Render(source, Json::object());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "222");
}

TEST(ChatTemplateTest, TimeIsGiven) {
  const char* source =
      "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}-{% endif %}";
  EXPECT_EQ(*Render(source, Json::object()), "-");
  EXPECT_EQ(*Render(source, {{"now_unix_seconds", 1795312800}}), "22 Nov 2026");
}

TEST(ChatTemplateTest, Errors) {
  EXPECT_EQ(Render("\n{{ raise_exception('no system role') }}", Json::object()).status().message(),
            "chat template, line 2: no system role");
  EXPECT_EQ(Render("a\n\n{{ messages[0].x.y }}", {{"messages", Json::array({Json::object()})}})
                .status()
                .message(),
            "chat template, line 3: 'x' is undefined");
  EXPECT_FALSE(Render("a", Json::array()).ok());
  Json deep = 1;
  for (int i = 0; i < 1000; ++i) deep = Json::array({std::move(deep)});
  EXPECT_EQ(Render("{{ x }}", {{"x", std::move(deep)}}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace penstock::model
