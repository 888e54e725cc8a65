// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/uring_disk.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "base/seed_testing.h"
#include "base/unique_fd.h"
#include "kvstore/disk/uring_testing.h"

namespace penstock::kvstore {
namespace {

#if defined(PENSTOCK_SANITIZED)
constexpr int kRuns = 60;
#else
constexpr int kRuns = 1000;
#endif

using testing::HasSubstr;

class UringDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "penstock-disk-XXXXXX";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    if (absl::IsUnimplemented(DiskNode(folder_).status_)) GTEST_SKIP() << "no io_uring here";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_F(UringDiskTest, KeepsBlocksOverLives) {
  {
    DiskNode node(folder_);
    ASSERT_TRUE(node.status_.ok()) << node.status_;
    for (std::uint32_t number = 0; number < 40; ++number) {
      EXPECT_TRUE(node.PutNow(number).ok()) << number;
    }
    EXPECT_TRUE(node.GetNow(3).ok());
    EXPECT_TRUE(absl::IsNotFound(node.GetNow(1000)));
    DiskNode second(folder_);
    EXPECT_TRUE(absl::IsFailedPrecondition(second.status_));
    EXPECT_THAT(second.status_.ToString(), HasSubstr("is another process's"));
  }
  std::ofstream(folder_ + "/notes.txt") << "not ours";
  DiskNode node(folder_);
  ASSERT_TRUE(node.status_.ok()) << node.status_;
  for (std::uint32_t number = 0; number < 40; ++number) {
    EXPECT_TRUE(node.GetNow(number).ok()) << number;
  }
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/notes.txt"));
}

TEST_F(UringDiskTest, DirectoriesThatCannotBe) {
  EXPECT_TRUE(absl::IsNotFound(DiskNode(folder_ + "/a/b").status_));
  std::ofstream(folder_ + "/file") << "x";
  EXPECT_TRUE(absl::IsNotFound(DiskNode(folder_ + "/file").status_));
}

TEST_F(UringDiskTest, AFileThatWasCutIsAMiss) {
  { EXPECT_TRUE(DiskNode(folder_).PutNow(1).ok()); }
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    if (entry.path().extension() == ".segment") std::filesystem::resize_file(entry.path(), 8192);
  }
  DiskNode node(folder_);
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
    ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    const std::string first = std::to_string(random() % 64);
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(pipe[1], STDOUT_FILENO);
      ::execl(DISK_PEER, DISK_PEER, folder_.c_str(), first.c_str(), nullptr);
      ::_exit(127);
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
    DiskNode node(folder_);
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
