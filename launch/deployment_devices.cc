// SPDX-License-Identifier: Apache-2.0
#include "launch/deployment_devices.h"

#include <cstdint>
#include <optional>
#include <set>
#include <span>

#include "absl/strings/str_cat.h"
#include "base/device_name.h"

namespace penstock::launch {

void CheckShards(const SectionReader& reader, const Worker& worker, Faults& faults) {
  if (worker.tp_sum % worker.tp != 0) {
    faults.Add(reader.MarkOf("tp"), absl::StrCat("tp must be a divisor of tp_sum, which is ",
                                                 worker.tp_sum, ", got ", worker.tp));
  }
  if (worker.numerics == "fast" && !GpusOf(worker.device).has_value()) {
    faults.Add(reader.MarkOf("numerics"),
               absl::StrCat("numerics fast are for device cuda, got device ", worker.device,
                            ": its numerics must be exact"));
  }
  if (worker.device != "paced") return;
  for (const auto& [key, value] :
       {std::pair{"pp", worker.pp}, {"tp", worker.tp}, {"tp_sum", worker.tp_sum}}) {
    if (value == 1 || !reader.Has(key)) continue;
    faults.Add(reader.MarkOf(key), absl::StrCat("a paced worker computes nothing: its ", key,
                                                " must be 1, got ", value));
  }
}

std::vector<std::string> DevicesOf(const SectionReader& reader, const Worker& worker,
                                   std::size_t workers, Faults& faults) {
  std::vector<std::string> devices(workers, worker.device);
  const auto tp = static_cast<std::int32_t>(worker.tp), pp = static_cast<std::int32_t>(worker.pp);
  const auto share = static_cast<std::size_t>(worker.tp * worker.pp);
  const std::optional<std::vector<int>> gpus = GpusOf(worker.device, tp * pp);
  if (!gpus.has_value()) return devices;
  if (workers > 1 && gpus->size() == workers * share) {
    for (std::size_t i = 0; i < workers; ++i) {
      devices[i] = DeviceOfGpus(std::span(*gpus).subspan(i * share, share));
    }
  } else if (workers > 1 && gpus->size() != share) {
    faults.Add(reader.MarkOf("device"),
               absl::StrCat("device names ", gpus->size(), " GPUs: the ", workers,
                            " workers of this group, with a tp of ", tp,
                            pp == 1 ? std::string() : absl::StrCat(" and a pp of ", pp), ", share ",
                            share, " or take ", workers * share));
    return devices;
  }
  for (const std::string& device : std::set(devices.begin(), devices.end())) {
    const auto good = GpusOfShards(device, tp, pp);
    if (!good.ok()) faults.Add(reader.MarkOf("device"), std::string(good.status().message()));
  }
  return devices;
}

}  // namespace penstock::launch
