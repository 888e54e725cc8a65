// SPDX-License-Identifier: Apache-2.0
// A store node of another process, and blocks of 720 KiB (32 tokens of SmolLM2) put there and got from
// there: by one client beside memcpy of the same bytes, by several at once beside as many of a
// redis-server. All have more bytes than caches hold, walked in order.
//
// In each round all ways take turns; two rounds before are not counted: memory that is touched for
// the first time costs more. Prints one JSON object: of each way, bytes per second in each round.
//
//   copy whole, copy pieces       memcpy of the pool; block by block
//   get chain, get blocks, get one    one client: 64 blocks of a chain at a time; single blocks, 8 under
//                                 way, and one
//   get mapped                    one client: 64 found at a time and read in place
//   put, get, get mapped of n     n clients, each its share; gets as "get chain"
//   redis put, redis get of n     n connections, each a thread; with one request under way, or four
//
// Whatever is got is verified by CRC32C, theirs too; what they put is not checksummed.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/time.h"
#include "bench/store_client.h"
#include "kernels/crc32c.h"
#include "kvstore/node/store_node.h"
#include "transfer/mapped_segment.h"

namespace penstock::bench {
namespace {

constexpr std::size_t kChainBlocks = 64;  // A prompt of 2,048 tokens.
constexpr std::size_t kSlots = 16;   // As many frames are on their way as a worker has by default.
constexpr std::size_t kFetches = 8;  // Under way at a time, of single blocks.
constexpr int kWarmRounds = 2;
constexpr const char* kNodeName = "node";

struct Options {
  std::string folder;
  std::size_t blocks = 768;
  std::size_t clients = 8;
  int rounds = 5;
  std::string redis;
  std::vector<std::string> ways;
};

std::uint64_t HostBytes(std::size_t blocks) {
  // What one round puts, and room for half as much of the one before: in the long run each put
  // makes room first.
  return blocks * (kBlockBytes + 4096) * 3 / 2;
}

// The node's process: prints its address and a path to its memory, ends with its input.
int Serve(const std::string& folder, std::uint64_t host_bytes) {
  const auto device = CpuDevice::Make({.threads = 1}).value();
  kvstore::StoreNode::Options options;
  options.endpoint.self = {kNodeName, 1};
  options.endpoint.kinds = {transfer::Kind::kShm};
  options.endpoint.socket_folder = folder;
  options.host_bytes = host_bytes;
  options.host.policy = "lru";
  const auto node = kvstore::StoreNode::Start(*device, options).value();
  std::string memory;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    struct stat stat {};
    const std::string fd = entry.path().filename();
    if (::fstat(std::stoi(fd), &stat) == 0 &&
        static_cast<std::uint64_t>(stat.st_size) == host_bytes) {
      memory = absl::StrCat("/proc/", ::getpid(), "/fd/", fd);
    }
  }
  std::cout << node->transfer_address() << "\n" << memory << std::endl;
  while (std::cin.get() != EOF) {
  }
  return 0;
}

class NodeProcess {
 public:
  NodeProcess(const std::string& folder, std::uint64_t host_bytes) {
    int to[2], from[2];
    CHECK(::pipe2(to, O_CLOEXEC) == 0 && ::pipe2(from, O_CLOEXEC) == 0);
    pid_ = ::fork();
    CHECK_GE(pid_, 0);
    if (pid_ == 0) {
      ::dup2(to[0], STDIN_FILENO);
      ::dup2(from[1], STDOUT_FILENO);
      ::execl("/proc/self/exe", "store_bench", "--serve", std::to_string(host_bytes).c_str(),
              "--folder", folder.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(to[0]);
    ::close(from[1]);
    input_.Reset(to[1]);
    std::FILE* const out = ::fdopen(from[0], "r");
    char line[4096];
    std::vector<std::string> lines;
    while (lines.size() < 2 && std::fgets(line, sizeof(line), out) != nullptr) {
      lines.emplace_back(line, std::strcspn(line, "\n"));
    }
    std::fclose(out);
    CHECK_EQ(lines.size(), 2u);
    address = lines[0];
    const UniqueFd memory(::open(lines[1].c_str(), O_RDONLY | O_CLOEXEC));
    CHECK(memory);
    mapped = transfer::MappedSegment::Map(memory.get(), host_bytes).value();
  }
  ~NodeProcess() {
    input_.Reset();
    (void)::waitpid(pid_, nullptr, 0);
  }

  std::string address;
  transfer::MappedSegment mapped;

 private:
  pid_t pid_ = -1;
  UniqueFd input_;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        pool_bytes_(options.blocks * kBlockBytes),
        from_(device_->Allocate(pool_bytes_).value()),
        to_(device_->Allocate(pool_bytes_).value()),
        node_(options.folder, HostBytes(options.blocks)) {
    std::uint64_t state = 1;
    for (std::size_t i = 0; i < pool_bytes_; i += sizeof(state)) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::memcpy(from_->data() + i, &state, sizeof(state));
    }
    for (std::size_t i = 0; i < options.blocks; ++i) {
      crcs_.push_back(kernels::Crc32c(0, from_->data() + i * kBlockBytes, kBlockBytes));
    }
    kvstore::StoreAddress store;
    store.peer = {kNodeName, 1};
    store.address = node_.address;
    for (std::size_t i = 0; i < options.clients; ++i) {
      clients_.push_back(std::make_unique<StoreClient>(*device_, absl::StrCat("client-", i),
                                                       options.folder, store));
      if (!options.redis.empty()) redis_.push_back(std::make_unique<RedisClient>(options.redis));
    }
  }

  void Round(bool counted) {
    counted_ = counted;
    ++round_;
    const std::size_t n = clients_.size();
    Time("copy whole", [&] { std::memcpy(to_->data(), from_->data(), pool_bytes_); });
    Time("copy pieces", [&] {
      for (std::size_t at = 0; at < pool_bytes_; at += kBlockBytes) {
        std::memcpy(to_->data() + at, from_->data() + at, kBlockBytes);
      }
    });
    Each(absl::StrCat("put of ", n), *from_,
         [&](std::size_t c, const Blocks& blocks) { clients_[c]->Put(blocks, kSlots); });
    Time("get chain", [&] { clients_[0]->Get(Share(0, 1, *to_), kChainBlocks, 1); });
    Check();
    Time("get blocks", [&] { clients_[0]->Get(Share(0, 1, *to_), 1, kFetches); });
    Check();
    Time("get one", [&] { clients_[0]->Get(Share(0, 1, *to_), 1, 1); });
    Time("get mapped",
         [&] { clients_[0]->CheckMapped(Share(0, 1, *to_), node_.mapped.bytes(), kChainBlocks); });
    Each(absl::StrCat("get of ", n), *to_,
         [&](std::size_t c, const Blocks& blocks) { clients_[c]->Get(blocks, kChainBlocks, 1); });
    Check();
    Each(absl::StrCat("get mapped of ", n), *to_, [&](std::size_t c, const Blocks& blocks) {
      clients_[c]->CheckMapped(blocks, node_.mapped.bytes(), kChainBlocks);
    });
    if (redis_.empty()) return;
    for (const std::size_t depth : {1, 4}) {
      const std::string of = absl::StrCat(" of ", n, ", ", depth, " under way");
      Each("redis put" + of, *from_,
           [&](std::size_t c, const Blocks& blocks) { redis_[c]->Put(blocks, depth); });
      Each("redis get" + of, *to_,
           [&](std::size_t c, const Blocks& blocks) { redis_[c]->Get(blocks, depth, crcs_); });
      Check();
    }
  }

  const std::map<std::string, std::vector<double>>& rates() const { return rates_; }

 private:
  Blocks Share(std::size_t part, std::size_t parts, DeviceMemory& memory) const {
    const std::size_t first = options_.blocks * part / parts;
    return {.round = round_,
            .first = first,
            .count = options_.blocks * (part + 1) / parts - first,
            .memory = memory.data() + first * kBlockBytes};
  }

  void Time(const std::string& way, const std::function<void()>& run) {
    const auto named = [&](const std::string& part) { return way.find(part) != std::string::npos; };
    if (!options_.ways.empty() && std::ranges::none_of(options_.ways, named)) return;
    const MonoTime begin = SteadyClock().Now();
    run();
    const double seconds = ToSeconds(SteadyClock().Now() - begin);
    if (counted_) rates_[way].push_back(static_cast<double>(pool_bytes_) / seconds);
  }

  // All at once, each in a thread.
  void Each(const std::string& way, DeviceMemory& memory,
            const std::function<void(std::size_t, const Blocks&)>& run) {
    Time(way, [&] {
      std::vector<std::jthread> threads;
      for (std::size_t c = 0; c < clients_.size(); ++c) {
        threads.emplace_back([&, c] { run(c, Share(c, clients_.size(), memory)); });
      }
    });
  }

  // What came is what was put; and the next way has to write it all again.
  void Check() {
    if (!options_.ways.empty()) return;
    CHECK_EQ(std::memcmp(to_->data(), from_->data(), pool_bytes_), 0);
    std::memset(to_->data(), 1, pool_bytes_);
  }

  const Options options_;
  const std::size_t pool_bytes_;
  const std::unique_ptr<CpuDevice> device_ = CpuDevice::Make({.threads = 1}).value();
  const std::unique_ptr<DeviceMemory> from_;
  const std::unique_ptr<DeviceMemory> to_;
  std::vector<std::uint32_t> crcs_;  // Of each block.
  const NodeProcess node_;
  std::vector<std::unique_ptr<StoreClient>> clients_;
  std::vector<std::unique_ptr<RedisClient>> redis_;
  std::uint32_t round_ = 0;
  bool counted_ = false;
  std::map<std::string, std::vector<double>> rates_;
};

}  // namespace
}  // namespace penstock::bench

int main(int argc, char** argv) {
  penstock::bench::Options options;
  std::uint64_t serve = 0;
  CLI::App app("Blocks put into a store node and got from it, beside memcpy and a redis-server");
  app.add_option("--folder", options.folder, "For sockets: empty, this user's alone")->required();
  app.add_option("--blocks", options.blocks, "Of 720 KiB each")
      ->check(CLI::Range(64, 65536))
      ->capture_default_str();
  app.add_option("--clients", options.clients, "At once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "Counted ones")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--redis", options.redis,
                 "Unix socket of a redis-server; without it there is none");
  app.add_option("--ways", options.ways,
                 "Only those with one of these in their names, unchecked, to profile")
      ->delimiter(',');
  app.add_option("--serve", serve, "For itself: be the node, with so much memory");
  CLI11_PARSE(app, argc, argv);
  if (serve > 0) return penstock::bench::Serve(options.folder, serve);
  penstock::bench::Bench bench(options);
  for (int i = 0; i < penstock::bench::kWarmRounds; ++i) bench.Round(false);
  for (int i = 0; i < options.rounds; ++i) bench.Round(true);
  std::cout << nlohmann::json(bench.rates()).dump(1) << std::endl;
  return 0;
}
