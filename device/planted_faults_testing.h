// SPDX-License-Identifier: Apache-2.0
// A folder of this process alone that the stand-in for cudart looks into for faults
// (Machine::faults of device/cuda_standin.h), as long as this lives.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "device/cuda_standin.h"
#include "gtest/gtest.h"

namespace penstock::cuda_standin {

class PlantedFaults {
 public:
  PlantedFaults() {
    std::filesystem::create_directories(folder_);
    Change({.faults = folder_.string()});
  }
  ~PlantedFaults() {
    Change({});
    std::filesystem::remove_all(folder_);
  }
  PlantedFaults(const PlantedFaults&) = delete;
  PlantedFaults& operator=(const PlantedFaults&) = delete;

  // `name`: "nccl1". `error`: of cudart, or of the library that asks for it.
  void Plant(const std::string& name, int error) const { std::ofstream(folder_ / name) << error; }
  // Nobody has taken it away.
  bool IsThere(const std::string& name) const { return std::filesystem::exists(folder_ / name); }

 private:
  const std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) / absl::StrCat("penstock_faults_", ::getpid());
};

}  // namespace penstock::cuda_standin
