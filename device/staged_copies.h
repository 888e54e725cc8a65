// SPDX-License-Identifier: Apache-2.0
// Copies between a device's memory and plain memory of the host, made beside what the device
// computes: by a thread and on streams of their own, through a few megabytes of pinned memory.
//
// Batches are copied one after another, in the order of Post, whichever way they go. What waits is
// a list of addresses: as many as the callers have bytes to copy.
//
// Any thread. A device that fails ends the process (CHECK): its memory is undefined, for all.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "device/device.h"

namespace penstock {

class StagedCopies {
 public:
  enum class Way : std::uint8_t { kToHost, kToDevice };
  struct Run {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    std::size_t bytes = 0;
  };
  using Done = std::function<void()>;
  // Puts work of the device's own into a stream.
  using Work = std::function<void(Stream& stream)>;

  // Pins two pieces of `piece_bytes` each. RESOURCE_EXHAUSTED when they cannot be had. `device`
  // outlives the result.
  static absl::StatusOr<std::unique_ptr<StagedCopies>> Make(Device& device,
                                                            std::size_t piece_bytes);
  // Ends after the batch at hand; those that wait are neither copied nor told.
  ~StagedCopies();

  // Copies `runs` once the device has come to `after` (null: at once), then calls `done`, where
  // there is one, on the thread of the copies. Both sides stay as they are until then. Gives the
  // number of the batch: 1, 2, ...
  std::uint64_t Post(Way way, std::vector<Run> runs, std::shared_ptr<const Event> after, Done done);
  // As Post to the device, and when the runs are there `work`, on the thread of the copies: to be
  // told of when that is done, too. Other batches do not come between.
  std::uint64_t Post(std::vector<Run> runs, Work work, Done done);
  // Whether that batch has been copied and told.
  bool Copied(std::uint64_t batch);
  // Until that batch, and all before, have been copied and told. Not from the copies' own thread.
  void Wait(std::uint64_t batch);

 private:
  struct Batch {
    Way way = Way::kToHost;
    std::vector<Run> runs;
    std::shared_ptr<const Event> after;
    Work work;
    Done done;
  };
  // A piece of pinned memory, and the copies between it and the device.
  struct Stage {
    std::unique_ptr<DeviceMemory> memory;
    std::unique_ptr<Stream> stream;  // After `memory`, of which it may still copy.
    std::vector<Run> landing;        // From `memory` to the host, once the stream is through.
    std::size_t used_bytes = 0;
  };
  StagedCopies() = default;

  std::uint64_t Add(Batch batch);
  void Loop();
  void Copy(const Batch& batch);
  void Add(const Batch& batch, const Run& run);
  void Finish(Stage& stage);

  Stage stages_[2];
  std::size_t now_ = 0;  // The stage that is being filled.
  // Not Abseil's, into which the thread sanitizer cannot see. Guards what follows.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> waiting_;
  std::uint64_t posted_ = 0;
  std::uint64_t told_ = 0;
  bool stop_ = false;
  std::jthread thread_;  // Last: it uses the rest.
};

}  // namespace penstock
