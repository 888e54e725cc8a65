// SPDX-License-Identifier: Apache-2.0
// The seam between Penstock and what computes: memory, streams, events and copies. Kernels hang on
// it through kernels/ops.h. Nothing outside device/ and kernels/ asks which device it has.
//
// A device outlives its memory, streams and events. Work on one stream runs in the order it was put
// there; the CPU runs it before the call returns, a GPU some time later. So whoever reads results
// on the host, or frees memory that a stream uses, first calls Synchronize().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace penstock {

// A piece of device memory, freed with the object. `data` is a device address: the host may touch
// it only where host_visible() says so.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual std::byte* data() = 0;
  virtual std::size_t size_bytes() const = 0;
  virtual bool host_visible() const = 0;
  // Gives the physical memory of whole 4 KiB pages inside [offset, offset + bytes) back; the
  // addresses stay valid and read as undefined bytes. A device that cannot do it keeps the memory.
  virtual void Decommit(std::size_t offset, std::size_t bytes) = 0;
  // Of memory made for peers: a descriptor that other processes of this host can map read-only, and
  // only so; it never shrinks or grows. Owned by the memory. -1 where there is none.
  virtual int shared_fd() const { return -1; }
};

// Who may read a piece of memory without asking this process.
enum class Sharing : std::uint8_t {
  kNone,
  kPeers,  // Processes of this host that are given its shared_fd(), where the device can do that.
};

class Stream;

// A mark in a stream. Record() it, then others wait for it.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool Done() const = 0;
};

// One thread at a time.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual std::unique_ptr<Event> Record() = 0;
  virtual void WaitFor(const Event& event) = 0;
  // Blocks the caller until all work is done. INTERNAL when the device failed: its memory is then
  // undefined.
  virtual absl::Status Synchronize() = 0;
  // Either side may be memory of the host, too.
  virtual void Copy(std::byte* to, const std::byte* from, std::size_t bytes) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  // "cpu", "cuda", "paced": for people, never for decisions.
  virtual std::string_view kind() const = 0;
  // One line: "cpu: 2 threads, avx512-vnni, 24.0 GiB".
  virtual std::string Describe() const = 0;
  // Zeroed, aligned to 4 KiB; on the CPU committed when first touched, on a GPU at once.
  // RESOURCE_EXHAUSTED with both numbers when the device has less than that (the CPU: in all).
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(
      std::size_t bytes, Sharing sharing = Sharing::kNone) = 0;
  // Memory of the host, zeroed, that streams of this device copy from and to without stopping: for
  // staging and results, in small amounts. RESOURCE_EXHAUSTED when there is none.
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateHost(std::size_t bytes) = 0;
  virtual std::unique_ptr<Stream> NewStream() = 0;
  // Calls work(i) once for every i in [0, items) on host threads (the CPU: those of its kernels)
  // and returns when all have returned. Not while a stream has work; calls must not nest.
  virtual void ForEachOnHost(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) = 0;
};

}  // namespace penstock
