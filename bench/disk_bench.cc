// SPDX-License-Identifier: Apache-2.0
// The disk tier against the same disk without it, blocks of 720 KiB (32 tokens of SmolLM2), in the
// folder for temporary files (TMPDIR):
//   put_GBps        blocks that are on disk for good, kInFlight at a time
//   raw_write_GBps  a file written with O_DIRECT in pieces of that size, then synced
//   get_GBps        verified, kInFlight at a time
//   raw_read_GBps   the same pieces read with O_DIRECT, one after the other
// They take turns, a round each; a figure is that of the median round.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "bench/in_flight.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/block_testing.h"
#include "kvstore/disk/disk_tier.h"
#include "kvstore/disk/uring_disk.h"

namespace penstock::bench {
namespace {

using kvstore::DiskBytes;
using kvstore::DiskTier;
using kvstore::KeyOf;
using kvstore::MakeSectors;

constexpr std::uint32_t kBlockBytes = 720 << 10;
constexpr std::uint32_t kBlocks = 256;  // Of a round: 189 MB.
constexpr int kInFlight = 8;
constexpr int kRounds = 3;

double GbPerSecond(double seconds) { return double{kBlockBytes} * kBlocks / seconds / 1e9; }
double GbPerSecond(MonoTime begin) { return GbPerSecond(ToSeconds(SteadyClock().Now() - begin)); }

class Bench {
 public:
  explicit Bench(const std::string& folder) : folder_(folder), loop_(*EpollLoop::Make("disk")) {
    payload_ = kvstore::ContentOf(1, kBlockBytes);
    crc_ = kernels::Crc32c(0, payload_.bytes.data(), kBlockBytes);
    loop_->Run([&] {
      auto disk = kvstore::OpenUringDisk(*loop_, {.directory = folder + "/store"});
      CHECK(disk.ok());
      disk_ = *std::move(disk);
      tier_ = DiskTier::Open(*loop_, *disk_, {.bytes_max = std::uint64_t{2} << 30}).value();
    });
  }
  ~Bench() {
    loop_->Run([&] {
      tier_.reset();
      disk_.reset();
    });
  }

  double Put() {
    return Run([this](std::uint64_t number, std::function<void()> done) {
      tier_->Put({KeyOf(static_cast<std::uint32_t>(number)), kBlockBytes}, payload_, crc_,
                 [done](const absl::Status& status) {
                   CHECK(status.ok());
                   done();
                 });
    });
  }
  double Get() {
    return Run([this](std::uint64_t number, std::function<void()> done) {
      tier_->Get(KeyOf(static_cast<std::uint32_t>(number)), MakeSectors(kBlockBytes),
                 loop_->Now() + std::chrono::minutes(1),
                 [done](const absl::StatusOr<std::uint32_t>& bytes) {
                   CHECK(bytes.ok());
                   done();
                 });
    });
  }
  void Clear() {
    loop_->Run([&] {
      for (std::uint32_t number = 0; number < kBlocks; ++number) tier_->Drop(KeyOf(number));
    });
  }

  double RawWrite() {
    const MonoTime begin = SteadyClock().Now();
    const UniqueFd file(::open(raw().c_str(), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600));
    CHECK(::posix_fallocate(file.get(), 0, std::int64_t{kBlocks} * kBlockBytes) == 0);
    for (std::uint32_t i = 0; i < kBlocks; ++i) {
      CHECK(::pwrite(file.get(), payload_.bytes.data(), kBlockBytes,
                     std::int64_t{i} * kBlockBytes) == kBlockBytes);
    }
    CHECK(::fdatasync(file.get()) == 0);
    return GbPerSecond(begin);
  }
  double RawRead() {
    const DiskBytes to = MakeSectors(kBlockBytes);
    const MonoTime begin = SteadyClock().Now();
    const UniqueFd file(::open(raw().c_str(), O_RDONLY | O_DIRECT));
    for (std::uint32_t i = 0; i < kBlocks; ++i) {
      CHECK(::pread(file.get(), to.bytes.data(), kBlockBytes, std::int64_t{i} * kBlockBytes) ==
            kBlockBytes);
    }
    return GbPerSecond(begin);
  }

 private:
  std::string raw() const { return folder_ + "/raw"; }

  // All blocks, kInFlight at a time.
  double Run(const StartPiece& start) {
    return GbPerSecond(SecondsInFlight(*loop_, kBlocks, kInFlight, start));
  }

  const std::string folder_;
  const std::unique_ptr<EpollLoop> loop_;
  DiskBytes payload_;
  std::uint32_t crc_ = 0;
  std::unique_ptr<kvstore::DiskIo> disk_;
  std::unique_ptr<DiskTier> tier_;
};

void DiskTierBlocks(benchmark::State& state) {
  std::string folder = std::filesystem::temp_directory_path() / "penstock-disk-bench-XXXXXX";
  CHECK(::mkdtemp(folder.data()) != nullptr);
  std::vector<double> put, raw_write, get, raw_read;
  for ([[maybe_unused]] auto _ : state) {
    Bench bench(folder);
    for (int round = 0; round < kRounds; ++round) {
      raw_write.push_back(bench.RawWrite());
      put.push_back(bench.Put());
      raw_read.push_back(bench.RawRead());
      get.push_back(bench.Get());
      bench.Clear();
    }
  }
  std::filesystem::remove_all(folder);
  state.counters["put_GBps"] = Median(put);
  state.counters["raw_write_GBps"] = Median(raw_write);
  state.counters["get_GBps"] = Median(get);
  state.counters["raw_read_GBps"] = Median(raw_read);
}
BENCHMARK(DiskTierBlocks)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace penstock::bench
