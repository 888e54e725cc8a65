// SPDX-License-Identifier: Apache-2.0
#include "cli/trace_export.h"

#include <functional>
#include <map>
#include <set>

#include "cli/trace_testing.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

using Json = nlohmann::json;

constexpr char kTraceParent[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

// What a member must be; no others are allowed.
struct Member {
  Json::value_t type;
  bool required = true;
};
using Schema = std::map<std::string, Member>;

bool IsOf(const Json& value, Json::value_t type) {
  if (type == Json::value_t::number_float) return value.is_number();
  if (type == Json::value_t::number_unsigned) return value.is_number_unsigned();
  return value.type() == type;
}

void CheckObject(const Json& object, const Schema& schema) {
  ASSERT_TRUE(object.is_object()) << object;
  for (const auto& [key, member] : schema) {
    EXPECT_TRUE(!member.required || object.contains(key)) << key << " is missing in " << object;
  }
  for (const auto& [key, value] : object.items()) {
    const auto it = schema.find(key);
    ASSERT_TRUE(it != schema.end()) << key << " is unknown in " << object;
    EXPECT_TRUE(IsOf(value, it->second.type)) << key << " in " << object;
  }
}

const Member kText{Json::value_t::string};
const Member kNumber{Json::value_t::number_float};
const Member kUnsigned{Json::value_t::number_unsigned};
const Member kArray{Json::value_t::array};
const Member kObject{Json::value_t::object};

TEST(ChromeJsonTest, EveryEventIsWellFormed) {
  const Json json = Json::parse(ChromeJson(ExampleTrace()));
  CheckObject(json, {{"displayTimeUnit", kText}, {"traceEvents", kArray}});
  const std::map<std::string, Schema> schemas = {
      {"M",
       {{"ph", kText}, {"name", kText}, {"pid", kUnsigned}, {"tid", kNumber}, {"args", kObject}}},
      {"X",
       {{"ph", kText},
        {"name", kText},
        {"cat", kText},
        {"pid", kUnsigned},
        {"tid", kNumber},
        {"ts", kNumber},
        {"dur", kNumber},
        {"args", kObject}}},
      {"s",
       {{"ph", kText},
        {"name", kText},
        {"cat", kText},
        {"id", kUnsigned},
        {"pid", kUnsigned},
        {"tid", kNumber},
        {"ts", kNumber}}},
      {"f",
       {{"ph", kText},
        {"name", kText},
        {"cat", kText},
        {"id", kUnsigned},
        {"pid", kUnsigned},
        {"tid", kNumber},
        {"ts", kNumber},
        {"bp", kText}}},
  };
  std::map<std::string, int> counts;
  for (const Json& event : json["traceEvents"]) {
    const std::string phase = event.at("ph");
    ASSERT_TRUE(schemas.contains(phase)) << event;
    CheckObject(event, schemas.at(phase));
    ++counts[phase];
  }
  EXPECT_EQ(counts["X"], static_cast<int>(ExampleTrace().spans.size()));
  EXPECT_EQ(counts["s"], 4);
  EXPECT_EQ(counts["f"], 4);
}

TEST(ChromeJsonTest, SpansOfOneThreadDoNotOverlap) {
  ClusterTrace trace = ExampleTrace();
  const std::vector<TraceSpan> spans = trace.spans;
  for (TraceSpan span : spans) {  // Another request at nearly the same time.
    span.request_id = "r-2";
    span.begin_ns += 500;
    span.end_ns += 500;
    trace.spans.push_back(span);
  }
  SortSpans(trace);
  const Json json = Json::parse(ChromeJson(trace));
  std::map<std::pair<int, int>, double> ends;
  std::set<std::pair<int, int>> named;
  for (const Json& event : json["traceEvents"]) {
    const std::pair<int, int> thread(event["pid"], event["tid"]);
    if (event["name"] == "thread_name") named.insert(thread);
    if (event["ph"] != "X") continue;
    EXPECT_GE(event["ts"].get<double>(), ends[thread] - 1e-3) << event;
    ends[thread] = event["ts"].get<double>() + event["dur"].get<double>();
  }
  for (const auto& [thread, end] : ends) EXPECT_TRUE(named.contains(thread));
}

// All spans of an OTLP export.
std::vector<Json> OtlpSpans(const ClusterTrace& trace) {
  const Json json = Json::parse(OtlpJson(trace));
  CheckObject(json, {{"resourceSpans", kArray}});
  std::vector<Json> spans;
  for (const Json& resource : json["resourceSpans"]) {
    CheckObject(resource, {{"resource", kObject}, {"scopeSpans", kArray}});
    for (const Json& scope : resource["scopeSpans"]) {
      CheckObject(scope, {{"scope", kObject}, {"spans", kArray}});
      for (const Json& span : scope["spans"]) spans.push_back(span);
    }
  }
  return spans;
}

void CheckHex(const Json& id, std::size_t digits) {
  const std::string text = id;
  EXPECT_EQ(text.size(), digits) << text;
  EXPECT_EQ(text.find_first_not_of("0123456789abcdef"), std::string::npos) << text;
  EXPECT_NE(text.find_first_not_of('0'), std::string::npos);
}

TEST(OtlpJsonTest, EverySpanIsWellFormed) {
  const ClusterTrace trace = ExampleTrace();
  const std::vector<Json> spans = OtlpSpans(trace);
  ASSERT_EQ(spans.size(), trace.spans.size());
  std::set<std::string> ids;
  for (const Json& span : spans) {
    CheckObject(span, {{"traceId", kText},
                       {"spanId", kText},
                       {"parentSpanId", {Json::value_t::string, false}},
                       {"name", kText},
                       {"kind", kNumber},
                       {"startTimeUnixNano", kText},
                       {"endTimeUnixNano", kText},
                       {"attributes", kArray},
                       {"links", {Json::value_t::array, false}}});
    CheckHex(span["traceId"], 32);
    CheckHex(span["spanId"], 16);
    EXPECT_TRUE(ids.insert(span["spanId"]).second) << span;
    EXPECT_EQ(span["traceId"], spans[0]["traceId"]);
    for (const Json& attribute : span["attributes"]) {
      CheckObject(attribute, {{"key", kText}, {"value", kObject}});
      EXPECT_EQ(attribute["value"].size(), 1u);
    }
  }
  int roots = 0;
  for (const Json& span : spans) {
    if (!span.contains("parentSpanId")) {
      ++roots;
      EXPECT_EQ(span["name"], "request");
      EXPECT_EQ(span["startTimeUnixNano"], "1700000000000000000");
      EXPECT_EQ(span["endTimeUnixNano"], "1700000000001000000");
      continue;
    }
    EXPECT_TRUE(ids.contains(span["parentSpanId"])) << span;
  }
  EXPECT_EQ(roots, 1);
}

TEST(OtlpJsonTest, TraceIdsAreThoseOfTheClientWhereItGaveOne) {
  ClusterTrace trace = ExampleTrace();
  const std::string derived = OtlpSpans(trace)[0]["traceId"];
  EXPECT_EQ(OtlpSpans(trace)[0]["traceId"], derived);  // The same every time.
  for (TraceSpan& span : trace.spans) {
    if (span.name == SpanName::kRequest) span.text = kTraceParent;
  }
  for (const Json& span : OtlpSpans(trace)) {
    EXPECT_EQ(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
    if (span["name"] == "request") {
      EXPECT_EQ(span["parentSpanId"], "b7ad6b7169203331");
    }
  }
}

TEST(OtlpJsonTest, TraceIdsThatBeginARequestsNameAreKept) {
  ClusterTrace trace = ExampleTrace();
  for (TraceSpan& span : trace.spans) {
    span.request_id = "0af7651916cd43dd8448eb211c80319c-0123456789abcdef";
  }
  for (const Json& span : OtlpSpans(trace)) {
    EXPECT_EQ(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
  }
}

TEST(TraceParentTest, TakesWhatW3cAllows) {
  struct Case {
    const char* name;
    std::string text;
    bool good;
  };
  const std::string good = kTraceParent;
  const auto with = [&](std::size_t at, const char* text) {
    return std::string(good).replace(at, std::char_traits<char>::length(text), text);
  };
  for (const Case& c : {
           Case{"good", good, true},
           Case{"empty", "", false},
           Case{"short", good.substr(1), false},
           Case{"upper case", with(3, "0AF"), false},
           Case{"no hex", with(3, "xyz"), false},
           Case{"zero trace", with(3, "00000000000000000000000000000000"), false},
           Case{"zero parent", with(36, "0000000000000000"), false},
           Case{"version ff", with(0, "ff"), false},
           Case{"later version", with(0, "01"), true},
           Case{"later version with more", with(0, "01") + "-more", true},
           Case{"this version with more", good + "-more", false},
           Case{"no dash", with(35, "x"), false},
           Case{"bad flags", with(53, "zz"), false},
       }) {
    SCOPED_TRACE(c.name);
    EXPECT_EQ(!ParseTraceParent(c.text).trace_id.empty(), c.good);
    EXPECT_EQ(!ParseTraceParent(c.text).span_id.empty(), c.good);
  }
}

// The JSON inside the page.
Json PageData(const std::string& page) {
  const std::string begin = "<script type=\"application/json\" id=\"data\">";
  const std::size_t at = page.find(begin) + begin.size();
  return Json::parse(page.substr(at, page.find("</script>", at) - at));
}

TEST(SummaryJsonTest, HasTheFiguresOfTheSummary) {
  const TraceSummary summary = Summarize(ExampleTrace());
  const Json json = Json::parse(SummaryJson(summary));
  EXPECT_EQ(json["requests"], 1);
  ASSERT_EQ(json["pairs"].size(), summary.pairs.size());
  EXPECT_EQ(json["pairs"][0]["transport"], "shm");
  EXPECT_EQ(json["pairs"][0]["hidden"], 60000);
  EXPECT_EQ(json["pairs"][0]["underway"], summary.pairs[0].underway_ns);
  ASSERT_EQ(json["phases"].size(), summary.phases.size());
  EXPECT_EQ(json["phases"][0]["time"]["p99"], summary.phases[0].time.p99_ns);
}

TEST(HtmlPageTest, HoldsTheRequestAndNothingFromElsewhere) {
  const ClusterTrace trace = ExampleTrace();
  const std::string page = HtmlPage(trace, Summarize(trace));
  const Json data = PageData(page);
  ASSERT_EQ(data["requests"].size(), 1u);
  EXPECT_EQ(data["requests"][0]["id"], "r-1");
  EXPECT_EQ(data["requests"][0]["spans"].size(), trace.spans.size());
  EXPECT_EQ(data["requests"][0]["flows"].size(), 4u);
  EXPECT_EQ(data["names"].size(), kSpanNames);
  EXPECT_EQ(data["summary"]["pairs"][0]["hidden"], 60000);
  for (const char* remote : {"http:", "https:", "src=", "@import", "url("}) {
    EXPECT_EQ(page.find(remote), std::string::npos) << remote;
  }
  EXPECT_NE(page.find("</html>"), std::string::npos);
}

TEST(HtmlPageTest, NoNameOfARequestLeavesItsScript) {
  ClusterTrace trace = ExampleTrace();
  const std::string evil = "</script><script>alert(1)</script><!--";
  for (TraceSpan& span : trace.spans) span.request_id = evil;
  const std::string page = HtmlPage(trace, Summarize(trace));
  EXPECT_EQ(page.find("alert(1)</script>"), std::string::npos);
  EXPECT_EQ(PageData(page)["requests"][0]["id"], evil);
}

TEST(HtmlPageTest, ShowsTheLastRequestsAlone) {
  ClusterTrace trace = ExampleTrace();
  const ClusterTrace one = trace;
  for (int i = 2; i <= 150; ++i) {
    for (TraceSpan span : one.spans) {
      span.request_id = "r-" + std::to_string(i);
      span.begin_ns += i * 1000000;
      span.end_ns += i * 1000000;
      trace.spans.push_back(span);
    }
  }
  SortSpans(trace);
  const Json data = PageData(HtmlPage(trace, Summarize(trace)));
  ASSERT_EQ(data["requests"].size(), 100u);
  EXPECT_EQ(data["requests"][99]["id"], "r-150");
  EXPECT_EQ(data["summary"]["requests"], 150);
}

}  // namespace
}  // namespace penstock::cli
