// SPDX-License-Identifier: Apache-2.0
// KV moved between two processes, of this host or of two: a pool large enough that no cache decides, walked in
// order, piece by piece, against memcpy of the same bytes in the same run.
//
// Each figure is the best of a few passes, since other work on the machine only ever takes time
// away; the passes of all ways take turns, so that they meet the same machine.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/check.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "device/cpu_device.h"
#include "kernels/crc32c.h"
#include "transfer/endpoint_testing.h"
#include "transfer/ucx_transport.h"

namespace penstock::bench {
namespace {

using transfer::Channel;

constexpr std::size_t kWindowBytes = std::size_t{32} << 20;  // Asked for and not yet there.
constexpr std::size_t kWindowReads = 128;

struct Options {
  std::size_t pool_mib = 512;
  int passes = 5;
  std::string json;
  std::vector<std::size_t> piece_kib = {4, 16, 64, 256, 1024, 4096, 16384};
  std::vector<std::string> kinds = {"shm", "tcp"};
  std::string host = "127.0.0.1";
  std::string peer;
};

// One way to move the pool; Run is one pass.
struct Way {
  std::string name;
  std::size_t piece_bytes = 0;
  std::function<void()> run;
  double best_s = 0;
};

// A channel to a process that serves the pool.
class Mover {
 public:
  // `line`: what a process of the name peer-KIND has printed; empty: one is started.
  Mover(EpollLoop& loop, const std::string& kind, const std::string& host, const std::string& line,
        std::size_t pool_bytes, std::byte* to)
      : loop_(loop), kind_(kind), pool_bytes_(pool_bytes), to_(to) {
    transfer::Peer peer = {"peer-" + kind, 1};
    std::string address = line.substr(0, line.rfind(' '));
    if (line.empty()) {
      peer_.emplace(transfer::FolderOfThisProgram() + "/../transfer", peer.name, folder_.path(),
                    kind, pool_bytes);
      address = peer_->address();
      segment_ = peer_->segment();
    } else {
      std::uint32_t segment = 0;
      CHECK(absl::SimpleAtoi(line.substr(line.rfind(' ') + 1), &segment));
      segment_ = transfer::SegmentId{segment};
    }
    bool done = false;
    loop_.Run([&] {
      endpoint_ = transfer::Endpoint::Make(
                      loop_, transfer::PeerOptions("bench-" + kind, folder_.path(), kind, host),
                      [](std::unique_ptr<Channel>) {}, [](const absl::Status&) {})
                      .value();
      endpoint_->Connect(peer, address, [&](auto channel) {
        channel_ = std::move(channel).value();
        channel_->Start({});
        done = true;
      });
    });
    for (bool ended = false; !ended; std::this_thread::yield()) loop_.Run([&] { ended = done; });
  }
  ~Mover() {
    loop_.Run([&] {
      channel_.reset();
      endpoint_.reset();
    });
  }

  const std::string& kind() const { return kind_; }

  // What a producer tells with its bytes; computed before anything is timed.
  static std::vector<std::uint32_t> Checksums(std::size_t pool_bytes, std::size_t piece_bytes) {
    std::vector<std::byte> piece(piece_bytes);
    std::vector<std::uint32_t> crcs;
    for (std::size_t at = 0; at < pool_bytes; at += piece_bytes) {
      for (std::size_t i = 0; i < piece_bytes; ++i) piece[i] = transfer::PeerByte(at + i);
      crcs.push_back(kernels::Crc32c(0, piece.data(), piece_bytes));
    }
    return crcs;
  }

  // Reads the pool once. `crcs` empty: raw.
  void Walk(std::size_t piece_bytes, const std::vector<std::uint32_t>& crcs) {
    piece_bytes_ = piece_bytes;
    crcs_ = &crcs;
    runs_ = {{0, 0, static_cast<std::uint32_t>(piece_bytes)}};
    next_ = 0;
    left_ = pool_bytes_ / piece_bytes;
    std::mutex mutex;
    std::condition_variable ended;
    bool done = false;
    on_end_ = [&] {
      const std::lock_guard lock(mutex);
      done = true;
      ended.notify_one();
    };
    loop_.Post([this] {
      const std::size_t window =
          std::clamp<std::size_t>(kWindowBytes / piece_bytes_, 2, kWindowReads);
      for (std::size_t i = 0; i < window && next_ < pool_bytes_ / piece_bytes_; ++i) Next();
    });
    std::unique_lock lock(mutex);
    ended.wait(lock, [&] { return done; });
  }

 private:
  void Next() {
    const std::size_t i = next_++;
    Channel::ReadRequest request;
    request.segment = segment_;
    request.units = {{.from = i * piece_bytes_, .to = to_ + i * piece_bytes_, .runs = runs_}};
    request.verify = !crcs_->empty();
    if (request.verify) request.crcs = {(*crcs_)[i]};
    request.deadline = loop_.Now() + std::chrono::seconds(60);
    channel_->Read(std::move(request), [this](const absl::Status& status) {
      CHECK(status.ok());
      if (next_ < pool_bytes_ / piece_bytes_) Next();
      if (--left_ == 0) on_end_();
    });
  }

  EpollLoop& loop_;
  const std::string kind_;
  const std::size_t pool_bytes_;
  std::byte* const to_;
  const transfer::TemporaryFolder folder_;
  std::optional<transfer::PeerProcess> peer_;
  transfer::SegmentId segment_{};
  std::unique_ptr<transfer::Endpoint> endpoint_;
  std::unique_ptr<Channel> channel_;
  std::size_t piece_bytes_ = 0;
  const std::vector<std::uint32_t>* crcs_ = nullptr;
  std::vector<transfer::ByteRun> runs_;
  std::size_t next_ = 0;
  std::size_t left_ = 0;
  std::function<void()> on_end_;
};

int Run(const Options& options) {
  const std::size_t pool_bytes = options.pool_mib << 20;
  const auto device = CpuDevice::Make({}).value();
  const auto from = device->Allocate(pool_bytes).value();
  const auto to = device->Allocate(pool_bytes, Sharing::kPeers).value();
  for (std::size_t i = 0; i < pool_bytes; ++i) from->data()[i] = transfer::PeerByte(i);
  std::memset(to->data(), 1, pool_bytes);
  const auto loop = EpollLoop::Make("bench").value();
  std::vector<std::unique_ptr<Mover>> movers;
  for (const std::string& kind : options.kinds) {
    movers.push_back(
        std::make_unique<Mover>(*loop, kind, options.host, options.peer, pool_bytes, to->data()));
  }

  std::vector<Way> ways;
  ways.push_back(
      {"memcpy", pool_bytes, [&] { std::memcpy(to->data(), from->data(), pool_bytes); }});
  std::vector<std::unique_ptr<std::vector<std::uint32_t>>> checksums;
  static const std::vector<std::uint32_t> kRaw;
  for (const std::size_t kib : options.piece_kib) {
    const std::size_t piece = kib << 10;
    CHECK_EQ(pool_bytes % piece, 0u);
    checksums.push_back(
        std::make_unique<std::vector<std::uint32_t>>(Mover::Checksums(pool_bytes, piece)));
    const std::vector<std::uint32_t>& crcs = *checksums.back();
    for (const auto& owned : movers) {
      Mover* const mover = owned.get();
      ways.push_back({mover->kind() + " raw", piece, [=] { mover->Walk(piece, kRaw); }});
      ways.push_back(
          {mover->kind() + " verified", piece, [=, &crcs] { mover->Walk(piece, crcs); }});
    }
  }
  for (int pass = 0; pass < options.passes; ++pass) {
    for (Way& way : ways) {
      const MonoTime begin = SteadyClock().Now();
      way.run();
      const double seconds = ToSeconds(SteadyClock().Now() - begin);
      if (pass == 0 || seconds < way.best_s) way.best_s = seconds;
    }
  }
  nlohmann::json report = nlohmann::json::array();
  std::printf("pool of %zu MiB, best of %d passes\n%-14s %12s %10s %8s\n", options.pool_mib,
              options.passes, "way", "piece KiB", "GB/s", "memcpy");
  for (const Way& way : ways) {
    const double rate = static_cast<double>(pool_bytes) / way.best_s / 1e9;
    const double share = ways[0].best_s / way.best_s;
    std::printf("%-14s %12zu %10.2f %7.2fx\n", way.name.c_str(), way.piece_bytes >> 10, rate,
                share);
    report.push_back({{"way", way.name},
                      {"piece_bytes", way.piece_bytes},
                      {"bytes_per_s", rate * 1e9},
                      {"of_memcpy", share}});
  }
  if (options.json.empty()) return 0;
  std::FILE* const file = std::fopen(options.json.c_str(), "w");
  if (file == nullptr) {
    std::fprintf(stderr, "cannot write %s\n", options.json.c_str());
    return 1;
  }
  std::fprintf(file, "%s\n", report.dump(1).c_str());
  return std::fclose(file) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace penstock::bench

int main(int argc, char** argv) {
  penstock::bench::Options options;
  CLI::App app("KV moved between two processes, against memcpy");
  app.add_option("--pool-mib", options.pool_mib, "Bytes walked in one pass, in MiB")
      ->check(CLI::Range(16, 65536))
      ->capture_default_str();
  app.add_option("--passes", options.passes, "Passes of each way")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--piece-kib", options.piece_kib, "Sizes of pieces, in KiB; each divides the pool")
      ->delimiter(',')
      ->check(CLI::Range(1, 16384));
  if (penstock::transfer::UcxTransport::Built()) options.kinds.push_back("ucx");
  app.add_option("--kinds", options.kinds, "Kinds of links")
      ->delimiter(',')
      ->check(CLI::IsMember(options.kinds))
      ->capture_default_str();
  app.add_option("--host", options.host, "Our own address among the hosts")->capture_default_str();
  app.add_option(
      "--peer", options.peer,
      "With one kind: what an endpoint_peer of the name peer-KIND printed, on another host");
  app.add_option("--json", options.json, "Also write the figures to this file");
  CLI11_PARSE(app, argc, argv);
  return penstock::bench::Run(options);
}
