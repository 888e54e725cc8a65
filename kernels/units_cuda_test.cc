// SPDX-License-Identifier: Apache-2.0
#include "kernels/units_cuda.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/seed_testing.h"
#include "kernels/crc32c_targets.h"
#include "kernels/cuda_testing.h"

namespace penstock::kernels {
namespace {

using Bytes = std::vector<std::byte>;

struct Run {
  std::size_t from;  // In the source.
  std::size_t to;    // In the target; kNowhere: none.
  std::uint32_t bytes;
};
constexpr std::size_t kNowhere = ~std::size_t{0};

// Units whose runs lie behind each other in a source and a target.
struct Units {
  std::vector<std::vector<Run>> runs;  // [unit][run]
  std::size_t from_end = 0;
  std::size_t to_end = 0;

  // Of the last unit. Its addresses are so much more than a multiple of 16; in the target, `gap`
  // unused bytes or more lie before.
  void Add(std::uint32_t bytes, std::size_t from_off = 0, std::size_t to_off = 0,
           std::size_t gap = 1) {
    const std::size_t to = (to_end + gap + 15) / 16 * 16 + to_off;
    AddTo(bytes, from_off, to);
    to_end = to + bytes;
  }
  void AddTo(std::uint32_t bytes, std::size_t from_off, std::size_t to) {
    const std::size_t from = (from_end + 15) / 16 * 16 + from_off;
    runs.back().push_back({from, to, bytes});
    from_end = from + bytes;
  }
  static Units Of(const std::vector<std::vector<std::uint32_t>>& lengths) {
    Units units;
    for (const std::vector<std::uint32_t>& unit : lengths) {
      units.runs.emplace_back();
      for (const std::uint32_t bytes : unit) units.Add(bytes);
    }
    return units;
  }
};

// What the specification makes of them, from random bytes.
struct Want {
  explicit Want(const Units& units)
      : source(units.from_end), target(units.to_end, std::byte{0xff}) {
    std::mt19937 random(1);
    for (std::byte& byte : source) byte = static_cast<std::byte>(random());
    for (const std::vector<Run>& unit : units.runs) {
      std::uint32_t crc = 0;
      for (const Run& run : unit) {
        crc = kCrc32cScalar.crc(crc, source.data() + run.from, run.bytes);
        if (run.to != kNowhere) {
          std::memcpy(target.data() + run.to, source.data() + run.from, run.bytes);
        }
      }
      crcs.push_back(crc);
    }
  }
  Bytes source, target;
  std::vector<std::uint32_t> crcs;
};

struct How {
  bool checksums = true;
  bool every_schedule = true;
};

void ExpectReference(const Units& units, How how = {}) {
  const Want want(units);
  const DeviceBuffer<std::byte> source(want.source);
  DeviceBuffer<std::byte> target(want.target.size());
  std::vector<CopyUnit> copy_units;
  std::vector<CopyRun> copy_runs;
  for (const std::vector<Run>& unit : units.runs) {
    copy_units.push_back(
        {static_cast<std::uint32_t>(copy_runs.size()), static_cast<std::uint32_t>(unit.size())});
    for (const Run& run : unit) {
      copy_runs.push_back({source.data() + run.from,
                           run.to == kNowhere ? nullptr : target.data() + run.to, run.bytes});
    }
  }
  const DeviceBuffer<CopyUnit> device_units(copy_units);
  const DeviceBuffer<CopyRun> device_runs(copy_runs);
  DeviceBuffer<std::uint32_t> crcs(how.checksums ? copy_units.size() : 0);
  const auto run = [&] {
    target.Poison();
    crcs.Poison();
    const int started =
        CopyUnitsCuda(device_units.data(), static_cast<std::int32_t>(copy_units.size()),
                      device_runs.data(), how.checksums ? crcs.data() : nullptr, nullptr);
    ASSERT_TRUE(Ran(static_cast<cudaError_t>(started)));
    if (how.checksums) {
      ASSERT_EQ(crcs.Get(), want.crcs);
    }
    // All of the target: nothing else may have been written.
    ASSERT_TRUE(target.Get() == want.target);
  };
  if (how.every_schedule) {
    ForEachSchedule(run);
  } else {
    run();
  }
}

TEST(UnitsCudaTest, KnownValues) {
  const std::string_view text = "123456789";
  Bytes bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  const DeviceBuffer<std::byte> source(bytes);
  // In one piece, and one by one.
  std::vector<CopyRun> copy_runs = {{source.data(), nullptr, 9}};
  for (std::size_t i = 0; i < 9; ++i) copy_runs.push_back({source.data() + i, nullptr, 1});
  const DeviceBuffer<CopyRun> runs(copy_runs);
  const DeviceBuffer<CopyUnit> units(std::vector<CopyUnit>{{0, 1}, {1, 9}, {1, 0}});
  DeviceBuffer<std::uint32_t> crcs(3);
  ASSERT_TRUE(Ran(
      static_cast<cudaError_t>(CopyUnitsCuda(units.data(), 3, runs.data(), crcs.data(), nullptr))));
  EXPECT_EQ(crcs.Get(), (std::vector<std::uint32_t>{0xe3069283, 0xe3069283, 0}));
}

// Around the sizes at which work is shared out anew: vectors, steps, shares.
TEST(UnitsCudaTest, EveryLength) {
  std::vector<std::vector<std::uint32_t>> lengths;
  for (std::uint32_t n = 1; n <= 70; ++n) lengths.push_back({n});
  for (const std::uint32_t n : {128u, 512u, 2048u, 4096u, 6144u, 8192u, 16384u, 32768u, 65536u}) {
    for (const std::uint32_t length : {n - 16, n - 1, n, n + 1, n + 16})
      lengths.push_back({length});
  }
  ExpectReference(Units::Of(lengths));
}

TEST(UnitsCudaTest, EveryAlignment) {
  Units units;
  for (std::size_t from = 0; from < 16; ++from) {
    for (std::size_t to = 0; to < 16; ++to) {
      units.runs.emplace_back();
      units.Add(37, from, to);
    }
  }
  ExpectReference(units);
}

TEST(UnitsCudaTest, Runs) {
  struct Case {
    const char* name;
    std::vector<std::uint32_t> runs;
  };
  std::vector<std::uint32_t> counted(150);
  std::iota(counted.begin(), counted.end(), 1);
  const Case cases[] = {{"rows of heads", std::vector<std::uint32_t>(200, 64)},
                        {"pages", std::vector<std::uint32_t>(9, 2048)},
                        {"more than one per thread", std::vector<std::uint32_t>(700, 16)},
                        {"bytes", std::vector<std::uint32_t>(130, 1)},
                        {"each longer than the last", counted},
                        {"of all kinds", {5000, 1, 16, 2, 4096, 15, 33, 8192, 7, 48}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    ExpectReference(Units::Of({c.runs, {20}, c.runs}));
  }
}

// So few that a unit has all the blocks that it can get, and the blocks shares of several steps.
TEST(UnitsCudaTest, LargeUnits) {
  ExpectReference(Units::Of({{(600 << 10) + 5}}));
  ExpectReference(Units::Of({{128 << 10}, {100}, std::vector<std::uint32_t>(32, 4096)}));
}

// So many that each has one block: one schedule, for the time that so many take.
TEST(UnitsCudaTest, ManyUnits) {
  ExpectReference(Units::Of(std::vector<std::vector<std::uint32_t>>(1024, {32, 17})),
                  {.every_schedule = false});
}

// From many places to one and back, with nothing between them.
TEST(UnitsCudaTest, PacksWithoutGaps) {
  Units units;
  for (int unit = 0; unit < 3; ++unit) {
    units.runs.emplace_back();
    for (int run = 0; run < 40; ++run) units.Add(192, 0, 0, 0);
  }
  ExpectReference(units);
}

TEST(UnitsCudaTest, ChecksumsAndCopiesAlone) {
  Units units = Units::Of({{3000, 64}, {5}, {(9 << 10) + 3}});
  ExpectReference(units, {.checksums = false});
  units.runs[0][1].to = kNowhere;
  units.runs[1][0].to = kNowhere;
  units.runs[2][0].to = kNowhere;
  ExpectReference(units);
}

TEST(UnitsCudaTest, NothingAndLess) {
  EXPECT_EQ(CopyUnitsCuda(nullptr, 0, nullptr, nullptr, nullptr), cudaSuccess);
  EXPECT_EQ(CopyUnitsCuda(nullptr, -1, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
}

TEST(UnitsCudaTest, RandomUnits) {
  for (std::uint32_t seed = 0; seed < 12; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    Units units;
    const std::uint32_t unit_count = 1 + below(30);
    const bool aligned = below(2) == 0;
    for (std::uint32_t i = 0; i < unit_count; ++i) {
      units.runs.emplace_back();
      const std::uint32_t bytes_max = 16u << below(7);
      for (std::uint32_t runs = below(20); runs > 0; --runs) {
        const std::uint32_t bytes = 1 + below(bytes_max);
        if (below(8) == 0) {
          units.AddTo(bytes, below(16), kNowhere);
        } else if (aligned) {
          units.Add((bytes + 15) / 16 * 16, 0, 0, below(2));
        } else {
          units.Add(bytes, below(16), below(16), below(3));
        }
      }
    }
    ExpectReference(units);
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace penstock::kernels
