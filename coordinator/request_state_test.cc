// SPDX-License-Identifier: Apache-2.0
#include "coordinator/request_state.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>

namespace penstock::coordinator {
namespace {

std::vector<RequestState> States() {
  std::vector<RequestState> states;
  for (std::size_t i = 0; i < kRequestStates; ++i) states.push_back(static_cast<RequestState>(i));
  return states;
}
std::vector<RequestEvent> Events() {
  std::vector<RequestEvent> events;
  for (std::size_t i = 0; i < kRequestEvents; ++i) events.push_back(static_cast<RequestEvent>(i));
  return events;
}

// The table of the README: event -> one cell per state, "" or "state: effect".
std::map<std::string, std::vector<std::string>> DocumentedTable() {
  std::ifstream file(std::string(PENSTOCK_SOURCE_DIR) + "/coordinator/README.md");
  std::map<std::string, std::vector<std::string>> table;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] != '|') continue;
    std::vector<std::string> cells;
    std::istringstream in(line.substr(1));
    for (std::string cell; std::getline(in, cell, '|');) {
      const std::size_t begin = cell.find_first_not_of(' ');
      const std::size_t end = cell.find_last_not_of(' ');
      cells.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
    }
    const std::string name = cells[0];
    table[name] = std::vector<std::string>(cells.begin() + 1, cells.end());
  }
  return table;
}

TEST(RequestStateTest, TheTableIsTheDocumentedOne) {
  const auto documented = DocumentedTable();
  ASSERT_TRUE(documented.contains("event"));
  const std::vector<std::string>& header = documented.at("event");
  ASSERT_EQ(header.size(), kRequestStates - 1);
  for (const RequestEvent event : Events()) {
    ASSERT_TRUE(documented.contains(std::string(ToString(event)))) << ToString(event);
    const std::vector<std::string>& cells = documented.at(std::string(ToString(event)));
    ASSERT_EQ(cells.size(), header.size()) << ToString(event);
    for (const RequestState state : States()) {
      SCOPED_TRACE(std::string(ToString(state)) + " x " + std::string(ToString(event)));
      const RequestTransition* const t = FindTransition(state, event);
      if (state == RequestState::kEnded) {
        EXPECT_EQ(t, nullptr) << "nothing follows the end";
        continue;
      }
      const auto column = static_cast<std::size_t>(state);
      EXPECT_EQ(header[column], ToString(state));
      const std::string want =
          t == nullptr ? ""
                       : std::string(ToString(t->to)) + ": " + std::string(ToString(t->effect));
      EXPECT_EQ(cells[column], want);
    }
  }
}

TEST(RequestStateTest, EveryStateCanBeReachedAndLeft) {
  std::set<RequestState> reached = {RequestState::kQueued};
  for (std::size_t round = 0; round < kRequestStates; ++round) {
    for (const RequestTransition& t : RequestTransitions()) {
      if (reached.contains(t.from)) reached.insert(t.to);
    }
  }
  EXPECT_EQ(reached.size(), kRequestStates);
  for (const RequestState state : States()) {
    if (state == RequestState::kEnded) continue;
    for (const RequestEvent event : {RequestEvent::kExpired, RequestEvent::kCancelled}) {
      const RequestTransition* const t = FindTransition(state, event);
      ASSERT_NE(t, nullptr) << ToString(state);
      EXPECT_EQ(t->to, RequestState::kEnded) << ToString(state);
      EXPECT_EQ(t->effect, RequestEffect::kEnd) << ToString(state);
    }
  }
}

// Whoever holds something for a request can be lost in any state in which it does.
TEST(RequestStateTest, NoLossOfAWorkerIsOverlooked) {
  for (const RequestState state : States()) {
    const bool decode = HasWorkers(state);
    const bool prefill = decode && state != RequestState::kDecoding;
    EXPECT_EQ(FindTransition(state, RequestEvent::kDecodeLost) != nullptr, decode);
    EXPECT_EQ(FindTransition(state, RequestEvent::kDecodeRefused) != nullptr, decode);
    EXPECT_EQ(FindTransition(state, RequestEvent::kPrefillLost) != nullptr, prefill);
  }
}

TEST(RequestStateTest, WordsAreUnique) {
  std::set<std::string_view> words;
  for (const RequestState state : States()) EXPECT_TRUE(words.insert(ToString(state)).second);
  words.clear();
  for (const RequestEvent event : Events()) EXPECT_TRUE(words.insert(ToString(event)).second);
}

}  // namespace
}  // namespace penstock::coordinator
