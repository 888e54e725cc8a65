// SPDX-License-Identifier: Apache-2.0
// Between the gateway's loop, which tells, and the thread that writes to a client: the events of
// one answer's parts, bounded. A client that reads too slowly makes OnEvent return false, which
// ends its request.
//
// Any thread.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "base/time.h"
#include "gateway/events.h"

namespace penstock::gateway {

class EventQueue : public std::enable_shared_from_this<EventQueue> {
 public:
  struct Limits {
    std::size_t events_max = 4096;
    std::size_t bytes_max = std::size_t{1} << 20;  // One event may be as long as it is.
  };
  struct End {
    absl::Status status;
    Duration retry_after = {};
  };
  struct Item {
    std::size_t part = 0;
    Event event = {};
    std::optional<End> end = {};  // Then there is no event.
  };

  // `wake` is called from other threads, under the queue's lock, when there is something to take
  // and was nothing; it must not block, nor call the queue. Made by std::make_shared.
  EventQueue(Limits limits, std::function<void()> wake);

  // What a part of the answer is submitted with; keeps the queue.
  std::shared_ptr<Sink> MakeSink(std::size_t part);
  // All there is, oldest first.
  std::vector<Item> Take();
  // Nobody takes any more: `wake` is not called from here on, and what comes is dropped.
  void Detach();

 private:
  class PartSink;

  bool Push(std::size_t part, Event event);
  void PushEnd(std::size_t part, End end);

  const Limits limits_;
  // Guards the rest. Not Abseil's, into which the thread sanitizer cannot see.
  std::mutex mutex_;
  std::function<void()> wake_;  // Empty: detached.
  std::vector<Item> items_;
  std::size_t bytes_ = 0;
};

}  // namespace penstock::gateway
