// SPDX-License-Identifier: Apache-2.0
// When a benchmark's requests go out: each at its time (an open loop), or as soon as one of so many
// has ended (a closed loop). On its loop's thread; the loop's clock is the only one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/event_loop.h"
#include "base/time.h"
#include "cli/bench_stats.h"
#include "cli/bench_workload.h"

namespace penstock::cli {

// Where requests go.
class BenchTarget {
 public:
  virtual ~BenchTarget() = default;
  // `done` is called once, on the loop, not from inside: all but `arrival` is filled in, its times
  // being since `begin`.
  virtual void Send(const BenchRequest& request, MonoTime begin,
                    std::function<void(BenchRecord record)> done) = 0;
  // What runs ends soon, as cancelled.
  virtual void CancelAll() = 0;
};

class BenchDriver {
 public:
  struct Options {
    std::int32_t concurrency = 0;         // Of a closed loop; 0: each at its arrival.
    double speedup = 1;                   // Of arrivals.
    Duration send_for = Duration::max();  // Nothing is sent later.
    Duration beat = std::chrono::milliseconds(10);
  };
  struct Result {
    std::vector<BenchRecord> records;  // In the order of sending.
    Percentiles lag_ms;                // Of the loop: how late a timer rang, every `beat`.
  };

  // `loop` and `target` outlive the driver. `progress` may be null; called about every second.
  using Progress = std::function<void(std::size_t sent, std::size_t ended, std::size_t total)>;
  BenchDriver(Loop& loop, BenchTarget& target, std::vector<BenchRequest> requests, Options options,
              Progress progress);
  ~BenchDriver();

  // `done` is called once, when all that was sent has ended. Once.
  void Start(std::function<void(Result result)> done);
  // Nothing more is sent, and what runs is cancelled.
  void Stop();

 private:
  void SendDue();
  void SendNext();
  void OnDone(std::size_t index, BenchRecord record);
  void Beat(MonoTime due);
  void EndIfOver();
  bool All() const { return stopped_ || next_ == requests_.size(); }
  Duration ArrivalOf(std::size_t index) const;

  Loop& loop_;
  BenchTarget& target_;
  const std::vector<BenchRequest> requests_;
  const Options options_;
  const Progress progress_;
  std::function<void(Result)> done_;
  MonoTime begin_;
  MonoTime told_;
  std::size_t next_ = 0;
  std::size_t ended_ = 0;
  bool stopped_ = false;
  Loop::TimerId send_timer_{};
  Loop::TimerId beat_timer_{};
  std::vector<BenchRecord> records_;
  std::vector<double> lags_ms_;
};

}  // namespace penstock::cli
