// SPDX-License-Identifier: Apache-2.0
// A disk tier over a real directory, asked from another thread; for tests and the process that they
// kill.
#pragma once

#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "base/epoll_loop.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/block_testing.h"
#include "kvstore/disk/disk_tier.h"
#include "kvstore/disk/uring_disk.h"

namespace penstock::kvstore {

// A tier over a real directory, from another thread.
class DiskNode {
 public:
  explicit DiskNode(const std::string& directory) : loop_(*EpollLoop::Make("disk")) {
    loop_->Run([&] {
      auto disk = OpenUringDisk(*loop_, {.directory = directory, .operations = 8});
      status_ = disk.status();
      if (!disk.ok()) return;
      disk_ = *std::move(disk);
      auto tier = DiskTier::Open(*loop_, *disk_,
                                 {.bytes_max = 3 << 20, .segment_bytes = 256 << 10, .store = 1});
      status_ = tier.status();
      if (tier.ok()) tier_ = *std::move(tier);
    });
  }
  ~DiskNode() {
    loop_->Run([&] {
      tier_.reset();
      disk_.reset();
    });
  }

  // From the loop.
  void Put(std::uint32_t number, std::function<void(absl::Status)> done) {
    const std::uint32_t bytes = BytesOfKey(number);
    const DiskBytes content = ContentOf(number, bytes);
    tier_->Put({KeyOf(number), bytes, number}, content,
               kernels::Crc32c(0, content.bytes.data(), bytes), std::move(done));
  }
  absl::Status PutNow(std::uint32_t number) {
    const auto result = std::make_shared<std::promise<absl::Status>>();
    loop_->Run([&] { Put(number, [result](absl::Status s) { result->set_value(std::move(s)); }); });
    return result->get_future().get();
  }
  absl::Status GetNow(std::uint32_t number) {
    const auto result = std::make_shared<std::promise<absl::Status>>();
    const std::uint32_t bytes = BytesOfKey(number);
    const DiskBytes to = MakeSectors(SectorsUp(bytes));
    loop_->Run([&] {
      tier_->Get(
          KeyOf(number), to, loop_->Now() + std::chrono::seconds(30),
          [result](const absl::StatusOr<std::uint32_t>& s) { result->set_value(s.status()); });
    });
    const absl::Status status = result->get_future().get();
    const DiskBytes content = ContentOf(number, bytes);
    if (status.ok() && std::memcmp(to.bytes.data(), content.bytes.data(), bytes) != 0) {
      return absl::InternalError("other bytes");
    }
    return status;
  }

  const std::unique_ptr<EpollLoop> loop_;
  absl::Status status_;
  std::unique_ptr<DiskIo> disk_;
  std::unique_ptr<DiskTier> tier_;
};

}  // namespace penstock::kvstore
