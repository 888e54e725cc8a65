// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_driver.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace penstock::cli {

BenchDriver::BenchDriver(Loop& loop, BenchTarget& target, std::vector<BenchRequest> requests,
                         Options options, Progress progress)
    : loop_(loop),
      target_(target),
      requests_(std::move(requests)),
      options_(options),
      progress_(std::move(progress)) {
  CHECK(options_.speedup > 0);
}

BenchDriver::~BenchDriver() {
  loop_.CancelTimer(send_timer_);
  loop_.CancelTimer(beat_timer_);
}

void BenchDriver::Start(std::function<void(Result)> done) {
  done_ = std::move(done);
  begin_ = told_ = loop_.Now();
  records_.reserve(requests_.size());
  beat_timer_ = loop_.At(begin_ + options_.beat, [this] { Beat(begin_ + options_.beat); });
  if (options_.concurrency == 0) return SendDue();
  for (std::int32_t i = 0; i < options_.concurrency; ++i) SendNext();
  EndIfOver();
}

void BenchDriver::Stop() {
  stopped_ = true;
  loop_.CancelTimer(send_timer_);
  target_.CancelAll();
  EndIfOver();
}

Duration BenchDriver::ArrivalOf(std::size_t index) const {
  const auto arrival = static_cast<double>(requests_[index].arrival.count());
  return Duration(static_cast<Duration::rep>(arrival / options_.speedup));
}

void BenchDriver::SendDue() {
  while (!All() && begin_ + ArrivalOf(next_) <= loop_.Now()) SendNext();
  if (!All()) send_timer_ = loop_.At(begin_ + ArrivalOf(next_), [this] { SendDue(); });
  EndIfOver();
}

void BenchDriver::SendNext() {
  if (All()) return;
  const Duration since = loop_.Now() - begin_;
  const Duration arrival = options_.concurrency == 0 ? ArrivalOf(next_) : since;
  if (std::max(arrival, since) > options_.send_for) {
    stopped_ = true;
    return;
  }
  const std::size_t index = next_++;
  records_.push_back({.arrival = arrival});
  target_.Send(requests_[index], begin_,
               [this, index](BenchRecord record) { OnDone(index, std::move(record)); });
}

void BenchDriver::OnDone(std::size_t index, BenchRecord record) {
  record.arrival = records_[index].arrival;
  records_[index] = std::move(record);
  ++ended_;
  if (options_.concurrency > 0) SendNext();
  EndIfOver();
}

void BenchDriver::Beat(MonoTime due) {
  const MonoTime now = loop_.Now();
  lags_ms_.push_back(ToMillis(now - due));
  if (progress_ && now - told_ >= std::chrono::seconds(1)) {
    told_ = now;
    progress_(records_.size(), ended_, requests_.size());
  }
  const MonoTime next = now + options_.beat;
  beat_timer_ = loop_.At(next, [this, next] { Beat(next); });
}

void BenchDriver::EndIfOver() {
  if (!All() || ended_ < records_.size() || done_ == nullptr) return;
  loop_.CancelTimer(beat_timer_);
  // Not from inside: the caller may destroy the driver.
  loop_.Post([done = std::exchange(done_, nullptr),
              result = std::make_shared<Result>(
                  Result{std::move(records_), MakePercentiles(std::move(lags_ms_))})] {
    done(std::move(*result));
  });
}

}  // namespace penstock::cli
