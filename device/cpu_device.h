// SPDX-License-Identifier: Apache-2.0
// The CPU as a device: memory is anonymous mappings, streams run their work at once, copies are
// memcpy.
//
// Memory for peers is a memfd whose size is sealed. Peers get a second description of it, opened
// read-only: sealing it against writing (F_SEAL_FUTURE_WRITE) would also forbid Decommit to punch
// holes. The file's mode keeps peers from opening it again for writing by accident; a process of
// the same user that means harm could debug us as well.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "device/device.h"
#include "device/thread_pool.h"

namespace penstock {

// What CpuDevice::Allocate gives, for who computes elsewhere. RESOURCE_EXHAUSTED: more than the
// machine has (both numbers), or the system refuses the mapping or the memfd.
absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateHostMemory(std::size_t bytes,
                                                                 Sharing sharing = Sharing::kNone);

// Owns the threads that kernels run on. Streams may be used from any one thread at a time, all
// streams together: they share the pool.
class CpuDevice final : public Device {
 public:
  // INVALID_ARGUMENT as ThreadPool::Make.
  static absl::StatusOr<std::unique_ptr<CpuDevice>> Make(const ThreadPool::Options& options);

  std::string_view kind() const override { return "cpu"; }
  std::string Describe() const override;
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(
      std::size_t bytes, Sharing sharing = Sharing::kNone) override {
    return AllocateHostMemory(bytes, sharing);
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateHost(std::size_t bytes) override {
    return Allocate(bytes);
  }
  std::unique_ptr<Stream> NewStream() override;
  void ForEachOnHost(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override;

  ThreadPool& threads() { return *threads_; }

 private:
  explicit CpuDevice(std::unique_ptr<ThreadPool> threads) : threads_(std::move(threads)) {}

  const std::unique_ptr<ThreadPool> threads_;
};

}  // namespace penstock
