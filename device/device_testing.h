// SPDX-License-Identifier: Apache-2.0
// For tests: a device whose memory is its alone and whose work waits, on the CPU. A stream does
// what it was given when somebody synchronizes it, or synchronizes a stream that waits for it; so a
// copy that is not waited for, or that waits for too little, is seen.
//
// Any thread.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "device/cpu_device.h"

namespace penstock {

class FarDevice final : public Device {
 public:
  FarDevice() : cpu_(CpuDevice::Make({.threads = 1, .cpus = {}}).value()) {}

  std::string_view kind() const override { return "far"; }
  std::string Describe() const override { return "far"; }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(std::size_t bytes,
                                                         Sharing = Sharing::kNone) override {
    absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = cpu_->Allocate(bytes);
    if (!memory.ok()) return memory.status();
    return std::make_unique<FarMemory>(*std::move(memory));
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateHost(std::size_t bytes) override {
    return cpu_->Allocate(bytes);
  }
  std::unique_ptr<Stream> NewStream() override { return std::make_unique<FarStream>(mutex_); }
  void ForEachOnHost(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override {
    cpu_->ForEachOnHost(items, work);
  }

 private:
  class FarMemory final : public DeviceMemory {
   public:
    explicit FarMemory(std::unique_ptr<DeviceMemory> memory) : memory_(std::move(memory)) {}
    std::byte* data() override { return memory_->data(); }
    std::size_t size_bytes() const override { return memory_->size_bytes(); }
    bool host_visible() const override { return false; }
    void Decommit(std::size_t, std::size_t) override {}

   private:
    const std::unique_ptr<DeviceMemory> memory_;
  };
  struct Queue {
    std::vector<std::function<void()>> work;
    std::size_t done = 0;
    void RunTo(std::size_t end) {
      // What it holds goes: streams that have waited for one another hold one another's queues.
      while (done < end) std::exchange(work[done++], nullptr)();
    }
  };
  struct FarEvent final : Event {
    std::shared_ptr<Queue> queue;
    std::size_t end = 0;
    bool Done() const override { return queue->done >= end; }
  };
  class FarStream final : public Stream {
   public:
    explicit FarStream(std::mutex& mutex) : mutex_(mutex) {}
    std::unique_ptr<Event> Record() override {
      const std::lock_guard lock(mutex_);
      auto event = std::make_unique<FarEvent>();
      event->queue = queue_;
      event->end = queue_->work.size();
      return event;
    }
    void WaitFor(const Event& event) override {
      const auto& far = static_cast<const FarEvent&>(event);
      Add([queue = far.queue, end = far.end] { queue->RunTo(end); });
    }
    absl::Status Synchronize() override {
      const std::lock_guard lock(mutex_);
      queue_->RunTo(queue_->work.size());
      return absl::OkStatus();
    }
    void Copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
      if (bytes > 0) Add([to, from, bytes] { std::memcpy(to, from, bytes); });
    }

   private:
    void Add(std::function<void()> work) {
      const std::lock_guard lock(mutex_);
      queue_->work.push_back(std::move(work));
    }
    std::mutex& mutex_;
    const std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
  };

  const std::unique_ptr<CpuDevice> cpu_;
  std::mutex mutex_;  // Guards all queues.
};

}  // namespace penstock
