// SPDX-License-Identifier: Apache-2.0
// A disk of memory under a virtual clock, which loses power, errs, damages bytes and takes its time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "base/virtual_loop.h"
#include "kvstore/disk/disk_io.h"

namespace penstock::kvstore {

class FakeDisk final : public DiskIo {
 public:
  struct Faults {
    double error = 0;  // Of each read, write and sync.
    double hang = 0;   // It never ends.
    std::uint64_t bytes_max = UINT64_MAX;
    Duration latency_max = std::chrono::milliseconds(3);
  };
  struct Image {  // Of a file.
    std::vector<std::byte> bytes;
  };
  using Images = std::map<std::uint64_t, Image>;

  FakeDisk(VirtualLoop& loop, std::uint64_t seed, Images images = {})
      : loop_(loop), random_(seed), current_(images), durable_(std::move(images)) {}

  Faults& faults() { return faults_; }
  std::uint64_t bytes() const;
  // What is there after the power was lost now: all that was synced, and of the rest any sectors.
  Images LosePower();
  // Changes one bit of a file, as it is now and as it would be.
  void Damage(std::uint64_t segment, std::uint64_t bit);
  const Images& images() const { return current_; }

  absl::StatusOr<std::vector<File>> List() override;
  absl::Status ReadNow(std::uint64_t segment, std::uint64_t offset,
                       std::span<std::byte> to) override;
  absl::Status SyncNow(std::uint64_t segment) override;
  absl::Status Create(std::uint64_t segment, std::uint64_t bytes) override;
  void Remove(std::uint64_t segment) override;
  void Write(std::uint64_t segment, std::uint64_t offset, std::vector<DiskBytes> parts,
             Done done) override;
  void Read(std::uint64_t segment, std::uint64_t offset, DiskBytes to, Done done) override;
  void Sync(std::uint64_t segment, Done done) override;

 private:
  struct Unsynced {
    std::uint64_t segment = 0;
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes = {};
    bool written = false;
  };
  bool Chance(double p) { return std::bernoulli_distribution(p)(random_); }
  // Calls `act` after a while, and `done` with what it says.
  void Later(Done done, std::function<absl::Status()> act);

  VirtualLoop& loop_;
  std::mt19937_64 random_;
  Faults faults_;
  Images current_;
  Images durable_;
  std::map<std::uint64_t, Unsynced> unsynced_;  // In their order.
  std::uint64_t next_ = 0;
  std::shared_ptr<int> life_ = std::make_shared<int>(0);
};

}  // namespace penstock::kvstore
