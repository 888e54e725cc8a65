// SPDX-License-Identifier: Apache-2.0
#include "cli/gpu_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/device_name.h"
#include "cli/run_apart.h"

namespace penstock::cli {
namespace {

using ::testing::ElementsAre;

// `path`: between two different GPUs.
template <typename Path>
GpuTopology Machine(int gpus, const Path& path) {
  GpuTopology topology;
  topology.bus_ids.resize(static_cast<std::size_t>(gpus));
  for (int a = 0; a < gpus; ++a) {
    for (int b = 0; b < gpus; ++b) {
      topology.paths.push_back(a == b ? GpuPath{.pci = PciPath::kSame} : path(a, b));
    }
  }
  return topology;
}
const GpuPath kNv18 = {.nvlinks = 18, .pci = PciPath::kSocket};
const GpuPath kNv4 = {.nvlinks = 4, .pci = PciPath::kHostBridge};
const GpuPath kPix = {.pci = PciPath::kSwitch};
const GpuPath kSys = {.pci = PciPath::kAcross};

GpuTopology Switched(int gpus) {
  return Machine(gpus, [](int, int) { return kNv18; });
}
GpuTopology Islands() {
  return Machine(8, [](int a, int b) { return a / 4 == b / 4 ? kNv4 : kSys; });
}
// Bridges join 0 with 4, 1 with 5, and so on; 0 to 3 have a PCIe switch.
GpuTopology Bridges() {
  return Machine(8, [](int a, int b) {
    return a % 4 == b % 4 ? kNv4 : a / 4 == b / 4 ? kPix : kSys;
  });
}

launch::Deployment Parse(const std::string& text) {
  const auto deployment = launch::ParseDeployment(absl::StrCat("model: a\n", text), "f.yaml");
  EXPECT_TRUE(deployment.ok()) << deployment.status();
  return deployment.value_or(launch::Deployment());
}

std::vector<std::string> Devices(const launch::Deployment& deployment) {
  std::vector<std::string> devices;
  for (const launch::Worker& worker : deployment.workers) {
    devices.push_back(absl::StrCat(worker.name, " ", worker.device));
  }
  return devices;
}

TEST(GpuPlacementTest, NearGpusForShardsAndForPairs) {
  struct Case {
    const char* name;
    GpuTopology topology;
    std::string text;
    std::vector<std::string> want, why;
  };
  for (const Case& c : {
           Case{"one GPU each",
                Switched(8),
                "prefill: {count: 2, device: cuda}\ndecode: {count: 2, device: cuda}",
                {"prefill-1 cuda", "prefill-2 cuda:2", "decode-1 cuda:1", "decode-2 cuda:3"},
                {"prefill-1 takes cuda:0", "prefill-2 takes cuda:2: to decode-1 18 NVLinks",
                 "decode-1 takes cuda:1: to prefill-1 18 NVLinks",
                 "decode-2 takes cuda:3: to prefill-1 18 NVLinks"}},
           Case{"shards stay on an island",
                Islands(),
                "prefill: {tp: 2, tp_sum: 4, device: cuda}\ndecode: {tp: 4, device: cuda}",
                {"prefill-1 cuda:4,5", "decode-1 cuda:0,1,2,3"},
                {"prefill-1 takes cuda:4,5: between its shards 4 NVLinks, to decode-1 two CPU "
                 "sockets",
                 "decode-1 takes cuda:0,1,2,3: between its shards 4 NVLinks"}},
           Case{"pairs share an island",
                Islands(),
                "prefill: {tp: 2, count: 2, device: cuda}\ndecode: {tp: 2, count: 2, device: cuda}",
                {"prefill-1 cuda:0,1", "prefill-2 cuda:4,5", "decode-1 cuda:2,3",
                 "decode-2 cuda:6,7"},
                {}},
           Case{
               "a bridge for each stage, a switch between them",
               Bridges(),
               "prefill: {tp: 2, pp: 2, device: cuda}\ndecode: {tp: 2, pp: 2, device: cuda}",
               {"prefill-1 cuda:0,4,1,5", "decode-1 cuda:2,6,3,7"},
               {"prefill-1 takes cuda:0,4,1,5: between its shards 4 NVLinks, between its stages "
                "one "
                "PCIe switch",
                "decode-1 takes cuda:2,6,3,7: between its shards 4 NVLinks, between its stages one "
                "PCIe switch, to prefill-1 two CPU sockets"}},
           Case{"those that are named are left alone",
                Islands(),
                "prefill: {device: 'cuda:5'}\ndecode: {count: 2, device: cuda}",
                {"prefill-1 cuda:5", "decode-1 cuda:4", "decode-2 cuda:6"},
                {"decode-1 takes cuda:4: to prefill-1 4 NVLinks",
                 "decode-2 takes cuda:6: to prefill-1 4 NVLinks"}},
           Case{"more workers than GPUs",
                Switched(2),
                "prefill: {count: 2, device: cuda}\ndecode: {device: cuda}",
                {"prefill-1 cuda", "prefill-2 cuda", "decode-1 cuda:1"},
                {"prefill-1 takes cuda:0",
                 "prefill-2 takes cuda:0: to decode-1 18 NVLinks, shared with prefill-1, as there "
                 "are "
                 "2",
                 "decode-1 takes cuda:1: to prefill-1 18 NVLinks"}},
           Case{"fewer GPUs than shards",
                Switched(1),
                "prefill: {tp_sum: 2, device: cuda}\ndecode: {tp: 2, device: cuda}",
                {"prefill-1 cuda", "decode-1 cuda"},
                {"prefill-1 takes cuda:0", "decode-1 needs 2 GPUs, and this host shows 1"}},
           Case{"beside CPUs",
                Switched(2),
                "prefill: {device: cpu}\ndecode: {device: cuda}",
                {"prefill-1 cpu", "decode-1 cuda"},
                {"decode-1 takes cuda:0"}},
       }) {
    SCOPED_TRACE(c.name);
    launch::Deployment deployment = Parse(c.text);
    const std::vector<std::string> why = PlaceWorkers(c.topology, 0, deployment);
    EXPECT_EQ(Devices(deployment), c.want);
    if (!c.why.empty()) {
      EXPECT_EQ(why, c.why);
    }
  }
}

TEST(GpuPlacementTest, OfWorkersThatNameNoNumberAlone) {
  for (const auto& [device, any] : {std::pair{"cuda", true}, {"'cuda:0'", false}, {"cpu", false}}) {
    const launch::Deployment deployment = Parse(absl::StrCat("prefill: {device: ", device, "}"));
    EXPECT_EQ(deployment.workers[0].any_gpus, any) << device;
    EXPECT_FALSE(deployment.workers[1].any_gpus);
  }
  EXPECT_FALSE(Parse("prefill: {count: 2, device: 'cuda:0,1'}").workers[0].any_gpus);
}

TEST(GpuPlacementTest, OfThisHostAndModelAlone) {
  const std::string hosts =
      "hosts: {a: 10.0.0.1, b: 10.0.0.2}\nports: {grpc: 50051}\ntransfer: [nccl, tcp]\n";
  launch::Deployment two = Parse(hosts +
                                 "prefill: {host: b, device: cuda}\ndecode: [{host: a, device: "
                                 "cuda}, {host: b, device: cuda}]");
  EXPECT_THAT(
      PlaceWorkers(Switched(2), 1, two),
      ElementsAre("prefill-1 takes cuda:0", "decode-2 takes cuda:1: to prefill-1 18 NVLinks"));
  EXPECT_THAT(Devices(two), ElementsAre("prefill-1 cuda", "decode-1 cuda", "decode-2 cuda:1"));
}

TEST(GpuPlacementTest, WithoutAPluginNothingChanges) {
  launch::Deployment deployment = Parse("prefill: {device: cuda}\ndecode: {device: cuda}");
  for (const auto& place : {&PlaceWorkersHere, &PlaceWorkersApart}) {
    const auto placed = place("/no/such.so", 0, deployment);
    EXPECT_EQ(placed.status().message(), "there is no CUDA plug-in at /no/such.so");
    EXPECT_THAT(Devices(deployment), ElementsAre("prefill-1 cuda", "decode-1 cuda"));
    EXPECT_TRUE(deployment.workers[0].any_gpus);
    EXPECT_TRUE(place("/no/such.so", 1, deployment)->empty()) << "nobody asks there";
  }
}

TEST(RunApartTest, GivesWhatItGotOrSaysWhyNot) {
  using std::chrono::milliseconds;
  using std::chrono::seconds;
  const std::string large(300000, 'x');
  int changed = 0;
  EXPECT_EQ(*RunApart([&] { return ++changed, large; }, seconds(60)), large);
  EXPECT_EQ(changed, 0) << "it was another process";
  EXPECT_EQ(*RunApart([] { return ""; }, seconds(60)), "");
  EXPECT_EQ(RunApart([]() -> std::string { ::_exit(7); }, seconds(60)).status().message(),
            "the process ended with 7");
  EXPECT_EQ(RunApart([]() -> std::string { ::raise(SIGKILL), ::_exit(0); }, seconds(60))
                .status()
                .message(),
            "the process died by signal 9");
  const auto hung = RunApart(
      []() -> std::string {
        for (;;) ::pause();
      },
      milliseconds(50));
  EXPECT_EQ(hung.status().code(), absl::StatusCode::kDeadlineExceeded);
}

// Of all sets of `share` GPUs the least sum of distances.
int LeastWithin(const GpuTopology& topology, std::size_t share) {
  int least = -1;
  for (unsigned set = 0; set < 1u << topology.gpus(); ++set) {
    if (static_cast<std::size_t>(__builtin_popcount(set)) != share) continue;
    int sum = 0;
    for (std::size_t a = 0; a < topology.gpus(); ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        if ((set >> a & 1) != 0 && (set >> b & 1) != 0) sum += Distance(topology.Path(a, b));
      }
    }
    if (least < 0 || sum < least) least = sum;
  }
  return least;
}

// Machines whose GPUs sit in groups of groups, in any order.
GpuTopology Nested(std::mt19937& random) {
  std::vector<int> places = {0, 1, 2, 3, 4, 5, 6, 7};
  std::ranges::shuffle(places, random);
  const int inner = 2, outer = 4;
  const std::vector<GpuPath> levels = {kNv18, kNv4, kPix, {.pci = PciPath::kSocket}, kSys};
  const std::size_t first = random() % 3;
  return Machine(8, [&](int a, int b) {
    const int x = places[static_cast<std::size_t>(a)], y = places[static_cast<std::size_t>(b)];
    return levels[first + (x / inner == y / inner ? 0u : x / outer == y / outer ? 1u : 2u)];
  });
}

TEST(GpuPlacementTest, AsNearAsCanBeAndNoneTwice) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    const GpuTopology topology = Nested(random);
    const unsigned tp = 1u << random() % 4, prefills = 1 + random() % 4, decodes = 1 + random() % 4;
    launch::Deployment deployment =
        Parse(absl::StrCat("prefill: {device: cuda, tp: ", tp, ", count: ", prefills,
                           "}\ndecode: {device: cuda, tp: ", tp, ", count: ", decodes, "}"));
    launch::Deployment again = deployment;
    const std::vector<std::string> why = PlaceWorkers(topology, 0, deployment);
    EXPECT_EQ(why.size(), prefills + decodes);
    EXPECT_EQ(PlaceWorkers(topology, 0, again), why);
    std::map<int, int> users;
    for (std::size_t gpu = 0; gpu < 8; ++gpu) users[static_cast<int>(gpu)] = 0;
    for (const launch::Worker& worker : deployment.workers) {
      const auto gpus = GpusOfShards(worker.device, static_cast<int>(tp));
      ASSERT_TRUE(gpus.ok()) << worker.device;
      for (const int gpu : *gpus) ++users[gpu];
      int within = 0;
      for (const int a : *gpus) {
        for (const int b : *gpus) {
          if (b < a) {
            within +=
                Distance(topology.Path(static_cast<std::size_t>(a), static_cast<std::size_t>(b)));
          }
        }
      }
      EXPECT_EQ(within, LeastWithin(topology, tp)) << worker.device;
    }
    const auto [least, most] =
        std::ranges::minmax_element(users, {}, [](const auto& entry) { return entry.second; });
    EXPECT_LE(most->second, least->second + 1);
  }
}

}  // namespace
}  // namespace penstock::cli
