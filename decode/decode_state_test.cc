// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_state.h"

#include <chrono>
#include <memory>
#include <optional>
#include <string>
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

// Imports when it is told to, and keeps what it is to run.
class FakeEngine final : public DecodeEngine {
 public:
  void Reserve(JobId, std::int32_t, std::vector<Chain>, LossClass, std::uint32_t,
               std::function<void(absl::StatusOr<Room>)>) override {
    ADD_FAILURE() << "prompts are local here";
  }
  void EndReservation(JobId, std::int32_t, const Lineage&) override {}
  void Run(JobId job, std::unique_ptr<Work>, LossClass, const Lineage&) override {
    notes += "run ";
    running = job;
  }
  void Cancel(JobId) override { notes += "cancel "; }
  void Import(JobId, std::vector<Chain>, std::vector<kvstore::Fetcher::Source>, LossClass,
              std::uint32_t, std::function<void()> ready,
              std::function<void(const kvstore::Fetcher::Outcome&)> done) override {
    notes += "import ";
    import_ready = std::move(ready);
    import_done = std::move(done);
  }
  void EndImport(JobId) override {
    notes += "end_import ";
    import_ready = nullptr;
    import_done = nullptr;
  }
  void Fetch(JobId, std::vector<transfer::HandoffReceiver::Target::Group>, std::vector<Chain>,
             std::int32_t, std::vector<kvstore::Fetcher::Source>,
             std::function<void(const kvstore::Fetcher::Outcome&)>) override {
    ADD_FAILURE() << "prompts are local here";
  }
  void CancelFetch(JobId) override { ADD_FAILURE() << "prompts are local here"; }
  void CameOnDevice(JobId, std::int32_t, std::int32_t) override {
    ADD_FAILURE() << "prompts are local here";
  }

  std::string notes;
  std::function<void()> import_ready;
  std::function<void(const kvstore::Fetcher::Outcome&)> import_done;
  JobId running{};
};

class LocalImportTest : public testing::Test {
 protected:
  void SetUp() override {
    state_.Reserve(kAttempt,
                   {.tokens = 64,
                    .chains = {},
                    .local = true,
                    .sources = {{.end_block = 2}},
                    .deadline = loop_.Now() + std::chrono::seconds(10)},
                   [](const absl::StatusOr<DecodeState::Promise>& promise) {
                     EXPECT_TRUE(promise.ok()) << promise.status();
                   });
    loop_.RunUntilIdle();
    EXPECT_EQ(Notes(), "import ");
  }
  void Decode() {
    ASSERT_TRUE(state_
                    .Decode(kAttempt, std::make_unique<DecodeEngine::Work>(),
                            {.on_tokens = nullptr,
                             .on_end = [this](const absl::Status& status,
                                              const auto&) { ended_ = status; }})
                    .ok());
  }
  std::string Notes() { return std::exchange(engine_.notes, {}); }

  const Attempt kAttempt = {"request", 1};
  VirtualLoop loop_;
  FakeEngine engine_;
  transfer::LinkTurns turns_{loop_, nullptr};
  transfer::HandoffReceiver receiver_{loop_, turns_, {}, {}, nullptr};
  SpanRing spans_{64};
  DecodeState state_{loop_, engine_, receiver_, {.spans = &spans_}};
  std::optional<absl::Status> ended_;
};

// The import goes on beside it, and is let go of at the end alone: until then the request may look
// for what is mapped.
TEST_F(LocalImportTest, ItRunsWhenTheEngineIsToBegin) {
  Decode();
  EXPECT_EQ(Notes(), "");
  engine_.import_ready();
  EXPECT_EQ(Notes(), "run ");
  const kvstore::Fetcher::Outcome came = {.end_block = 1};
  engine_.import_done(came);
  EXPECT_EQ(Notes(), "");
  state_.OnEnd(engine_.running, absl::OkStatus());
  EXPECT_EQ(Notes(), "end_import ");
  EXPECT_EQ(ended_, absl::OkStatus());
  EXPECT_FALSE(state_.Knows(kAttempt));
}

TEST_F(LocalImportTest, WorkMayComeLater) {
  engine_.import_done({});
  engine_.import_ready();
  EXPECT_EQ(Notes(), "");
  Decode();
  EXPECT_EQ(Notes(), "run ");
}

TEST_F(LocalImportTest, WhoGoesEndsTheImport) {
  state_.Release(kAttempt, absl::CancelledError("gone"));
  EXPECT_EQ(Notes(), "end_import ");
  EXPECT_EQ(state_.draining(), 0);
}

TEST_F(LocalImportTest, WhoGoesWhileItRunsEndsBoth) {
  Decode();
  engine_.import_ready();
  EXPECT_EQ(Notes(), "run ");
  state_.Release(kAttempt, absl::CancelledError("gone"));
  EXPECT_EQ(Notes(), "end_import cancel ");
}

TEST_F(LocalImportTest, TheDeadlineHoldsUntilItRuns) {
  Decode();
  loop_.Advance(std::chrono::seconds(11));
  EXPECT_EQ(Notes(), "end_import ");
  ASSERT_TRUE(ended_.has_value());
  EXPECT_TRUE(absl::IsDeadlineExceeded(*ended_)) << *ended_;
}

}  // namespace
}  // namespace penstock::decode
