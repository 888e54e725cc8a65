// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_state.h"

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "base/virtual_loop.h"
#include "gtest/gtest.h"
#include "transfer/link_turns.h"

namespace penstock::decode {
namespace {

// Only what says "another worker may do it right" may leave: a gateway takes INVALID_ARGUMENT for
// the request's own fault, and FAILED_PRECONDITION for a reservation that is gone.
TEST(ToOursTest, APeersFaultIsNotTheRequests) {
  using Code = absl::StatusCode;
  const Code kept[] = {Code::kUnavailable, Code::kDataLoss, Code::kDeadlineExceeded,
                       Code::kCancelled};
  for (const Code code : kept) {
    const absl::Status status(code, "why");
    EXPECT_EQ(ToOurs(status), status);
  }
  const Code others[] = {Code::kUnknown,
                         Code::kInvalidArgument,
                         Code::kNotFound,
                         Code::kAlreadyExists,
                         Code::kPermissionDenied,
                         Code::kResourceExhausted,
                         Code::kFailedPrecondition,
                         Code::kAborted,
                         Code::kOutOfRange,
                         Code::kUnimplemented,
                         Code::kInternal,
                         Code::kUnauthenticated};
  for (const Code code : others) {
    EXPECT_EQ(
        ToOurs(absl::Status(code, "the last block must be from 0 to 3, got 7")),
        absl::UnavailableError("the handoff failed: the last block must be from 0 to 3, got 7"))
        << absl::StatusCodeToString(code);
  }
  EXPECT_EQ(std::size(kept) + std::size(others), 16u);  // All but OK.
}

struct FakeMapped final : MappedBlock {
  std::span<const std::byte> memory() const override { return {}; }
  std::size_t offset() const override { return 0; }
  bool Changed() const override { return false; }
};

// Imports when it is told to, and keeps what it is to run.
class FakeEngine final : public DecodeEngine {
 public:
  void Reserve(JobId, std::int32_t, std::vector<Chain>, LossClass, std::uint32_t,
               std::function<void(absl::StatusOr<Room>)>) override {
    ADD_FAILURE() << "prompts are local here";
  }
  void EndReservation(JobId, std::int32_t, const Lineage&) override {}
  void Run(JobId, std::unique_ptr<Work> work, LossClass, const Lineage&) override {
    running = std::move(work);
  }
  void Cancel(JobId) override {}
  void Import(JobId, std::vector<Chain>, std::vector<kvstore::Fetcher::Source>, LossClass,
              std::uint32_t, ImportDone done) override {
    import = std::move(done);
  }
  void Fetch(JobId, std::vector<transfer::HandoffReceiver::Target::Group>, std::vector<Chain>,
             std::int32_t, std::vector<kvstore::Fetcher::Source>,
             std::function<void(const kvstore::Fetcher::Outcome&)>) override {
    ADD_FAILURE() << "prompts are local here";
  }
  void CancelImport(JobId) override {}

  ImportDone import;
  std::unique_ptr<Work> running;
};

// What an earlier import left mapped would be gone before the request looks for it.
TEST(DecodeStateTest, AllThatIsMappedIsHeldUntilItRuns) {
  VirtualLoop loop;
  FakeEngine engine;
  transfer::LinkTurns turns(loop, nullptr);
  transfer::HandoffReceiver receiver(loop, turns, {}, {}, nullptr);
  DecodeState state(loop, engine, receiver, {});
  const Attempt attempt = {"request", 1};
  state.Reserve(attempt,
                {.tokens = 64,
                 .chains = {},
                 .local = true,
                 .sources = {{.end_block = 2}},
                 .deadline = loop.Now() + std::chrono::seconds(10)},
                [](const absl::StatusOr<DecodeState::Promise>& promise) {
                  EXPECT_TRUE(promise.ok()) << promise.status();
                });
  loop.Advance(std::chrono::seconds(1));
  ASSERT_NE(engine.import, nullptr);
  const auto before = std::make_shared<FakeMapped>(), now = std::make_shared<FakeMapped>();
  engine.import(
      {.fetched = {.end_block = 2, .mapped = {{.block = 1, .at = now}}}, .mapped = {before, now}});
  EXPECT_EQ(before.use_count(), 2);
  ASSERT_TRUE(state.Decode(attempt, std::make_unique<DecodeEngine::Work>(), {}).ok());
  ASSERT_NE(engine.running, nullptr);
  EXPECT_EQ(engine.running->mapped, (std::vector<std::shared_ptr<const MappedBlock>>{before, now}));
}

}  // namespace
}  // namespace penstock::decode
