// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/uring_disk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <string>

#include "base/seed_testing.h"
#include "base/unique_fd.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/disk_format.h"
#include "kvstore/disk/disk_log.h"
#include "kvstore/disk/disk_tier.h"

namespace penstock::kvstore {
namespace {

#if defined(PENSTOCK_SANITIZED)
constexpr int kRuns = 60;
#else
constexpr int kRuns = 1000;
#endif

using std::chrono::seconds;
using testing::HasSubstr;

BlockKey KeyOf(std::uint32_t number) {
  BlockKey key;
  std::memcpy(key.chain.bytes.data(), &number, sizeof(number));
  return key;
}

DiskBytes ContentOf(std::uint32_t number, std::uint32_t bytes) {
  const DiskBytes content = MakeSectors(SectorsUp(bytes));
  for (std::uint32_t i = 0; i < bytes; ++i) {
    content.bytes[i] = static_cast<std::byte>((number * 31 + i) * 2654435761u >> 24);
  }
  return content;
}
std::uint32_t BytesOfKey(std::uint32_t number) { return 100 + number * 7919 % 30000; }

// A tier over a real directory, from another thread.
class Node {
 public:
  explicit Node(const std::string& directory) : loop_(*EpollLoop::Make("disk")) {
    loop_->Run([&] {
      auto disk = UringDisk::Open(*loop_, {.directory = directory, .operations = 8});
      status_ = disk.status();
      if (!disk.ok()) return;
      disk_ = *std::move(disk);
      auto tier = DiskTier::Open(*loop_, *disk_,
                                 {.bytes_max = 3 << 20, .segment_bytes = 256 << 10, .store = 1});
      status_ = tier.status();
      if (tier.ok()) tier_ = *std::move(tier);
    });
  }
  ~Node() {
    loop_->Run([&] {
      tier_.reset();
      disk_.reset();
    });
  }

  // From the loop.
  void Put(std::uint32_t number, std::function<void(absl::Status)> done) {
    const std::uint32_t bytes = BytesOfKey(number);
    const DiskBytes content = ContentOf(number, bytes);
    tier_->Put(KeyOf(number), content, bytes, kernels::Crc32c(0, content.bytes.data(), bytes),
               std::move(done));
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
          KeyOf(number), to, loop_->Now() + seconds(30),
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
  std::unique_ptr<UringDisk> disk_;
  std::unique_ptr<DiskTier> tier_;
};

class UringDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "penstock-disk-XXXXXX";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    if (absl::IsUnimplemented(Node(folder_).status_)) GTEST_SKIP() << "no io_uring here";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_F(UringDiskTest, KeepsBlocksOverLives) {
  {
    Node node(folder_);
    ASSERT_TRUE(node.status_.ok()) << node.status_;
    for (std::uint32_t number = 0; number < 40; ++number) {
      EXPECT_TRUE(node.PutNow(number).ok()) << number;
    }
    EXPECT_TRUE(node.GetNow(3).ok());
    EXPECT_TRUE(absl::IsNotFound(node.GetNow(1000)));
    Node second(folder_);
    EXPECT_TRUE(absl::IsFailedPrecondition(second.status_));
    EXPECT_THAT(second.status_.ToString(), HasSubstr("is another process's"));
  }
  std::ofstream(folder_ + "/notes.txt") << "not ours";
  Node node(folder_);
  ASSERT_TRUE(node.status_.ok()) << node.status_;
  for (std::uint32_t number = 0; number < 40; ++number) {
    EXPECT_TRUE(node.GetNow(number).ok()) << number;
  }
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/notes.txt"));
}

TEST_F(UringDiskTest, DirectoriesThatCannotBe) {
  EXPECT_TRUE(absl::IsNotFound(Node(folder_ + "/a/b").status_));
  std::ofstream(folder_ + "/file") << "x";
  EXPECT_TRUE(absl::IsNotFound(Node(folder_ + "/file").status_));
}

TEST_F(UringDiskTest, AFileThatWasCutIsAMiss) {
  { EXPECT_TRUE(Node(folder_).PutNow(1).ok()); }
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    if (entry.path().extension() == ".segment") std::filesystem::resize_file(entry.path(), 8192);
  }
  Node node(folder_);
  ASSERT_TRUE(node.status_.ok()) << node.status_;
  EXPECT_TRUE(absl::IsNotFound(node.GetNow(1)));
  EXPECT_TRUE(node.PutNow(1).ok());
}

// A process writes and says what is on disk, until it is killed at any point.
TEST_F(UringDiskTest, WhatWasPromisedOutlivesKill) {
  std::mt19937 random(1);
  std::vector<bool> promised(64);
  for (int run = 0; run < kRuns && !HasFailure(); ++run) {
    const RunningSeed running(static_cast<std::uint64_t>(run));
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      Node node(folder_);
      if (!node.status_.ok()) ::_exit(1);
      std::uint32_t next = random() % 64;
      node.loop_->Run([&] {
        for (int i = 0; i < 1000; ++i, ++next) {
          const std::uint32_t number = next % 64;
          // Odd ones come and go.
          if (number % 2 == 1) node.tier_->Drop(KeyOf(number));
          node.Put(number, [number, &pipe](const absl::Status& status) {
            const auto byte = static_cast<char>(number);
            if (status.ok()) (void)!::write(pipe[1], &byte, 1);
          });
        }
      });
      for (;;) ::pause();
    }
    ::close(pipe[1]);
    const UniqueFd said(pipe[0]);
    char byte = 0;
    // Until some promises, and a while longer.
    const auto wanted = static_cast<int>(random() % 3) + 1;
    for (int i = 0; i < wanted && ::read(said.get(), &byte, 1) == 1; ++i) {
      promised[static_cast<std::size_t>(byte)] = true;
    }
    ::kill(child, SIGKILL);
    while (::read(said.get(), &byte, 1) == 1) promised[static_cast<std::size_t>(byte)] = true;
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << status;
    if (run % 20 != 0) continue;
    Node node(folder_);
    ASSERT_TRUE(node.status_.ok()) << node.status_;
    for (std::uint32_t number = 0; number < 64; ++number) {
      const absl::Status got = node.GetNow(number);
      if (promised[number] && number % 2 == 0) {
        EXPECT_TRUE(got.ok()) << number << ": " << got;
      } else {
        EXPECT_TRUE(got.ok() || absl::IsNotFound(got) || absl::IsDataLoss(got)) << got;
      }
    }
  }
}

}  // namespace
}  // namespace penstock::kvstore
