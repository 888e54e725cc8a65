// SPDX-License-Identifier: Apache-2.0
#include "device/cpu_device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "device/cpu_info.h"

namespace penstock {
namespace {

std::size_t MachineBytes() {
  return static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

struct Pages {
  std::size_t offset;
  std::size_t bytes;
};

// Those that lie whole inside [offset, offset + bytes) of a piece of `size`.
Pages WholePages(std::size_t offset, std::size_t bytes, std::size_t size) {
  CHECK_LE(offset, size);
  CHECK_LE(bytes, size - offset);
  const std::size_t first = (offset + 4095) / 4096 * 4096;
  const std::size_t end = (offset + bytes) / 4096 * 4096;
  return {first, first < end ? end - first : 0};
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
    const Pages pages = WholePages(offset, bytes, size_);
    // Locked pages (mlockall) stay: giving memory back is an optimization.
    if (pages.bytes > 0) (void)::madvise(data_ + pages.offset, pages.bytes, MADV_DONTNEED);
  }

 private:
  std::byte* const data_;
  const std::size_t size_;
};

// What peers of this host can map.
class SharedCpuMemory final : public DeviceMemory {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Make(std::size_t bytes) {
    std::unique_ptr<SharedCpuMemory> memory(new SharedCpuMemory);
    RETURN_IF_ERROR(memory->Init(bytes));
    return memory;
  }
  ~SharedCpuMemory() override {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  std::byte* data() override { return data_; }
  std::size_t size_bytes() const override { return size_; }
  bool host_visible() const override { return true; }
  void Decommit(std::size_t offset, std::size_t bytes) override {
    const Pages pages = WholePages(offset, bytes, size_);
    if (pages.bytes == 0) return;
    (void)::fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(pages.offset), static_cast<off_t>(pages.bytes));
  }
  int shared_fd() const override { return readable_.get(); }

 private:
  SharedCpuMemory() = default;

  absl::Status Init(std::size_t bytes) {
    size_ = bytes;
    const auto refused = [&](const char* what) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot share ", bytes, " bytes: ", what, ": ", std::strerror(errno)));
    };
    file_.Reset(::memfd_create("penstock", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!file_) return refused("memfd_create");
    if (::ftruncate(file_.get(), static_cast<off_t>(bytes)) != 0) return refused("ftruncate");
    constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (::fcntl(file_.get(), F_ADD_SEALS, kSeals) != 0) return refused("F_ADD_SEALS");
    if (::fchmod(file_.get(), S_IRUSR) != 0) return refused("fchmod");
    const std::string path = absl::StrCat("/proc/self/fd/", file_.get());
    readable_.Reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!readable_) return refused("open read-only");
    void* const data =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.get(), 0);
    if (data == MAP_FAILED) return refused("mmap");
    data_ = static_cast<std::byte*>(data);
    (void)::madvise(data_, bytes, MADV_HUGEPAGE);  // As for memory that is not shared.
    return absl::OkStatus();
  }

  UniqueFd file_;      // For this process: it writes, and gives memory back.
  UniqueFd readable_;  // For peers.
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
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

absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateHostMemory(std::size_t bytes,
                                                                 Sharing sharing) {
  CHECK_GT(bytes, 0u);
  if (bytes > MachineBytes()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes: the machine has ", MachineBytes()));
  }
  if (sharing == Sharing::kPeers) return SharedCpuMemory::Make(bytes);
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
