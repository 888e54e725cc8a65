// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_standin.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/time.h"
#include "device/cuda_standin_graph.h"
#include "device/cuda_standin_later.h"
#include "device/cuda_standin_machine.h"

using penstock::cuda_standin::LaterWork;

// What cudaStream_t points to.
struct CUstream_st {
  // Pinned memory that copies were asked to read, with what it held.
  struct Read {
    const std::byte* from;
    std::vector<std::byte> bytes;
  };
  std::vector<Read> reads;
  int device = 0;
  std::shared_ptr<LaterWork> later = {};  // Null: none was ever put here. Shared with events.
};
struct CUevent_st {
  int device = 0;
  // What the event is behind of.
  std::shared_ptr<LaterWork> later = {};
  std::uint64_t pieces = 0;
  // When it was reached. Shared with the stream's work, which may outlive the event.
  std::shared_ptr<std::atomic<std::int64_t>> reached_ns =
      std::make_shared<std::atomic<std::int64_t>>(0);
};

namespace penstock::cuda_standin {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kGap = 256;  // cudaMalloc's alignment.

class Standin {
 public:
  std::recursive_mutex mutex;           // Guards all of it, and the memory.
  std::condition_variable_any changed;  // The machine is another one.
  Machine machine = MachineOfEnvironment();
  Counts counts;
  std::map<std::byte*, std::size_t> pinned;  // By begin.

  ~Standin() {
    if (arena_ != nullptr) ::munmap(arena_, arena_bytes_);
  }

  void Clear() {
    CHECK_EQ(counts.device_bytes, 0);
    if (arena_ != nullptr) ::munmap(arena_, arena_bytes_);
    arena_ = nullptr;
    counts = {};
  }
  bool Lost(int gpu) const {
    return machine.synchronizes == 0 && (machine.lost_gpu < 0 || machine.lost_gpu == gpu);
  }
  bool Full(int gpu) const {
    return machine.full && (machine.full_gpu < 0 || machine.full_gpu == gpu);
  }
  // `way`: as which files of Machine::faults say.
  void TakeFaults(int gpu, const char* way = "gpu") {
    const int error = TakePlantedFault(machine, way + std::to_string(gpu));
    if (error == cudaErrorMemoryAllocation) {
      machine.full = true;
      machine.full_gpu = gpu;
    } else if (error != 0) {
      machine.synchronizes = 0;
      machine.lost_error = error;
      machine.lost_gpu = gpu;
    }
  }

  // First fit; null when there is no room.
  void* Take(std::size_t bytes, int gpu) {
    Map();
    bytes = (bytes + kGap - 1) / kGap * kGap;
    std::size_t begin = 0;
    for (const auto& [offset, piece] : taken_) {
      if (offset - begin >= bytes) break;
      begin = offset + piece.bytes;
    }
    if (begin + bytes > machine.memory_bytes) return nullptr;
    taken_[begin] = {.bytes = bytes, .gpu = gpu};
    counts.device_bytes += static_cast<std::int64_t>(bytes);
    return arena_ + begin;
  }
  bool Give(void* data) {
    const auto found =
        taken_.find(static_cast<std::size_t>(static_cast<std::byte*>(data) - arena_));
    if (found == taken_.end()) return false;
    counts.device_bytes -= static_cast<std::int64_t>(found->second.bytes);
    taken_.erase(found);
    return true;
  }

  bool IsDevice(const std::byte* data, std::size_t bytes) const { return GpuOf(data, bytes) >= 0; }
  // That these bytes were allocated on; below 0: they are not of one piece of device memory.
  int GpuOf(const std::byte* data, std::size_t bytes) const {
    if (arena_ == nullptr || data < arena_ || data >= arena_ + arena_bytes_) return -1;
    const auto offset = static_cast<std::size_t>(data - arena_);
    auto after = taken_.upper_bound(offset);
    if (after == taken_.begin()) return -1;
    --after;
    return offset + bytes <= after->first + after->second.bytes ? after->second.gpu : -1;
  }
  bool IsPinned(const std::byte* data, std::size_t bytes) const {
    auto after = pinned.upper_bound(const_cast<std::byte*>(data));
    if (after == pinned.begin()) return false;
    --after;
    return data + bytes <= after->first + after->second;
  }

  void Open() {
    if (!open_) Protect(PROT_READ | PROT_WRITE);
    open_ = true;
  }
  void Close() {
    if (open_) Protect(PROT_NONE);
    open_ = false;
  }

 private:
  void Map() {
    if (arena_ != nullptr) return;
    arena_bytes_ = (machine.memory_bytes + kPage - 1) / kPage * kPage;
    void* const data = ::mmap(nullptr, arena_bytes_, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(data != MAP_FAILED);
    arena_ = static_cast<std::byte*>(data);
    open_ = false;
  }
  void Protect(int access) {
    if (arena_ != nullptr) CHECK_EQ(::mprotect(arena_, arena_bytes_, access), 0);
  }

  std::byte* arena_ = nullptr;
  std::size_t arena_bytes_ = 0;
  struct Piece {
    std::size_t bytes = 0;
    int gpu = 0;
  };
  std::map<std::size_t, Piece> taken_;  // By offset.
  bool open_ = false;
};

Standin& The() {
  static Standin standin;
  return standin;
}

thread_local int t_device = 0;  // As cudaSetDevice left it.

std::lock_guard<std::recursive_mutex> Lock() { return std::lock_guard(The().mutex); }

cudaError_t LostOr(cudaError_t result, int gpu = t_device) {
  return The().Lost(gpu) ? static_cast<cudaError_t>(The().machine.lost_error) : result;
}

// Of what one GPU does with what is of `owner`, below 0: of the host.
cudaError_t Touch(int owner, int gpu) {
  if (owner >= 0 && owner != gpu) The().TakeFaults(owner, "peer");
  const cudaError_t own = LostOr(cudaSuccess, gpu);
  return own != cudaSuccess || owner < 0 ? own : LostOr(cudaSuccess, owner);
}

std::int64_t NowNs() {
  return SteadyClock().Now().time_since_epoch() / std::chrono::nanoseconds(1);
}

}  // namespace

void Reset(const Machine& machine) {
  const auto lock = Lock();
  The().Clear();
  The().machine = machine;
  The().changed.notify_all();
}
void Change(const Machine& machine) {
  const auto lock = Lock();
  The().machine = machine;
  The().changed.notify_all();
}
Counts Now() {
  const auto lock = Lock();
  Counts counts = The().counts;
  counts.graphs = Graphs().graphs;
  counts.graph_launches = Graphs().launches;
  return counts;
}

bool MachineHasGraphs() {
  const auto lock = Lock();
  return The().machine.graphs;
}

void Enqueue(CUstream_st* stream, std::function<void()> work) {
  const auto lock = Lock();
  if (stream->later == nullptr) stream->later = std::make_shared<LaterWork>();
  stream->later->Add(std::move(work));
}
// Not under the lock.
void Await(cudaStream_t stream) {
  std::shared_ptr<LaterWork> later;
  if (stream != nullptr) {
    const auto lock = Lock();
    later = stream->later;
  }
  if (later != nullptr) later->Wait(later->added());
}
int TakeFault(const std::string& name) {
  const auto lock = Lock();
  return TakePlantedFault(The().machine, name);
}
int ErrorOf(int gpu) {
  const auto lock = Lock();
  return LostOr(cudaSuccess, gpu);
}
bool IsDevice(const void* data, std::size_t bytes) {
  const auto lock = Lock();
  return The().IsDevice(static_cast<const std::byte*>(data), bytes);
}

Work::Work() {
  The().mutex.lock();
  The().Open();
}
Work::~Work() { The().mutex.unlock(); }

}  // namespace penstock::cuda_standin

using penstock::cuda_standin::Await;
using penstock::cuda_standin::Enqueue;
using penstock::cuda_standin::Lock;
using penstock::cuda_standin::LostOr;
using penstock::cuda_standin::Note;
using penstock::cuda_standin::NowNs;
using penstock::cuda_standin::RefuseCaptured;
using penstock::cuda_standin::t_device;
using penstock::cuda_standin::The;
using penstock::cuda_standin::Touch;

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) {
  const auto lock = Lock();
  *version = The().machine.driver_version;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  const auto lock = Lock();
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const auto lock = Lock();
  *count = The().machine.devices;
  if (The().machine.driver_version < CUDART_VERSION / 1000 * 1000)
    return cudaErrorInsufficientDriver;
  return static_cast<cudaError_t>(The().machine.device_count_error);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const auto lock = Lock();
  if (device >= The().machine.devices) return cudaErrorInvalidDevice;
  std::snprintf(properties->name, sizeof(properties->name), "stand-in %d", device);
  properties->totalGlobalMem = The().machine.memory_bytes;
  properties->major = The().machine.compute_major;
  properties->multiProcessorCount = The().machine.unlike ? 1 + device % 2 : 1;
  return LostOr(cudaSuccess, device);
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device) {
  const auto lock = Lock();
  if (device < 0 || device >= The().machine.devices) return cudaErrorInvalidDevice;
  if (std::snprintf(id, static_cast<std::size_t>(bytes), "0000:%02x:00.0", device) >= bytes) {
    return cudaErrorInvalidValue;
  }
  return LostOr(cudaSuccess, device);
}

cudaError_t cudaSetDevice(int device) {
  const auto lock = Lock();
  if (device < 0 || device >= The().machine.devices) return cudaErrorInvalidDevice;
  t_device = device;
  return LostOr(cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = t_device;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  std::unique_lock lock(The().mutex);
  The().changed.wait(lock, [] { return The().machine.hung_gpu != t_device; });
  The().TakeFaults(t_device, "asked");
  *total_bytes = The().machine.memory_bytes;
  *free_bytes = *total_bytes - static_cast<std::size_t>(The().counts.device_bytes);
  return LostOr(cudaSuccess);
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  if (const int refused = RefuseCaptured(); refused != 0) return static_cast<cudaError_t>(refused);
  const auto lock = Lock();
  *data = nullptr;
  The().TakeFaults(t_device);
  if (The().Lost(t_device)) return LostOr(cudaSuccess);
  *data = The().Full(t_device) ? nullptr : The().Take(bytes, t_device);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (const int refused = RefuseCaptured(); refused != 0) return static_cast<cudaError_t>(refused);
  const auto lock = Lock();
  if (data != nullptr && !The().Give(data)) return cudaErrorInvalidValue;
  return LostOr(cudaSuccess);
}

cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  if (const int refused = RefuseCaptured(); refused != 0) return static_cast<cudaError_t>(refused);
  const auto lock = Lock();
  *data = nullptr;
  if (The().Lost(t_device)) return LostOr(cudaSuccess);
  auto* const made = new std::byte[bytes];
  std::memset(made, 0xff, bytes);  // As cudart's, it is not zeroed.
  The().pinned[made] = bytes;
  The().counts.pinned_bytes += static_cast<std::int64_t>(bytes);
  *data = made;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  if (const int refused = RefuseCaptured(); refused != 0) return static_cast<cudaError_t>(refused);
  const auto lock = Lock();
  const auto found = The().pinned.find(static_cast<std::byte*>(data));
  if (found == The().pinned.end()) return cudaErrorInvalidValue;
  The().counts.pinned_bytes -= static_cast<std::int64_t>(found->second);
  The().pinned.erase(found);
  delete[] static_cast<std::byte*>(data);
  return LostOr(cudaSuccess);
}

cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  if (Note(stream, [=] { (void)cudaMemsetAsync(data, value, bytes, stream); })) return cudaSuccess;
  Await(stream);
  const auto lock = Lock();
  The().Open();
  std::memset(data, value, bytes);
  return LostOr(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (Note(stream, [=] { (void)cudaMemcpyAsync(to, from, bytes, kind, stream); })) {
    return cudaSuccess;
  }
  Await(stream);
  const auto lock = Lock();
  The().Open();
  ++The().counts.copies;
  const auto* const begin = static_cast<const std::byte*>(from);
  if (The().IsDevice(begin, bytes) && !The().IsDevice(static_cast<std::byte*>(to), bytes)) {
    The().counts.bytes_to_host += static_cast<std::int64_t>(bytes);
  }
  if (stream != nullptr && The().IsPinned(begin, bytes)) {
    stream->reads.push_back({begin, {begin, begin + bytes}});
  }
  const cudaError_t read = Touch(The().GpuOf(begin, bytes), t_device);
  const cudaError_t written = Touch(The().GpuOf(static_cast<std::byte*>(to), bytes), t_device);
  std::memmove(to, from, bytes);
  return read != cudaSuccess ? read : written;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const auto lock = Lock();
  *stream = nullptr;
  if (The().Lost(t_device)) return LostOr(cudaSuccess);
  *stream = new CUstream_st{.reads = {}, .device = t_device, .later = {}};
  ++The().counts.streams;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Await(stream);
  const auto lock = Lock();
  delete stream;
  --The().counts.streams;
  return LostOr(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const int refused = RefuseCaptured(); refused != 0) return static_cast<cudaError_t>(refused);
  Await(stream);
  const auto lock = Lock();
  ++The().counts.synchronizes;
  The().Close();
  The().TakeFaults(stream->device);
  const bool lost = The().Lost(stream->device);
  if (The().machine.synchronizes > 0) --The().machine.synchronizes;
  const bool changed = std::ranges::any_of(stream->reads, [](const CUstream_st::Read& read) {
    return !The().IsPinned(read.from, read.bytes.size()) ||
           std::memcmp(read.from, read.bytes.data(), read.bytes.size()) != 0;
  });
  stream->reads.clear();
  if (lost) return LostOr(cudaSuccess, stream->device);
  return changed ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (const int refused = RefuseCaptured(); refused != 0) return static_cast<cudaError_t>(refused);
  const auto lock = Lock();
  if (stream->device != t_device) return cudaErrorInvalidResourceHandle;
  if (event->later != nullptr && event->later != stream->later) {
    Enqueue(stream, [later = event->later, pieces = event->pieces] { later->Wait(pieces); });
  }
  return Touch(event->device, t_device);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const auto lock = Lock();
  *event = nullptr;
  if (The().Lost(t_device)) return LostOr(cudaSuccess);
  *event = new CUevent_st{.device = t_device, .later = {}, .pieces = 0};
  ++The().counts.events;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const auto lock = Lock();
  delete event;
  --The().counts.events;
  return LostOr(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const int refused = RefuseCaptured(); refused != 0) return static_cast<cudaError_t>(refused);
  const auto lock = Lock();
  if (event->device != t_device || stream->device != t_device) {
    return cudaErrorInvalidResourceHandle;
  }
  event->later = stream->later;
  if (stream->later == nullptr) {
    *event->reached_ns = NowNs();
    return LostOr(cudaSuccess);
  }
  stream->later->Add([reached = event->reached_ns] { *reached = NowNs(); });
  event->pieces = stream->later->added();
  return LostOr(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const auto lock = Lock();
  const bool done = event->later == nullptr || event->later->Done(event->pieces);
  return LostOr(done ? cudaSuccess : cudaErrorNotReady, event->device);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (const cudaError_t error = cudaEventQuery(begin); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaEventQuery(end); error != cudaSuccess) return error;
  *milliseconds = static_cast<float>(*end->reached_ns - *begin->reached_ns) * 1e-6f;
  return cudaSuccess;
}
}
