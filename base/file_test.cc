// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

namespace penstock {
namespace {

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "penstock_file_test_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr) << std::strerror(errno);
    folder_ = name + "/";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + name, std::ios::binary) << text;
    return folder_ + name;
  }

  std::string folder_;
};

std::string Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Bytes of [begin, begin + size) that are resident in this process, from the kernel's own account.
std::size_t ResidentBytes(const std::byte* begin) {
  std::ostringstream want;
  want << std::hex << reinterpret_cast<std::uintptr_t>(begin) << "-";
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.rfind(want.str(), 0) == 0) inside = true;
    if (inside && line.rfind("Rss:", 0) == 0) return std::stoul(line.substr(4)) * 1024;
  }
  return 0;
}

TEST_F(FileTest, MapsTheWholeFile) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{4095}, std::size_t{4096},
                                 std::size_t{4097}, std::size_t{100'000}}) {
    std::string text(size, '\0');
    for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 31 % 251);
    const std::string path = Write("file", text);
    const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(Text(*file), text);
    EXPECT_EQ(file->path(), path);
  }
}

TEST_F(FileTest, WhatCannotBeMappedSaysWhy) {
  const std::string empty = Write("empty", "");
  const std::string fifo = folder_ + "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const std::string loop = folder_ + "loop";
  std::filesystem::create_symlink(loop, loop);
  struct Case {
    std::string path;
    absl::StatusCode code;
    const char* want;
  };
  for (const Case& c : {
           Case{folder_ + "none", absl::StatusCode::kNotFound, "cannot open"},
           Case{"", absl::StatusCode::kNotFound, "cannot open"},
           Case{folder_, absl::StatusCode::kInvalidArgument, "is not a regular file"},
           Case{empty, absl::StatusCode::kInvalidArgument, "is empty"},
           Case{fifo, absl::StatusCode::kInvalidArgument, "is not a regular file"},
           Case{"/dev/zero", absl::StatusCode::kInvalidArgument, "is not a regular file"},
           Case{empty + std::string("\0x", 2), absl::StatusCode::kInvalidArgument, "NUL"},
       }) {
    const absl::Status status = MappedFile::Open(c.path).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_NE(Message(status).find(c.want), std::string::npos) << status;
  }
  EXPECT_FALSE(MappedFile::Open(loop).ok());
}

TEST_F(FileTest, AnUnreadableFileIsPermissionDenied) {
  const std::string path = Write("secret", "x");
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  const bool root = ::geteuid() == 0;  // May read every file, so be somebody else meanwhile.
  if (root) {
    ASSERT_EQ(::seteuid(65534), 0);
  }
  const absl::StatusCode mapped = MappedFile::Open(path).status().code();
  const absl::StatusCode read = ReadFile(path, 10).status().code();
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
  EXPECT_EQ(mapped, absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(read, absl::StatusCode::kPermissionDenied);
}

TEST_F(FileTest, MovesHandTheMappingOver) {
  MappedFile a = MappedFile::Open(Write("a", "aaa")).value();
  MappedFile b = MappedFile::Open(Write("b", "bb")).value();
  const std::byte* const b_data = b.bytes().data();
  a = std::move(b);
  EXPECT_EQ(Text(a), "bb");
  EXPECT_EQ(a.bytes().data(), b_data);
  EXPECT_TRUE(b.bytes().empty());  // NOLINT(bugprone-use-after-move): what is left is defined.
  const MappedFile c(std::move(a));
  EXPECT_EQ(Text(c), "bb");
  EXPECT_TRUE(a.bytes().empty());  // NOLINT(bugprone-use-after-move)
  EXPECT_TRUE(MappedFile().bytes().empty());
}

TEST_F(FileTest, DropGivesWholePagesBackAndTheyReadTheSameAgain) {
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::string text(64 * page, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i / 7);
  const MappedFile file = MappedFile::Open(Write("file", text)).value();
  ASSERT_EQ(Text(file), text);  // Touches every page.
  const std::size_t before = ResidentBytes(file.bytes().data());
  ASSERT_EQ(before, text.size());
  // Pages 2..9 whole; of pages 1 and 10 only a part was used.
  file.Drop(file.bytes().subspan(page + 1, 9 * page));
  EXPECT_EQ(ResidentBytes(file.bytes().data()), before - 8 * page);
  file.Drop(file.bytes().subspan(20 * page + 1, page));  // No whole page in it.
  file.Drop({});
  EXPECT_EQ(ResidentBytes(file.bytes().data()), before - 8 * page);
  EXPECT_EQ(Text(file), text);
}

TEST_F(FileTest, DropOutsideTheFileIsABug) {
  const MappedFile file = MappedFile::Open(Write("file", std::string(10'000, 'x'))).value();
  const std::byte other[1] = {};
  EXPECT_DEATH(file.Drop({file.bytes().data() + 1, 10'000}), "CHECK failed");
  EXPECT_DEATH(file.Drop(other), "CHECK failed");
}

TEST_F(FileTest, ReadFileKeepsItsLimit) {
  const std::string path = Write("file", std::string(100'000, 'x'));
  EXPECT_EQ(ReadFile(path, 100'000).value(), std::string(100'000, 'x'));
  const absl::Status status = ReadFile(path, 99'999).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Message(status).find("larger than the limit of 99999 bytes"), std::string::npos);
  EXPECT_EQ(ReadFile("/dev/zero", 1000).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadFile(Write("empty", ""), 0).value(), "");
  EXPECT_EQ(ReadFile(Write("nul", std::string("a\0b", 3)), 3).value(), std::string("a\0b", 3));
}

TEST_F(FileTest, ReadFileOfWhatIsNoFile) {
  EXPECT_EQ(ReadFile(folder_ + "none", 10).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadFile(folder_, 10).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadFile(std::string("a\0b", 3), 10).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace penstock
