// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_topology.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "cli/text_table.h"

namespace penstock::cli {
namespace {

// The words of a matrix with what they mean, the nearest first.
class Legend {
 public:
  std::string Word(const GpuPath& path) {
    if (path.pci != PciPath::kSame) {
      words_.emplace(Distance(path), absl::StrCat(ToString(path), " ", Describe(path)));
    }
    return ToString(path);
  }
  std::string Text() const {
    std::vector<std::string> texts;
    for (const auto& [distance, text] : words_) texts.push_back(text);
    return absl::StrJoin(texts, "; ");
  }

 private:
  std::map<int, std::string> words_;
};

}  // namespace

void ReportTopology(const GpuTopology& topology, DoctorReport& report) {
  const std::size_t gpus = topology.gpus(), nics = topology.nics.size();
  if (gpus < 2 && nics == 0) return;
  if (!topology.why_no_nvml.empty()) {
    report.Ok("NVLinks between GPUs are not known: ", topology.why_no_nvml);
  }
  if (!topology.driver_version.empty()) report.Ok("NVIDIA driver ", topology.driver_version);
  Legend legend;
  std::vector<std::vector<std::string>> rows(1, {""});
  for (std::size_t gpu = 0; gpu < gpus; ++gpu) rows[0].push_back(absl::StrCat("GPU ", gpu));
  for (const Nic& nic : topology.nics) rows[0].push_back(NameOf(nic));
  for (std::size_t a = 0; a < gpus; ++a) {
    rows.push_back({absl::StrCat("GPU ", a)});
    for (std::size_t b = 0; b < gpus; ++b) rows.back().push_back(legend.Word(topology.Path(a, b)));
    for (std::size_t nic = 0; nic < nics; ++nic) {
      rows.back().push_back(legend.Word({.pci = topology.NicPath(a, nic)}));
    }
  }
  report.Ok("between GPUs", nics == 0 ? "" : ", and to network cards", ":");
  for (const absl::string_view line : absl::StrSplit(TextTable(rows, 1), '\n', absl::SkipEmpty())) {
    report.More(line);
  }
  report.More(legend.Text());
}

void ReportUnlike(const std::string& worker, const CudaSystem& system,
                  const std::vector<std::size_t>& gpus, DoctorReport& report) {
  std::vector<std::string> models;
  bool alike = true;
  for (const std::size_t gpu : gpus) {
    alike = alike && Alike(system.gpus[gpus.front()], system.gpus[gpu]);
    models.push_back(absl::StrCat("GPU ", gpu, ": ", penstock::Describe(system.gpus[gpu])));
  }
  if (alike) return;
  report.Warning(worker,
                 " is on GPUs of unlike models, and each of its steps takes as long as the "
                 "slowest's part: ",
                 absl::StrJoin(models, "; "));
}

}  // namespace penstock::cli
