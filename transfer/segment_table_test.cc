// SPDX-License-Identifier: Apache-2.0
#include "transfer/segment_table.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>

namespace penstock::transfer {
namespace {

TEST(SegmentTableTest, WhoCanLoadFromWhat) {
  static constexpr std::array<std::byte, 8> kBytes = {};
  struct Case {
    const char* name;
    SegmentTable::Segment segment;
    bool host, gpu_0, gpu_1;
  };
  const Case cases[] = {
      {"pinned", {.bytes = kBytes}, true, true, true},
      {"shared by processes", {.bytes = kBytes, .shared_fd = 0}, true, false, false},
      {"of GPU 0", {.bytes = kBytes, .gpu = 0}, false, true, false},
      {"of GPU 1", {.bytes = kBytes, .gpu = 1}, false, false, true},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    SegmentTable table;
    const SegmentId id = table.Register(c.segment);
    EXPECT_EQ(table.Find(id) != nullptr, c.host);
    EXPECT_EQ(table.FindOn(0, id) != nullptr, c.gpu_0);
    EXPECT_EQ(table.FindOn(1, id) != nullptr, c.gpu_1);
    table.Withdraw(id);
    EXPECT_EQ(table.Find(id), nullptr);
    EXPECT_EQ(table.FindOn(0, id), nullptr);
  }
}

}  // namespace
}  // namespace penstock::transfer
