// SPDX-License-Identifier: Apache-2.0
// Two stages in one process: one says where its rows lie and waits; the other copies them. Their
// streams wait for one another; the threads only meet.
#include <condition_variable>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "transfer/pipe.h"

namespace penstock::transfer {
namespace {

class LocalPipe final : public Pipe {
 public:
  LocalPipe(std::int32_t stage, Duration patience) : stage_(stage), patience_(patience) {}

  absl::Status Send(Stream& stream, const std::byte* rows, std::size_t bytes) override {
    std::unique_lock lock(mutex_);
    RETURN_IF_ERROR(failed_);
    CHECK(written_ == nullptr && copied_ == nullptr);
    written_ = stream.Record();
    rows_ = rows;
    bytes_ = bytes;
    changed_.notify_all();
    RETURN_IF_ERROR(WaitFor(lock, copied_, "took nothing from", stage_ + 1, stage_));
    stream.WaitFor(*copied_);
    copied_.reset();
    return absl::OkStatus();
  }

  absl::Status Receive(Stream& stream, std::byte* rows, std::size_t bytes) override {
    std::unique_lock lock(mutex_);
    RETURN_IF_ERROR(WaitFor(lock, written_, "sent nothing to", stage_, stage_ + 1));
    CHECK_EQ(bytes, bytes_);
    stream.WaitFor(*written_);
    stream.Copy(rows, rows_, bytes);
    written_.reset();
    copied_ = stream.Record();
    changed_.notify_all();
    return absl::OkStatus();
  }

 private:
  // For an event of the other stage, which makes none where it failed.
  absl::Status WaitFor(std::unique_lock<std::mutex>& lock, const std::unique_ptr<Event>& event,
                       const char* did, std::int32_t who, std::int32_t whom) {
    changed_.wait_for(lock, patience_, [&] { return event != nullptr || !failed_.ok(); });
    if (event == nullptr && failed_.ok()) {
      failed_ = absl::DeadlineExceededError(absl::StrCat("stage ", who, " ", did, " stage ", whom,
                                                         " for ", ToMillis(patience_), " ms"));
      changed_.notify_all();
    }
    return failed_;
  }

  const std::int32_t stage_;
  const Duration patience_;
  // Not Abseil's, into which the thread sanitizer cannot see. Guards all below.
  std::mutex mutex_;
  std::condition_variable changed_;
  // At most one is there: what the receiver's stream waits for, then the sender's.
  std::unique_ptr<Event> written_;
  std::unique_ptr<Event> copied_;
  const std::byte* rows_ = nullptr;
  std::size_t bytes_ = 0;
  absl::Status failed_;
};

}  // namespace

std::unique_ptr<Pipe> MakeLocalPipe(std::int32_t stage, Duration patience) {
  return std::make_unique<LocalPipe>(stage, patience);
}

}  // namespace penstock::transfer
