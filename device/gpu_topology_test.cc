// SPDX-License-Identifier: Apache-2.0
// Topology over the stand-in for NVML (device/nvml_standin.cc), and over folders like /sys.
#include "device/gpu_topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "device/gpu_failure.h"

namespace penstock {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GpuTopologyTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override {
    ::unsetenv("PENSTOCK_NVML_MACHINE");
    fs::remove_all(folder_);
  }

  static std::string BusId(std::size_t gpu) { return absl::StrCat("0000:0", gpu, ":00.0"); }

  // `rows`: the matrix, a line for each GPU. `more`: lines of the machine's file.
  GpuTopology Find(const std::vector<std::string>& rows, const std::string& more = "",
                   const std::string& sys = "/nowhere") {
    const std::string path = (folder_ / "machine").string();
    std::ofstream file(path);
    file << "driver 580.65.06\n" << more;
    std::vector<std::string> bus_ids;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      bus_ids.push_back(BusId(i));
      file << "gpu " << bus_ids.back() << " " << rows[i] << "\n";
    }
    file.close();
    ::setenv("PENSTOCK_NVML_MACHINE", path.c_str(), 1);
    return FindTopology(bus_ids, Nvml::Open(PENSTOCK_NVML_STANDIN), sys);
  }

  static std::vector<std::string> Matrix(const GpuTopology& topology) {
    std::vector<std::string> rows;
    for (std::size_t a = 0; a < topology.gpus(); ++a) {
      std::vector<std::string> cells;
      for (std::size_t b = 0; b < topology.gpus(); ++b) {
        cells.push_back(ToString(topology.Path(a, b)));
      }
      rows.push_back(absl::StrJoin(cells, " "));
    }
    return rows;
  }

  // A PCI device below `path` ("pci0000:3a/0000:3a:01.0/..."), and how the system calls it.
  void AddDevice(const std::string& path, int numa, const std::vector<std::string>& names,
                 const std::string& below = "") {
    const fs::path device = folder_ / "sys/devices" / path;
    fs::create_directories(device / below);
    std::ofstream(device / "numa_node") << numa << "\n";
    const std::vector<std::string> parts = absl::StrSplit(path, '/');
    fs::create_directories(folder_ / "sys/bus/pci/devices");
    fs::create_directory_symlink(device, folder_ / "sys/bus/pci/devices" / parts.back());
    for (const std::string& name : names) {
      fs::create_directories(folder_ / "sys" / name);
      fs::create_directory_symlink(device / below, folder_ / "sys" / name / "device");
    }
  }
  std::string sys() const { return (folder_ / "sys").string(); }

  const fs::path folder_ =
      fs::path(testing::TempDir()) / absl::StrCat("penstock_topology_", ::getpid());
};

TEST_F(GpuTopologyTest, AsNvmlTells) {
  struct Case {
    const char* name;
    std::vector<std::string> rows, want;
  };
  for (const Case& c : {
           Case{"all by switches",
                {"X NS18 NS18", "NS18 X NS18", "NS18 NS18 X"},
                {"X NV18 NV18", "NV18 X NV18", "NV18 NV18 X"}},
           Case{"two islands",
                {"X NV4/PIX SYS SYS", "NV4/PIX X SYS SYS", "SYS SYS X NV4", "SYS SYS NV4 X"},
                {"X NV4 SYS SYS", "NV4 X SYS SYS", "SYS SYS X NV4", "SYS SYS NV4 X"}},
           Case{"a cube of unequal links",
                {"X NV1 NV2", "NV1 X NODE", "NV2 NODE X"},
                {"X NV1 NV2", "NV1 X NODE", "NV2 NODE X"}},
           Case{"one has fewer links to switches", {"X NS18", "NS12 X"}, {"X NV12", "NV12 X"}},
           Case{"PCIe",
                {"X PIX PXB", "PIX X PHB", "PXB PHB X"},
                {"X PIX PXB", "PIX X PHB", "PXB PHB X"}},
           Case{"two sockets",
                {"X NODE SYS", "NODE X SYS", "SYS SYS X"},
                {"X NODE SYS", "NODE X SYS", "SYS SYS X"}},
       }) {
    SCOPED_TRACE(c.name);
    const GpuTopology topology = Find(c.rows);
    EXPECT_EQ(Matrix(topology), c.want);
    EXPECT_EQ(topology.why_no_nvml, "");
    EXPECT_EQ(topology.driver_version, "580.65.06");
  }
}

TEST_F(GpuTopologyTest, WhatFailsIsLeftOut) {
  struct Case {
    std::string more;
    std::vector<std::string> want;
  };
  for (const Case& c : {
           Case{"isolated\n", {"X SYS", "SYS X"}},
           Case{"fail nvmlDeviceGetTopologyCommonAncestor 15\n", {"X NV18", "NV18 X"}},
           Case{"fail nvmlDeviceGetNvLinkState 3\n", {"X SYS", "SYS X"}},
           Case{"fail nvmlDeviceGetP2PStatus 3\n", {"X NV18", "NV18 X"}},
           Case{"fail nvmlDeviceGetNvLinkRemoteDeviceType 3\n", {"X NV18", "NV18 X"}},
           Case{"fail nvmlDeviceGetHandleByPciBusId_v2 15\n", {"X ?", "? X"}},
       }) {
    SCOPED_TRACE(c.more);
    EXPECT_EQ(Matrix(Find({"X NS18", "NS18 X"}, c.more)), c.want);
  }
  const GpuTopology none = Find({"X NS18", "NS18 X"}, "fail nvmlInit_v2 9\n");
  EXPECT_EQ(Matrix(none), (std::vector<std::string>{"X ?", "? X"}));
  EXPECT_THAT(none.why_no_nvml, HasSubstr("Driver Not Loaded (9)"));
}

TEST_F(GpuTopologyTest, WithoutALibraryItSaysWhy) {
  for (const auto& [file, why] :
       {std::pair<std::string, std::string>{"/nowhere/libnvidia-ml.so.1", "cannot load /nowhere/"},
        {PENSTOCK_NVML_STANDIN, "Driver Not Loaded (9)"},
        {"libm.so.6", "libm.so.6: it has no nvmlInit_v2"}}) {
    EXPECT_THAT(std::string(Nvml::Open(file).status().message()), HasSubstr(why));
  }
}

TEST_F(GpuTopologyTest, MoreLinksAreNearer) {
  const std::vector<GpuPath> ordered = {
      {.pci = PciPath::kSame},
      {.nvlinks = 18, .pci = PciPath::kAcross},
      {.nvlinks = 4, .pci = PciPath::kUnknown},
      {.nvlinks = 1, .pci = PciPath::kSwitch},
      {.pci = PciPath::kSwitch},
      {.pci = PciPath::kSwitches},
      {.pci = PciPath::kHostBridge},
      {.pci = PciPath::kSocket},
      {.pci = PciPath::kAcross},
      {.pci = PciPath::kUnknown},
  };
  std::set<std::string> texts;
  for (std::size_t i = 0; i < ordered.size(); ++i) {
    if (i > 0) {
      EXPECT_LT(Distance(ordered[i - 1]), Distance(ordered[i])) << i;
    }
    texts.insert(Describe(ordered[i]));
  }
  EXPECT_EQ(texts.size(), ordered.size());
  EXPECT_EQ(Describe({.nvlinks = 1, .pci = PciPath::kAcross}), "1 NVLink");
}

TEST_F(GpuTopologyTest, CardsAndGpusInTheSystemsFolder) {
  const std::string near = "pci0000:00/0000:00:01.0/0000:0a:00.0/";
  AddDevice(near + "0000:0b:00.0/0000:00:00.0", 0, {});                            // GPU 0.
  AddDevice(near + "0000:0b:01.0/0000:0c:00.0/0000:0d:00.0/0000:01:00.0", 0, {});  // GPU 1.
  AddDevice("pci0000:20/0000:20:01.0/0000:02:00.0", 0, {});                        // GPU 2.
  AddDevice("pci0000:80/0000:80:01.0/0000:03:00.0", 1, {});                        // GPU 3.
  AddDevice(near + "0000:0b:02.0/0000:0e:00.0", 0, {"class/infiniband/mlx5_0", "class/net/eth2"});
  AddDevice("pci0000:80/0000:80:03.0/0000:81:00.0", 1, {"class/net/ens3"}, "virtio0/net");
  fs::create_directories(folder_ / "sys/class/net/lo");  // Of no device.
  const GpuTopology topology =
      FindTopology({BusId(0), BusId(1), BusId(2), BusId(3)}, absl::UnavailableError("none"), sys());
  EXPECT_EQ(topology.why_no_nvml, "none");
  EXPECT_THAT(Matrix(topology),
              ElementsAre("X PXB NODE SYS", "PXB X NODE SYS", "NODE NODE X SYS", "SYS SYS SYS X"));
  ASSERT_EQ(topology.nics.size(), 2u);
  EXPECT_EQ(NameOf(topology.nics[0]), "ens3");
  EXPECT_EQ(NameOf(topology.nics[1]), "mlx5_0 (eth2)");
  std::vector<std::string> paths;
  for (std::size_t gpu = 0; gpu < 4; ++gpu) {
    paths.push_back(absl::StrCat(ToAbsl(ToString(topology.NicPath(gpu, 0))), " ",
                                 ToAbsl(ToString(topology.NicPath(gpu, 1)))));
  }
  EXPECT_THAT(paths, ElementsAre("SYS PIX", "SYS PXB", "SYS NODE", "PHB SYS"));
  // NVML goes first where it knows; what it does not, the folder does.
  EXPECT_EQ(Matrix(Find({"X NS2 SYS SYS", "NS2 X SYS SYS", "SYS SYS X SYS", "SYS SYS SYS X"},
                        "fail nvmlDeviceGetTopologyCommonAncestor 15\n", sys()))[0],
            "X NV2 NODE SYS");
}

TEST_F(GpuTopologyTest, StrangeFoldersTellNothing) {
  for (const char* bus_id : {"", "0", "0000:00:00.0", "ffffffff:ff:ff.f", "../../../etc", "\n"}) {
    EXPECT_TRUE(FindPciPlace(sys(), bus_id).path.empty()) << bus_id;
  }
  EXPECT_TRUE(FindNics("/nowhere").empty());
  AddDevice("pci0000:00/0000:00:01.0/0000:00:00.0", -1, {});
  AddDevice("pci0000:40/0000:40:01.0/0000:01:00.0", -1, {});
  EXPECT_EQ(Between(FindPciPlace(sys(), "00000000:00:00.0"), FindPciPlace(sys(), BusId(1))),
            PciPath::kUnknown)
      << "without sockets";
  fs::create_directories(folder_ / "sys/class/net");
  fs::create_directory_symlink(folder_ / "sys/class/net", folder_ / "sys/class/net/loop");
  EXPECT_TRUE(FindNics(sys()).empty());
}

TEST(GpuFailureTest, SaysWhichGpuAndWhatToDo) {
  const FailedGpu gpu = {.number = 1, .name = "H100", .bus_id = "0000:3b:00.0"};
  EXPECT_THAT(LostGpuText(gpu, "computing", 214, "cudaErrorECCUncorrectable (214)"),
              testing::StartsWith("GPU cuda:1 (H100, PCI 0000:3b:00.0) was lost while computing: "
                                  "cudaErrorECCUncorrectable (214): its memory has an error"));
  EXPECT_THAT(LostGpuText({.number = 0, .name = "A"}, "copying", 12345, "x"),
              testing::StartsWith("GPU cuda:0 (A) was lost while copying: x: `nvidia-smi -q`"));
  std::set<std::string> texts;
  for (const int error : {46, 100, 101, 214, 220, 700, 702, 802, 999}) {
    texts.insert(LostGpuText(gpu, "x", error, "y"));
  }
  EXPECT_EQ(texts.size(), 9u) << "each has its own advice";
  EXPECT_THAT(
      FullGpuText(gpu, "cannot allocate 5 bytes"),
      HasSubstr(" lacks memory for a step: cannot allocate 5 bytes: give a smaller kv_bytes"));
}

}  // namespace
}  // namespace penstock
