// SPDX-License-Identifier: Apache-2.0
// The remote tier and a server with every fault, under a virtual clock: each call ends once, by its
// deadline, and nothing wrong comes back.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/seed_testing.h"
#include "base/virtual_loop.h"
#include "kvstore/eviction_testing.h"
#include "kvstore/remote/redis_link_testing.h"
#include "kvstore/remote/remote_tier.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kKeys = 12;
constexpr Duration kEndWithin = milliseconds(300);

std::shared_ptr<std::vector<std::byte>> FrameOf(std::uint64_t number) {
  auto frame = std::make_shared<std::vector<std::byte>>(1 + number * 977 % 5000);
  for (std::size_t i = 0; i < frame->size(); ++i) {
    (*frame)[i] = static_cast<std::byte>((number * 131 + i) * 2654435761u >> 24);
  }
  return frame;
}

class Workload {
 public:
  explicit Workload(std::uint64_t seed) : random_(seed) {
    auto link = std::make_unique<FakeRedisLink>(loop_, seed, values_);
    link_ = link.get();
    tier_ = std::make_unique<RemoteTier>(loop_, std::move(link),
                                         RemoteTier::Options{.calls_max = 12,
                                                             .calls_sent_max = 3,
                                                             .put_bytes_max = 15'000,
                                                             .end_within = kEndWithin});
  }

  void Run() {
    for (int round = 0; round < 10 && !testing::Test::HasFailure(); ++round) {
      DrawFaults();
      for (int step = 0; step < 100; ++step) {
        Step();
        loop_.Advance(milliseconds(Draw(0, 4)));
        ASSERT_EQ(tier_->stats().waiting, started_ - ended_);
      }
    }
    link_->faults() = {};
    loop_.Advance(seconds(20));
    EXPECT_EQ(started_, ended_);
    EXPECT_EQ(tier_->stats().waiting, 0u);
    Recovers();
    // None is called after its end.
    for (int i = 0; i < 5; ++i) Step();
    const std::uint64_t ended = ended_;
    tier_.reset();
    loop_.Advance(seconds(20));
    EXPECT_EQ(ended_, ended);
  }

 private:
  std::uint64_t Draw(std::uint64_t least, std::uint64_t most) {
    return std::uniform_int_distribution<std::uint64_t>(least, most)(random_);
  }
  double Maybe(double p) { return Draw(0, 2) == 0 ? p : 0; }

  void DrawFaults() {
    link_->faults() = {.refuse = Maybe(0.5),
                       .lose = Maybe(0.02),
                       .silent = Maybe(0.01),
                       .error = Maybe(0.05),
                       .full = Maybe(0.2),
                       .nonsense = Maybe(0.02),
                       .latency_max = milliseconds(Draw(0, 3) == 0 ? 100 : 5)};
  }

  // For the end of one call: by `deadline`, once, not from inside.
  template <typename Result>
  auto Ends(MonoTime deadline, std::function<void(const Result&)> then) {
    ++started_;
    return [this, deadline, then, called = std::make_shared<bool>(false)](const Result& result) {
      EXPECT_FALSE(inside_);
      EXPECT_FALSE(std::exchange(*called, true));
      EXPECT_LE(loop_.Now(), deadline);
      ++ended_;
      then(result);
    };
  }

  void Step() {
    const std::uint64_t number = Draw(0, kKeys - 1);
    const MonoTime deadline = loop_.Now() + milliseconds(Draw(0, 200));
    const MonoTime end = loop_.Now() + kEndWithin;
    inside_ = true;
    switch (Draw(0, 7)) {
      case 0:
      case 1:
      case 2:
        Put(number, end);
        break;
      case 3:
      case 4:
      case 5:
        Get(number, deadline);
        break;
      case 6:
        Find(deadline);
        break;
      default:
        Delete(number, end);
        break;
    }
    inside_ = false;
  }

  void Put(std::uint64_t number, MonoTime end) {
    const auto frame = FrameOf(number);
    tier_->Put(TestKey(number), {.bytes = *frame, .owner = frame},
               Ends<absl::Status>(
                   end, [this, number, version = versions_[number]](const absl::Status& status) {
                     if (status.ok() && versions_[number] == version) kept_[number] = true;
                   }));
  }
  void Get(std::uint64_t number, MonoTime deadline) {
    const auto frame = FrameOf(number);
    const auto to = std::make_shared<std::vector<std::byte>>(frame->size() - Draw(0, 1));
    const auto ended = std::make_shared<bool>(false);
    const bool kept = kept_[number];
    tier_->Get(
        TestKey(number),
        [to, ended](std::uint32_t bytes) {
          EXPECT_FALSE(*ended);
          return RemoteTier::In(*to)(bytes);
        },
        deadline,
        Ends<absl::StatusOr<std::uint32_t>>(
            deadline,
            [=, this, version = versions_[number]](const absl::StatusOr<std::uint32_t>& got) {
              *ended = true;
              if (got.ok()) {
                EXPECT_EQ(*got, frame->size());
                EXPECT_EQ(*to, *frame);
              } else if (kept && versions_[number] == version) {
                EXPECT_FALSE(absl::IsNotFound(got.status()));
              }
              if (to->size() == frame->size()) {
                EXPECT_FALSE(absl::IsInvalidArgument(got.status()));
              }
            }));
  }
  void Find(MonoTime deadline) {
    std::vector<BlockKey> keys;
    for (std::uint64_t n = Draw(0, kKeys); n < kKeys; ++n) keys.push_back(TestKey(n));
    tier_->Find(keys, deadline,
                Ends<absl::StatusOr<std::vector<std::uint32_t>>>(
                    deadline, [keys](const absl::StatusOr<std::vector<std::uint32_t>>& found) {
                      if (!found.ok()) return;
                      ASSERT_EQ(found->size(), keys.size());
                      for (std::size_t i = 0; i < keys.size(); ++i) {
                        if ((*found)[i] != 0) {
                          EXPECT_EQ((*found)[i], FrameOf(TestNumber(keys[i]))->size());
                        }
                      }
                    }));
  }
  void Delete(std::uint64_t number, MonoTime end) {
    // What was said of it before counts no more, whatever becomes of this.
    ++versions_[number];
    kept_[number] = false;
    tier_->Delete(TestKey(number), Ends<absl::Status>(end, [](const absl::Status&) {}));
  }

  void Recovers() {
    const auto frame = FrameOf(1);
    absl::Status status = absl::UnknownError("no answer");
    tier_->Put(TestKey(1), {.bytes = *frame, .owner = frame},
               [&](const absl::Status& put) { status = put; });
    loop_.Advance(seconds(1));
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(tier_->stats().connected);
  }

  std::mt19937_64 random_;
  VirtualLoop loop_;
  FakeRedisLink::Values values_;
  FakeRedisLink* link_ = nullptr;
  std::unique_ptr<RemoteTier> tier_;
  bool inside_ = false;
  std::uint64_t started_ = 0, ended_ = 0;
  std::map<std::uint64_t, int> versions_;  // Deletions asked for.
  std::map<std::uint64_t, bool> kept_;     // A put said OK, and nobody deleted it since.
};

TEST(RemoteTierModelTest, EveryCallEndsAndNothingWrongComesBack) {
  for (std::uint64_t seed = 1; seed <= 200 && !HasFailure(); ++seed) {
    const RunningSeed running(seed);
    Workload(seed).Run();
  }
}

}  // namespace
}  // namespace penstock::kvstore
