// SPDX-License-Identifier: Apache-2.0
// Times of what the first GPU does for a forward pass, and of copies, through the plug-in that
// penstock loads: kernels/ops.h's operations, and what packs KV, at the shapes that stdin names.
// deploy/gpu/roofline.py makes those, and knows what a GPU needs for each at least.
//
//   gpu_bench [--cuda-plugin FILE] [--samples N] [--sample-ms MS] [--round-mib MIB] < cases.json
//
// In: a JSON array of objects with `name`, `kernel` and the numbers that GpuCase lists for it. Out:
// a line of JSON about the GPU, then one per case, {"name", "seconds", "weights_bytes"}, each as
// soon as it is known. A time is the median of N samples, each of so many calls in a row that they
// take MS; calls go round through MIB of weights or KV, so that none finds its own in the L2 cache.
// The host's part counts where it is the slower one: below some 5 microseconds a call.
//
// Exits with 1 and a message for a case that cannot be, and 77 where there is no GPU.
#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/time.h"
#include "bench/gpu_cases.h"
#include "bench/gpu_work.h"
#include "device/cuda_device.h"
#include "kernels/ops.h"
#include "nlohmann/json.hpp"

namespace penstock::bench {
namespace {

struct Flags {
  std::string cuda_plugin;
  std::string numerics = "exact";
  int samples = 7;
  double sample_ms = 5;
  std::size_t round_mib = 512;
};

// Seconds of one call.
absl::StatusOr<double> Time(const Flags& flags, const GpuWork& work) {
  constexpr std::int64_t kCallsMax = 2000;
  std::int64_t next = 0;
  const auto run = [&](std::int64_t calls) -> absl::StatusOr<double> {
    const MonoTime begin = SteadyClock().Now();
    for (std::int64_t i = 0; i < calls; ++i) work.start(next++);
    RETURN_IF_ERROR(work.wait());
    return ToSeconds(SteadyClock().Now() - begin) / static_cast<double>(calls);
  };
  RETURN_IF_ERROR(run(2).status());  // The first loads code and makes scratch memory.
  ASSIGN_OR_RETURN(const double once, run(1));
  const std::int64_t calls = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(flags.sample_ms * 1e-3 / once), 1, kCallsMax);
  std::vector<double> times;
  for (int i = 0; i < flags.samples; ++i) {
    ASSIGN_OR_RETURN(const double seconds, run(calls));
    times.push_back(seconds);
  }
  std::ranges::sort(times);
  return times[times.size() / 2];
}

absl::Status RunCase(const Flags& flags, const GpuCase& c, CudaDevice& device, kernels::Ops& ops) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GpuWork> work,
                   MakeGpuWork(c, device, ops, flags.round_mib << 20));
  ASSIGN_OR_RETURN(const double seconds, Time(flags, *work));
  const nlohmann::ordered_json line = {
      {"name", c.name}, {"seconds", seconds}, {"weights_bytes", work->weights_bytes}};
  std::cout << line.dump() << std::endl;
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags, const std::vector<GpuCase>& cases, CudaDevice& device) {
  ASSIGN_OR_RETURN(const kernels::Numerics numerics, kernels::ParseNumerics(flags.numerics));
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Ops> ops, kernels::MakeCudaOps(device, numerics));
  for (const GpuCase& c : cases) {
    const absl::Status ran = RunCase(flags, c, device, *ops);
    if (!ran.ok()) return absl::Status(ran.code(), absl::StrCat(c.name, ": ", ran.message()));
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Times a GPU's kernels and copies at the shapes that stdin names.");
  Flags flags;
  app.add_option("--cuda-plugin", flags.cuda_plugin, "As of penstock");
  app.add_option("--numerics", flags.numerics, "As of penstock: by which operations are timed");
  app.add_option("--samples", flags.samples, "Samples per case")->check(CLI::Range(1, 1000));
  app.add_option("--sample-ms", flags.sample_ms, "Time of a sample")->check(CLI::Range(0.0, 1e4));
  app.add_option("--round-mib", flags.round_mib, "Weights or KV to go round in")
      ->check(CLI::Range(1, 65536));
  CLI11_PARSE(app, argc, argv);

  const auto fail = [](const absl::Status& status) {
    std::cerr << "gpu_bench: " << ToStd(status.message()) << "\n";
    return absl::IsUnavailable(status) || absl::IsNotFound(status) ? 77 : 1;
  };
  const absl::StatusOr<std::vector<GpuCase>> cases = ReadGpuCases(std::cin);
  if (!cases.ok()) return fail(cases.status());
  const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(flags.cuda_plugin);
  if (!loaded.ok()) return fail(loaded.status());
  const absl::StatusOr<CudaSystem> system = FindGpus(*loaded->plugin);
  if (!system.ok()) return fail(system.status());
  const CudaGpu& gpu = system->gpus[0];
  const nlohmann::ordered_json line = {
      {"gpu", gpu.name},
      {"compute", absl::StrCat(gpu.compute_major, ".", gpu.compute_minor)},
      {"multiprocessors", gpu.multiprocessors},
      {"memory_bytes", gpu.memory_bytes}};
  std::cout << line.dump() << std::endl;
  const absl::StatusOr<std::unique_ptr<CudaDevice>> device =
      CudaDevice::Make(*loaded->plugin, {.threads = 1});
  if (!device.ok()) return fail(device.status());
  const absl::Status ran = Run(flags, *cases, **device);
  if (ran.ok()) return 0;
  std::cerr << "gpu_bench: " << ToStd(ran.message()) << "\n";
  return 1;
}

}  // namespace
}  // namespace penstock::bench

int main(int argc, char** argv) { return penstock::bench::Main(argc, argv); }
