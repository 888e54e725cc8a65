// SPDX-License-Identifier: Apache-2.0
// A GPU as a device, through the tables of the CUDA plug-in (device/cuda_api.h): one of those that
// the process may see (CUDA_VISIBLE_DEVICES chooses), by its number among them.
//
// Errors: what a call asks for and cannot have comes back from that call. What fails on the GPU
// later, or while work is queued, is kept by the stream, which from then on gives it from every
// Synchronize(): the GPU's memory is undefined then, and the process has to start again. A device that
// was made with `on_failed` (device/gpu_failure.h) tells it of the first such failure, at once, of its
// own calls and of the streams that know it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "device/cuda_plugin.h"
#include "device/device.h"
#include "device/gpu_failure.h"
#include "device/thread_pool.h"

namespace penstock {

// What a stream took note of (CudaStream::Capture), to be done again and again. Goes before its
// plug-in, and not while it runs.
class CudaGraph {
 public:
  CudaGraph(const CudaPlugin& plugin, CudaGraphHandle handle) : plugin_(plugin), handle_(handle) {}
  ~CudaGraph() { (void)plugin_.runtime.graph_destroy(handle_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  CudaGraphHandle handle() const { return handle_; }

 private:
  const CudaPlugin& plugin_;
  const CudaGraphHandle handle_;
};

class CudaDevice;

class CudaStream final : public Stream {
 public:
  // One that cannot be made has failed from the start.
  CudaStream(const CudaPlugin& plugin, int gpu) : CudaStream(plugin, gpu, nullptr) {}
  // The same, of a device that outlives it and hears of what fails.
  explicit CudaStream(const CudaDevice& device);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  std::unique_ptr<Event> Record() override;
  void WaitFor(const Event& event) override;
  absl::Status Synchronize() override;
  const absl::Status& failed() const { return failed_; }  // What is known of it by now.
  // A host side in pageable memory makes the call wait for all that was queued before; memory of
  // AllocateHost does not, and must then stay as it is until the stream gets there.
  void Copy(std::byte* to, const std::byte* from, std::size_t bytes) override;
  void Zero(std::byte* data, std::size_t bytes);
  // A graph of what `work` puts here, none of which is done. `work` makes no other call of this
  // stream and allocates nothing on this thread. UNAVAILABLE with what CUDA said where it cannot be
  // had; the stream goes on.
  absl::StatusOr<std::unique_ptr<CudaGraph>> Capture(absl::FunctionRef<void()> work);
  void Launch(const CudaGraph& graph);
  bool capturing() const { return capturing_; }

  // To start work with, at once and on this thread: of its GPU.
  CudaStreamHandle handle() const;
  // Takes what a call that put work here gave; the first error is kept. `what`: "copy".
  void Expect(int error, std::string_view what);

 private:
  CudaStream(const CudaPlugin& plugin, int gpu, const CudaDevice* device);
  void UseGpu() const;

  const CudaPlugin& plugin_;
  const int gpu_;
  const CudaDevice* const device_;  // Null: nobody hears of failures.
  CudaStreamHandle handle_ = nullptr;
  absl::Status failed_;
  bool capturing_ = false;
  int capture_error_ = 0;  // The first, while capturing.
};

// Any thread; each stream by one at a time. Owns the host threads of ForEachOnHost.
class CudaDevice final : public Device {
 public:
  // As FindGpus, CheckGpu and ThreadPool::Make; RESOURCE_EXHAUSTED where the GPU has no room to
  // begin. `plugin` lives as long as the process.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Make(const CudaPlugin& plugin,
                                                          const ThreadPool::Options& threads,
                                                          int gpu = 0,
                                                          OnGpuFailed on_failed = nullptr);

  std::string_view kind() const override { return "cuda"; }
  std::string Describe() const override;
  // Committed at once; Sharing makes no difference: peers cannot map it.
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(std::size_t bytes,
                                                         Sharing sharing = Sharing::kNone) override;
  absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateHost(std::size_t bytes) override;
  std::unique_ptr<Stream> NewStream() override;
  void ForEachOnHost(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override;

  const CudaPlugin& plugin() const { return plugin_; }
  int gpu() const { return gpu_; }
  // Where the GPU sits in its machine, the same in every process: "0000:3b:00.0"; the parts that a
  // GPU is split into have one place. INTERNAL when the GPU does not answer.
  absl::StatusOr<std::string> BusId() const;
  ThreadPool& threads() { return *threads_; }
  // What Allocate can still have. INTERNAL when the GPU does not answer.
  absl::StatusOr<std::size_t> FreeBytes() const;

  const CudaGpu& about() const { return about_; }
  FailedGpu named() const { return {.number = gpu_, .name = about_.name, .bus_id = bus_id_}; }
  // Turns the calling thread to the GPU; one that cannot be turned to is lost.
  void UseGpu() const;
  // CUDA's error of a call that needs the GPU and changes nothing; 0: it is well. Tells nobody. The
  // call may hang where the driver does.
  int Ask() const;
  // From now on errors of CUDA's are told there, with what was being done, and not to `on_failed`;
  // want of memory still is. Empty: all to `on_failed` again. Only while no other thread uses the
  // device.
  using OnCallFailed = std::function<void(std::string_view doing, int error)>;
  void TellOfFailures(OnCallFailed on_call_failed) { on_call_failed_ = std::move(on_call_failed); }
  // For what a step that has begun cannot do without: an error of Allocate or AllocateHost is told
  // to `on_failed`, and CHECKed.
  void MustHave(const absl::Status& memory) const;
  // The GPU cannot be used any more: tells `on_failed`.
  void Lost(std::string_view doing, int error) const;

 private:
  CudaDevice(const CudaPlugin& plugin, int gpu, const CudaGpu& about, OnGpuFailed on_failed,
             std::unique_ptr<ThreadPool> threads)
      : plugin_(plugin),
        gpu_(gpu),
        about_(about),
        on_failed_(on_failed),
        bus_id_(BusId().value_or("")),
        threads_(std::move(threads)) {}

  const CudaPlugin& plugin_;
  const int gpu_;
  const CudaGpu about_;
  const OnGpuFailed on_failed_;
  OnCallFailed on_call_failed_;
  const std::string bus_id_;  // Asked for while the GPU still answers; empty: it did not.
  const std::unique_ptr<ThreadPool> threads_;
};

}  // namespace penstock
