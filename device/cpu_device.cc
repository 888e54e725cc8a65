// SPDX-License-Identifier: Apache-2.0
#include "device/cpu_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"
#include "device/cpu_info.h"

namespace penstock {
namespace {

std::size_t MachineBytes() {
  return static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

class CpuMemory final : public DeviceMemory {
 public:
  CpuMemory(std::byte* data, std::size_t size) : data_(data), size_(size) {}
  ~CpuMemory() override { ::munmap(data_, size_); }
  CpuMemory(const CpuMemory&) = delete;
  CpuMemory& operator=(const CpuMemory&) = delete;

  std::byte* data() override { return data_; }
  std::size_t size_bytes() const override { return size_; }
  bool host_visible() const override { return true; }
  void Decommit(std::size_t offset, std::size_t bytes) override {
    CHECK_LE(offset, size_);
    CHECK_LE(bytes, size_ - offset);
    const std::size_t first = (offset + 4095) / 4096 * 4096;
    const std::size_t end = (offset + bytes) / 4096 * 4096;
    // Locked pages (mlockall) stay: giving memory back is an optimization.
    if (first < end) (void)::madvise(data_ + first, end - first, MADV_DONTNEED);
  }

 private:
  std::byte* const data_;
  const std::size_t size_;
};

class CpuEvent final : public Event {
 public:
  bool Done() const override { return true; }
};

class CpuStream final : public Stream {
 public:
  std::unique_ptr<Event> Record() override { return std::make_unique<CpuEvent>(); }
  void WaitFor(const Event&) override {}
  absl::Status Synchronize() override { return absl::OkStatus(); }
  void Copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);  // Of no bytes, either may be null.
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<CpuDevice>> CpuDevice::Make(const ThreadPool::Options& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<ThreadPool> threads, ThreadPool::Make(options));
  return std::unique_ptr<CpuDevice>(new CpuDevice(std::move(threads)));
}

std::string CpuDevice::Describe() const {
  return absl::StrFormat("cpu: %d thread%s, %s, %.1f GiB", threads_->threads(),
                         threads_->threads() == 1 ? "" : "s", penstock::Describe(ThisCpu()),
                         static_cast<double>(MachineBytes()) / (1u << 30));
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> CpuDevice::Allocate(std::size_t bytes) {
  CHECK_GT(bytes, 0u);
  if (bytes > MachineBytes()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes: the machine has ", MachineBytes()));
  }
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", bytes, " bytes: ", std::strerror(errno)));
  }
  // Fewer TLB misses while streaming weights and pages. Advice only.
  (void)::madvise(data, bytes, MADV_HUGEPAGE);
  return std::make_unique<CpuMemory>(static_cast<std::byte*>(data), bytes);
}

std::unique_ptr<Stream> CpuDevice::NewStream() { return std::make_unique<CpuStream>(); }

void CpuDevice::ForEachOnHost(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) {
  threads_->ForEach(items, [&](int, std::int64_t i) { work(i); });
}

}  // namespace penstock
