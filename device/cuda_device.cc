// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_device.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/check_ok.h"
#include "base/status.h"

namespace penstock {
namespace {

constexpr std::size_t kAlignment = 4096;  // Of Device::Allocate; cudaMalloc promises 256.

// Calls that make something or start work go to the thread's GPU, which is 0 at first.
int SetGpu(const CudaPlugin& plugin, int gpu) {
  thread_local int used = 0;
  if (used == gpu) return kCudaSuccess;
  const int error = plugin.runtime.set_device(gpu);
  if (error == kCudaSuccess) used = gpu;
  return error;
}

// For a device that was made: without its GPU, all that follows would be done by another one.
// `device`, where there is one, hears of it first.
void Use(const CudaPlugin& plugin, int gpu, const CudaDevice* device) {
  const int error = SetGpu(plugin, gpu);
  if (error != kCudaSuccess && device != nullptr) device->Lost("turning to it", error);
  CHECK_EQ(error, kCudaSuccess);
}

class CudaMemory final : public DeviceMemory {
 public:
  CudaMemory(const CudaPlugin& plugin, void* whole, std::size_t bytes)
      : plugin_(plugin), whole_(whole), bytes_(bytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(whole);
    data_ = static_cast<std::byte*>(whole) + (kAlignment - address % kAlignment) % kAlignment;
  }
  // A GPU that failed gives nothing back, and needs not: the process has to end.
  ~CudaMemory() override { (void)plugin_.runtime.free(whole_); }
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  std::byte* data() override { return data_; }
  std::size_t size_bytes() const override { return bytes_; }
  bool host_visible() const override { return false; }
  void Decommit(std::size_t, std::size_t) override {}

 private:
  const CudaPlugin& plugin_;
  void* const whole_;
  std::byte* data_ = nullptr;
  const std::size_t bytes_;
};

class PinnedMemory final : public DeviceMemory {
 public:
  PinnedMemory(const CudaPlugin& plugin, void* data, std::size_t bytes)
      : plugin_(plugin), data_(static_cast<std::byte*>(data)), bytes_(bytes) {}
  ~PinnedMemory() override { (void)plugin_.runtime.free_host(data_); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  std::byte* data() override { return data_; }
  std::size_t size_bytes() const override { return bytes_; }
  bool host_visible() const override { return true; }
  void Decommit(std::size_t, std::size_t) override {}

 private:
  const CudaPlugin& plugin_;
  std::byte* const data_;
  const std::size_t bytes_;
};

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(const CudaPlugin& plugin) : plugin_(plugin) {}
  ~CudaEvent() override {
    if (handle_ != nullptr) (void)plugin_.runtime.event_destroy(handle_);
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  // A failure counts as done: whoever synchronizes hears of it.
  bool Done() const override {
    return handle_ == nullptr || plugin_.runtime.event_query(handle_) != kCudaNotReady;
  }

  CudaEventHandle handle_ = nullptr;

 private:
  const CudaPlugin& plugin_;
};

}  // namespace

CudaStream::CudaStream(const CudaDevice& device)
    : CudaStream(device.plugin(), device.gpu(), &device) {}

CudaStream::CudaStream(const CudaPlugin& plugin, int gpu, const CudaDevice* device)
    : plugin_(plugin), gpu_(gpu), device_(device) {
  UseGpu();
  Expect(plugin.runtime.stream_create(&handle_), "making a stream");
}

CudaStream::~CudaStream() {
  if (handle_ == nullptr) return;
  (void)plugin_.runtime.stream_synchronize(handle_);
  (void)plugin_.runtime.stream_destroy(handle_);
}

void CudaStream::UseGpu() const { Use(plugin_, gpu_, device_); }

CudaStreamHandle CudaStream::handle() const {
  UseGpu();
  return handle_;
}

void CudaStream::Expect(int error, std::string_view what) {
  if (error == kCudaSuccess || !failed_.ok()) return;
  if (capturing_) {
    if (capture_error_ == kCudaSuccess) capture_error_ = error;
    return;
  }
  if (device_ != nullptr) device_->Lost(what, error);
  failed_ = absl::InternalError(
      absl::StrCat("cuda: ", ToAbsl(what), ": ", CudaErrorText(plugin_, error)));
}

std::unique_ptr<Event> CudaStream::Record() {
  auto event = std::make_unique<CudaEvent>(plugin_);
  UseGpu();
  Expect(plugin_.runtime.event_create(&event->handle_), "making an event");
  if (event->handle_ != nullptr) {
    Expect(plugin_.runtime.event_record(event->handle_, handle()), "recording an event");
  }
  return event;
}

void CudaStream::WaitFor(const Event& event) {
  const CudaEventHandle handle = static_cast<const CudaEvent&>(event).handle_;
  if (handle == nullptr) return;
  Expect(plugin_.runtime.stream_wait_event(this->handle(), handle), "waiting for an event");
}

absl::Status CudaStream::Synchronize() {
  if (failed_.ok()) Expect(plugin_.runtime.stream_synchronize(handle()), "computing");
  return failed_;
}

void CudaStream::Copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (bytes > 0) Expect(plugin_.runtime.memcpy_async(to, from, bytes, handle()), "copying");
}

void CudaStream::Zero(std::byte* data, std::size_t bytes) {
  if (bytes > 0) Expect(plugin_.runtime.memset_async(data, 0, bytes, handle()), "zeroing");
}

absl::StatusOr<std::unique_ptr<CudaGraph>> CudaStream::Capture(absl::FunctionRef<void()> work) {
  CudaGraphHandle handle = nullptr;
  capture_error_ = plugin_.runtime.stream_begin_capture(this->handle());
  if (capture_error_ == kCudaSuccess) {
    capturing_ = true;
    work();
    Expect(plugin_.runtime.stream_end_capture(this->handle(), &handle), "capturing");
    capturing_ = false;
  }
  auto graph = handle == nullptr ? nullptr : std::make_unique<CudaGraph>(plugin_, handle);
  if (capture_error_ == kCudaSuccess) return graph;
  return absl::UnavailableError(
      absl::StrCat("no CUDA graph: ", CudaErrorText(plugin_, capture_error_)));
}

void CudaStream::Launch(const CudaGraph& graph) {
  Expect(plugin_.runtime.graph_launch(graph.handle(), handle()), "launching a graph");
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Make(const CudaPlugin& plugin,
                                                             const ThreadPool::Options& options,
                                                             int gpu, OnGpuFailed on_failed) {
  ASSIGN_OR_RETURN(const CudaSystem system, FindGpus(plugin));
  RETURN_IF_ERROR(CheckGpu(system, gpu));
  if (const int error = SetGpu(plugin, gpu); error != kCudaSuccess) {
    return absl::UnavailableError(
        absl::StrCat("GPU ", gpu, " cannot be used: ", CudaErrorText(plugin, error)));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ThreadPool> threads, ThreadPool::Make(options));
  auto device = std::unique_ptr<CudaDevice>(new CudaDevice(
      plugin, gpu, system.gpus[static_cast<std::size_t>(gpu)], on_failed, std::move(threads)));
  // The first call that needs the GPU itself, and so finds out whether it works.
  const absl::StatusOr<std::size_t> free_bytes = device->FreeBytes();
  if (!free_bytes.ok()) return absl::UnavailableError(free_bytes.status().message());
  return device;
}

std::string CudaDevice::Describe() const {
  return absl::StrCat("cuda: ", penstock::Describe(about_), ", ", threads_->threads(),
                      threads_->threads() == 1 ? " host thread" : " host threads");
}

absl::StatusOr<std::string> CudaDevice::BusId() const {
  char id[32] = {};
  const int error = plugin_.runtime.get_pci_bus_id(id, sizeof(id), gpu_);
  if (error == kCudaSuccess) return std::string(id);
  return absl::InternalError(
      absl::StrCat("cuda: asking where the GPU sits: ", CudaErrorText(plugin_, error)));
}

absl::StatusOr<std::size_t> CudaDevice::FreeBytes() const {
  std::size_t free_bytes = 0, total_bytes = 0;
  UseGpu();
  const int error = plugin_.runtime.mem_get_info(&free_bytes, &total_bytes);
  if (error == kCudaSuccess) return free_bytes;
  return absl::InternalError(
      absl::StrCat("cuda: asking for free memory: ", CudaErrorText(plugin_, error)));
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> CudaDevice::Allocate(std::size_t bytes, Sharing) {
  CHECK_GT(bytes, 0u);
  void* whole = nullptr;
  UseGpu();
  const int error = plugin_.runtime.malloc(&whole, bytes + kAlignment);
  if (error != kCudaSuccess && error != kCudaOutOfMemory) {
    Lost("allocating", error);
    return absl::InternalError(
        absl::StrCat("cuda: allocating ", bytes, " bytes: ", CudaErrorText(plugin_, error)));
  }
  if (error == kCudaOutOfMemory) {
    const absl::StatusOr<std::size_t> free_bytes = FreeBytes();
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes,
                                                     " bytes on the GPU: ", free_bytes.value_or(0),
                                                     " of ", about_.memory_bytes, " are free"));
  }
  auto memory = std::make_unique<CudaMemory>(plugin_, whole, bytes);
  CudaStream stream(*this);
  stream.Zero(memory->data(), bytes);
  RETURN_IF_ERROR(stream.Synchronize());
  return memory;
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> CudaDevice::AllocateHost(std::size_t bytes) {
  CHECK_GT(bytes, 0u);
  void* data = nullptr;
  UseGpu();
  if (const int error = plugin_.runtime.malloc_host(&data, bytes); error != kCudaSuccess) {
    if (error != kCudaOutOfMemory) {
      Lost("pinning memory", error);
      return absl::InternalError(
          absl::StrCat("cannot pin memory: ", CudaErrorText(plugin_, error)));
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot pin ", bytes, " bytes of host memory: ", CudaErrorText(plugin_, error)));
  }
  std::memset(data, 0, bytes);
  return std::make_unique<PinnedMemory>(plugin_, data, bytes);
}

std::unique_ptr<Stream> CudaDevice::NewStream() { return std::make_unique<CudaStream>(*this); }

void CudaDevice::UseGpu() const { Use(plugin_, gpu_, this); }

int CudaDevice::Ask() const {
  if (const int error = SetGpu(plugin_, gpu_); error != kCudaSuccess) return error;
  std::size_t free_bytes = 0, total_bytes = 0;
  return plugin_.runtime.mem_get_info(&free_bytes, &total_bytes);
}

void CudaDevice::Lost(std::string_view doing, int error) const {
  if (on_call_failed_ && error != kCudaOutOfMemory) return on_call_failed_(doing, error);
  if (on_failed_ == nullptr) return;
  const std::string text = CudaErrorText(plugin_, error);
  on_failed_(error == kCudaOutOfMemory
                 ? FullGpuText(named(), absl::StrCat(ToAbsl(doing), ": ", text))
                 : LostGpuText(named(), doing, error, text));
}

void CudaDevice::MustHave(const absl::Status& memory) const {
  if (!memory.ok() && on_failed_ != nullptr) {
    on_failed_(FullGpuText(named(), ToStd(memory.message())));
  }
  CHECK_OK(memory);
}

void CudaDevice::ForEachOnHost(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) {
  threads_->ForEach(items, [&](int, std::int64_t i) { work(i); });
}

}  // namespace penstock
