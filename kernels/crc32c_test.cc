// SPDX-License-Identifier: Apache-2.0
#include "kernels/crc32c.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/crc32c_targets.h"

namespace penstock::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::byte kGuard{0xa5};
constexpr std::size_t kGuardBytes = 64;
constexpr std::size_t kAlignments = 16;

Bytes Random(std::size_t n) {
  std::mt19937 random(1);
  Bytes bytes(n);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Bytes FromText(std::string_view text) {
  Bytes bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}

Bytes Counting(int from, int step) {
  Bytes bytes;
  for (int i = 0; i < 32; ++i) bytes.push_back(static_cast<std::byte>(from + step * i));
  return bytes;
}

// Every length up to 600, then some around the sizes at which the code changes: stores around the
// caches, blocks of 4 KiB, prefetching.
std::vector<std::size_t> Lengths() {
  std::vector<std::size_t> lengths(601);
  std::iota(lengths.begin(), lengths.end(), 0);
  for (const std::size_t n : {1024, 2048, 4096, 8192, 12288, 65536, 1 << 20}) {
    for (const std::size_t length : {n - 1, n, n + 1, n + 77}) lengths.push_back(length);
  }
  return lengths;
}

TEST(Crc32cTest, PrintsTargets) {
  for (const Crc32cTarget& target : Crc32cTargets()) std::cout << "ran: " << target.name << "\n";
  EXPECT_EQ(Crc32cTargets()[0].name, "scalar");
}

// The vectors of RFC 3720, B.4, and the usual check value.
TEST(Crc32cTest, KnownValues) {
  Bytes read_command(48);
  const std::pair<std::size_t, int> kSet[] = {{0, 0x01},  {1, 0xc0},  {16, 0x14}, {22, 0x04},
                                              {27, 0x14}, {31, 0x18}, {32, 0x28}, {40, 0x02}};
  for (const auto& [at, value] : kSet) read_command[at] = static_cast<std::byte>(value);
  struct Case {
    const char* name;
    Bytes bytes;
    std::uint32_t want;
  };
  const Case cases[] = {{"nothing", {}, 0},
                        {"check", FromText("123456789"), 0xe3069283},
                        {"zeros", Counting(0, 0), 0x8a9136aa},
                        {"ones", Counting(0xff, 0), 0x62a8ab43},
                        {"up", Counting(0, 1), 0x46dd794e},
                        {"down", Counting(31, -1), 0x113fdb5c},
                        {"read command", read_command, 0xd9963a56}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Bytes copy(c.bytes.size());
    EXPECT_EQ(Crc32c(0, c.bytes.data(), c.bytes.size()), c.want);
    EXPECT_EQ(CopyCrc32c(0, c.bytes.data(), c.bytes.size(), copy.data()), c.want);
    EXPECT_EQ(copy, c.bytes);
    for (const Crc32cTarget& target : Crc32cTargets()) {
      EXPECT_EQ(target.crc(0, c.bytes.data(), c.bytes.size()), c.want) << target.name;
    }
  }
}

// Compares one copy, and one checksum alone, with `want`; true when both are right.
bool Agrees(const Crc32cTarget& target, std::uint32_t crc, std::span<const std::byte> source,
            std::span<std::byte> to, std::uint32_t want) {
  const std::size_t n = source.size();
  const std::size_t before = to.size() - n - kGuardBytes;
  std::fill(to.begin(), to.end(), kGuard);
  const std::byte* const end = to.data() + before + n;
  const auto is_guard = [](std::byte byte) { return byte == kGuard; };
  return target.crc(crc, source.data(), n) == want &&
         target.copy(crc, source.data(), n, to.data() + before) == want &&
         std::equal(source.begin(), source.end(), to.data() + before) &&
         std::all_of(to.data(), to.data() + before, is_guard) &&
         std::all_of(end, end + kGuardBytes, is_guard);
}

TEST(Crc32cTest, TargetsAgreeAtEveryLengthAndAlignment) {
  const Crc32cTarget& scalar = Crc32cTargets()[0];
  const std::vector<std::size_t> lengths = Lengths();
  const std::size_t longest = *std::max_element(lengths.begin(), lengths.end());
  const Bytes source = Random(longest + kAlignments);
  Bytes to(longest + 2 * kGuardBytes + kAlignments);
  std::uint32_t crc = 0;
  for (const std::size_t n : lengths) {
    // All pairs are many: long copies take every second alignment of each side, in pairs.
    const std::size_t pairs = n <= 600 ? kAlignments * kAlignments : kAlignments / 2;
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const std::size_t from_at = n <= 600 ? pair / kAlignments : 2 * pair + 1;
      const std::size_t to_at = n <= 600 ? pair % kAlignments : (6 * pair) % kAlignments;
      const std::span<const std::byte> bytes(source.data() + from_at, n);
      const std::uint32_t want = scalar.crc(crc, bytes.data(), n);
      for (const Crc32cTarget& target : Crc32cTargets()) {
        ASSERT_TRUE(
            Agrees(target, crc, bytes, std::span(to).first(to_at + n + 2 * kGuardBytes), want))
            << "target " << target.name << " n=" << n << " from " << from_at << " to " << to_at
            << " after " << crc;
      }
      crc = want;  // The next one continues from any value.
    }
  }
}

TEST(Crc32cTest, ContinuesAtEverySplit) {
  constexpr std::size_t kBytes = kCrc32cStreamBytes + 500;  // Splits on both sides of it.
  const Bytes source = Random(kBytes);
  const std::uint32_t want = Crc32cTargets()[0].crc(0, source.data(), kBytes);
  for (const Crc32cTarget& target : Crc32cTargets()) {
    for (std::size_t split = 0; split <= kBytes; ++split) {
      SCOPED_TRACE(absl::StrCat("target ", std::string(target.name), " split=", split));
      const std::byte* const rest = source.data() + split;
      Bytes to(kBytes);
      ASSERT_EQ(target.crc(target.crc(0, source.data(), split), rest, kBytes - split), want);
      const std::uint32_t first = target.copy(0, source.data(), split, to.data());
      ASSERT_EQ(target.copy(first, rest, kBytes - split, to.data() + split), want);
      ASSERT_EQ(to, source);
    }
  }
}

TEST(Crc32cTest, EveryBitCounts) {
  constexpr std::size_t kBytes = 4096 + 2048 + 128 + 17;  // Each loop of the SIMD targets.
  Bytes source = Random(kBytes);
  const std::uint32_t right = Crc32c(0, source.data(), kBytes);
  for (std::size_t bit = 0; bit < 8 * kBytes; ++bit) {
    const auto mask = static_cast<std::byte>(1 << bit % 8);
    source[bit / 8] ^= mask;
    ASSERT_NE(Crc32c(0, source.data(), kBytes), right) << "bit " << bit;
    source[bit / 8] ^= mask;
  }
}

// A process that writes to shared memory until it is killed, or its parent dies.
class Scribbler {
 public:
  Scribbler(std::uint64_t* words, std::size_t count) : child_(fork()) {
    if (child_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    volatile std::uint64_t* const at = words;
    for (std::uint64_t value = 0;; ++value) {
      for (std::size_t i = 0; i < count; ++i) at[i] = value * 0x9e3779b97f4a7c15;
    }
  }
  ~Scribbler() {
    if (child_ < 0) return;
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  Scribbler(const Scribbler&) = delete;
  Scribbler& operator=(const Scribbler&) = delete;
  bool started() const { return child_ > 0; }

 private:
  const pid_t child_;
};

TEST(Crc32cTest, ChecksWhatItWroteWhileTheSourceChanges) {
  for (const std::size_t n : {1000, 65536}) {
    void* const memory =
        mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    const auto* const source = static_cast<const std::byte*>(memory);
    {
      const Scribbler scribbler(static_cast<std::uint64_t*>(memory), n / 8);
      ASSERT_TRUE(scribbler.started());
      Bytes to(n);
      for (const Crc32cTarget& target : Crc32cTargets()) {
        for (int i = 0; i < 300; ++i) {
          const std::uint32_t crc = target.copy(0, source, n, to.data());
          ASSERT_EQ(crc, Crc32c(0, to.data(), n)) << "target " << target.name << " n=" << n;
        }
      }
    }
    munmap(memory, n);
  }
}

}  // namespace
}  // namespace penstock::kernels
