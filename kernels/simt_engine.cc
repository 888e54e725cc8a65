// SPDX-License-Identifier: Apache-2.0
#include "kernels/simt_engine.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

namespace penstock::simt {
namespace {

constexpr std::size_t kGuardBytes = 4096;  // Below each stack, no access.
constexpr std::size_t kSharedTail = 128;   // Behind each variable, to see it overrun.
constexpr unsigned char kPoison = 0xff;
constexpr unsigned char kTail = 0xa5;
constexpr std::size_t kCopyBytes = 16;

Observer* g_observer = nullptr;

struct SharedLimits {
  std::mutex mutex;
  std::map<const void*, std::size_t> bytes;
};
SharedLimits& Limits() {
  static auto* limits = new SharedLimits;
  return *limits;
}

thread_local Engine t_engine;

}  // namespace

Engine& Engine::Mine() { return t_engine; }

Engine::~Engine() {
  if (stacks_ != nullptr) munmap(stacks_, kThreadsMax * (kGuardBytes + kStackBytes));
}

std::uint64_t Engine::Random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_;
}

void Engine::SetFailure(const char* thread, Site at, const char* message) {
  if (failed_) return;
  failed_ = true;
  error = error == cudaSuccess ? cudaErrorLaunchFailure : error;
  if (!failure.empty()) return;
  char text[800];
  std::snprintf(text, sizeof text, "%s block %u,%u,%u %s at %s:%d: %s", shape_.kernel_name,
                blockIdx.x, blockIdx.y, blockIdx.z, thread, at.file ? at.file : "?", at.line,
                message);
  failure = text;
}

void Engine::FailAt(Site at, const char* message) {
  char thread[40];
  std::snprintf(thread, sizeof thread, "thread %d", running_);
  SetFailure(thread, at, message);
  Context nowhere;
  Next(nowhere, true);
  std::abort();
}

void Engine::Next(Context& from, bool ends) {
  if (failed_ || ready_.empty()) {
    running_ = -1;
    if (g_observer != nullptr) g_observer->ThreadRuns(-1);
    SwitchTo(from, starter_, ends);
    return;
  }
  const std::size_t i =
      schedule->order == Order::kRandom ? Random() % ready_.size() : ready_.size() - 1;
  const unsigned next = ready_[i];
  ready_[i] = ready_.back();
  ready_.pop_back();
  running_ = static_cast<int>(next);
  threadIdx = fibers_[next].index;
  if (g_observer != nullptr) g_observer->ThreadRuns(running_);
  if (&from != &fibers_[next].context) SwitchTo(from, fibers_[next].context, ends);
}

void Engine::WaitAs(State state, const char* what, Site at) {
  Fiber& fiber = current();
  fiber.state = state;
  fiber.what = what;
  fiber.at = at;
  Next(fiber.context, false);
  fiber.state = State::kReady;
}

void Engine::BarrierArrive(Site at) {
  if (live_ != threads_) {
    Fail(at, "SyncThreads is reached, but %u of %u threads have returned", threads_ - live_,
         threads_);
  }
  if (at_barrier_ == 0) barrier_ = at;
  if (barrier_.line != at.line || std::strcmp(barrier_.file, at.file) != 0) {
    Fail(at, "divergent SyncThreads: other threads are at %s:%d", barrier_.file, barrier_.line);
  }
  current().state = State::kAtBarrier;
  // The last one takes its turn with the others, so that any order is possible.
  if (++at_barrier_ == threads_) ReleaseBarrier();
  WaitAs(current().state, "SyncThreads", at);
}

void Engine::ReleaseBarrier() {
  at_barrier_ = 0;
  if (g_observer != nullptr) g_observer->BlockBarrier();
  for (unsigned i = 0; i < threads_; ++i) {
    MakeReady(schedule->order == Order::kForward ? threads_ - 1 - i : i);
  }
}

Slots Engine::Meet(unsigned mask, const char* what, const void* value, std::size_t bytes, Site at) {
  const unsigned me = lane();
  const unsigned first = static_cast<unsigned>(running_) - me;
  Warp& warp = warps_[first / kWarpLanes];
  if ((mask >> me & 1) == 0) Fail(at, "%s: lane %u is not in its mask %08x", what, me, mask);
  if (const unsigned gone = mask & ~warp.live) {
    Fail(at, "%s: mask %08x names lanes %08x, which have returned or are not there", what, mask,
         gone);
  }
  Meeting* meeting = nullptr;
  for (auto& known : warp.meetings) {
    if (known->mask == mask) meeting = known.get();
  }
  if (meeting == nullptr) {
    meeting = warp.meetings.emplace_back(std::make_unique<Meeting>()).get();
    meeting->mask = mask;
  }
  if (meeting->arrived == 0) {
    meeting->what = what;
    meeting->at = at;
  } else if (meeting->at.line != at.line || std::strcmp(meeting->what, what) != 0 ||
             std::strcmp(meeting->at.file, at.file) != 0) {
    Fail(at, "divergent %s: other lanes are in %s at %s:%d", what, meeting->what, meeting->at.file,
         meeting->at.line);
  }
  auto* const slots = meeting->slots[meeting->round % 2];
  if (value != nullptr) std::memcpy(slots[me], value, bytes);
  meeting->arrived |= 1u << me;
  if (meeting->arrived != mask) {
    WaitAs(State::kAtWarp, what, at);
    return slots;
  }
  meeting->arrived = 0;
  ++meeting->round;
  if (value == nullptr && g_observer != nullptr) g_observer->WarpBarrier(first / kWarpLanes, mask);
  for (unsigned i = 0; i < kWarpLanes; ++i) {
    const unsigned other = schedule->order == Order::kForward ? kWarpLanes - 1 - i : i;
    if (other != me && (mask >> other & 1) != 0) MakeReady(first + other);
  }
  return slots;
}

SharedBlock& Engine::AddShared(const void* tag, std::size_t bytes) {
  auto* p = static_cast<std::byte*>(
      std::aligned_alloc(128, (bytes + kSharedTail + 127) & ~std::size_t{127}));
  if (p == nullptr) throw std::bad_alloc();
  return shared_.emplace_back(SharedBlock{tag, p, bytes, {p, &std::free}});
}

void Engine::PoisonShared(SharedBlock& shared) {
  std::memset(shared.p, kPoison, shared.bytes);
  std::memset(shared.p + shared.bytes, kTail, kSharedTail);
#if defined(PENSTOCK_FIBER_ASAN)
  __asan_poison_memory_region(shared.p + shared.bytes, kSharedTail);
#endif
  if (g_observer != nullptr) g_observer->SharedMemory(shared.p, shared.bytes);
}

void* Engine::Shared(const void* tag, std::size_t bytes, std::size_t alignment, Site at) {
  std::size_t total = bytes;
  for (const SharedBlock& known : shared_) {
    if (known.tag == tag) return known.p;
    if (known.tag != nullptr) total += known.bytes;
  }
  if (alignment > 128) Fail(at, "shared memory is aligned to 128 bytes, asked for %zu", alignment);
  if (total > kSharedFreeBytes) {
    Fail(at, "the block's shared variables take %zu bytes, %zu at most", total, kSharedFreeBytes);
  }
  if (total + shape_.shared_bytes > kSharedMaxBytes) {
    Fail(at, "the block takes %zu bytes of shared memory, %zu at most", total + shape_.shared_bytes,
         kSharedMaxBytes);
  }
  SharedBlock& added = AddShared(tag, bytes);
  PoisonShared(added);
  return added.p;
}

void Engine::Land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  if (copy.from != nullptr) {
    std::memcpy(copy.to, copy.from, kCopyBytes);
  } else {
    std::memset(copy.to, 0, kCopyBytes);
  }
}

void Engine::Begin(void* shared, const void* global, bool live, Site at) {
  auto* const to = static_cast<std::byte*>(shared);
  CheckAligned(shared, kCopyBytes, at);
  if (live) CheckAligned(global, kCopyBytes, at);
  bool inside = false;
  for (const SharedBlock& block : shared_) {
    inside = inside || (to >= block.p && to + kCopyBytes <= block.p + block.bytes);
  }
  if (!inside) Fail(at, "the target %p of an asynchronous copy is not in shared memory", shared);
  Copy copy{to, live ? static_cast<const std::byte*>(global) : nullptr, false};
  if (g_observer != nullptr) g_observer->CopyBegins(copy.to, copy.from, at);
  if (schedule->late_copies) {
    std::memset(to, kPoison, kCopyBytes);
  } else {
    Land(copy);
  }
  current().copies.push_back(copy);
}

void Engine::Wait(std::size_t pending) {
  Fiber& fiber = current();
  if (fiber.groups.size() <= pending) return;
  const std::size_t groups = fiber.groups.size() - pending;
  const std::size_t end = fiber.groups[groups - 1];
  for (std::size_t i = 0; i < end; ++i) {
    Land(fiber.copies[i]);
    if (g_observer != nullptr) g_observer->CopyEnds(fiber.copies[i].to);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + static_cast<std::ptrdiff_t>(end));
  fiber.groups.erase(fiber.groups.begin(),
                     fiber.groups.begin() + static_cast<std::ptrdiff_t>(groups));
  for (std::size_t& group : fiber.groups) group -= end;
}

void Engine::WaitForEarlier() {
  waited_ = true;
  if (g_observer != nullptr) g_observer->ThreadWaited();
}

void Engine::Synchronize() {
  if (g_observer != nullptr) g_observer->Synchronize();
}

void Engine::Entry() {
  Engine& engine = t_engine;
  EnterFiber(engine.starter_known_ ? nullptr : &engine.starter_);
  engine.starter_known_ = true;
  engine.body_(engine.closure_);
  Fiber& fiber = engine.current();
  const unsigned lane = engine.lane();
  fiber.state = State::kDone;
  for (Copy& copy : fiber.copies) engine.Land(copy);
  engine.warps_[static_cast<unsigned>(engine.running_) / kWarpLanes].live &= ~(1u << lane);
  --engine.live_;
  if (engine.at_barrier_ != 0) {
    engine.FailAt(engine.barrier_, "this thread has returned while others wait at SyncThreads");
  }
  engine.Next(fiber.context, true);
  std::abort();
}

void Engine::CheckEnd() {
  if (failed_) return;
  unsigned waiting = 0;
  const Fiber* first = nullptr;
  for (unsigned i = 0; i < threads_; ++i) {
    if (fibers_[i].state == State::kDone) continue;
    if (first == nullptr) first = &fibers_[i];
    ++waiting;
  }
  if (waiting != 0) {
    char thread[40];
    char message[200];
    std::snprintf(thread, sizeof thread, "thread %d", static_cast<int>(first - fibers_.data()));
    std::snprintf(message, sizeof message, "%u threads wait for ever, this one in %s", waiting,
                  first->what);
    SetFailure(thread, first->at, message);
    return;
  }
  for (const SharedBlock& block : shared_) {
#if defined(PENSTOCK_FIBER_ASAN)
    __asan_unpoison_memory_region(block.p + block.bytes, kSharedTail);
#endif
    for (std::size_t i = 0; i < kSharedTail; ++i) {
      if (block.p[block.bytes + i] == std::byte{kTail}) continue;
      char message[120];
      std::snprintf(message, sizeof message, "byte %zu of shared memory of %zu bytes was written",
                    block.bytes + i, block.bytes);
      SetFailure("some thread", shape_.at, message);
      return;
    }
  }
}

void Engine::RunBlock(std::uint64_t number) {
  const dim3& grid = shape_.grid;
  blockIdx = {static_cast<unsigned>(number % grid.x),
              static_cast<unsigned>(number / grid.x % grid.y),
              static_cast<unsigned>(number / (std::uint64_t{grid.x} * grid.y))};
  random_ = (schedule->seed + 1) * 0x9e3779b97f4a7c15u + number * 0xd1b54a32d192ed03u;
  if (g_observer != nullptr) g_observer->BlockBegins(threads_);
  for (SharedBlock& shared : shared_) PoisonShared(shared);
  live_ = threads_;
  at_barrier_ = 0;
  ready_.clear();
  for (unsigned i = 0; i < threads_; ++i) {
    Fiber& fiber = fibers_[i];
    fiber.index = {i % shape_.block.x, i / shape_.block.x % shape_.block.y,
                   i / (shape_.block.x * shape_.block.y)};
    fiber.context = MakeContext(stacks_ + i * (kGuardBytes + kStackBytes) + kGuardBytes, i, &Entry);
    fiber.state = State::kReady;
    fiber.copies.clear();
    fiber.groups.clear();
    MakeReady(schedule->order == Order::kForward ? threads_ - 1 - i : i);
  }
  for (unsigned warp = 0; warp * kWarpLanes < threads_; ++warp) {
    const unsigned lanes = threads_ - warp * kWarpLanes;
    warps_[warp].live = lanes < kWarpLanes ? (1u << lanes) - 1 : ~0u;
    for (auto& meeting : warps_[warp].meetings) meeting->arrived = 0;
  }
  Next(starter_, false);
  CheckEnd();
  if (g_observer != nullptr) g_observer->BlockEnds();
}

bool Engine::CheckShape(const LaunchShape& shape) {
  const dim3& block = shape.block;
  const dim3& grid = shape.grid;
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  char message[200] = "";
  if (threads == 0 || threads > kThreadsMax || block.z > 64) {
    std::snprintf(message, sizeof message,
                  "a block of %u x %u x %u threads; 1 to 1024 are possible", block.x, block.y,
                  block.z);
  } else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > 65535 ||
             grid.z > 65535) {
    std::snprintf(
        message, sizeof message,
        "a grid of %u x %u x %u blocks; 1 x 1 x 1 to 2147483647 x 65535 x 65535 are possible",
        grid.x, grid.y, grid.z);
  } else if (shape.shared_bytes > kSharedFreeBytes) {
    const std::lock_guard<std::mutex> lock(Limits().mutex);
    const auto limit = Limits().bytes.find(shape.kernel);
    const std::size_t allowed = limit == Limits().bytes.end() ? kSharedFreeBytes : limit->second;
    if (shape.shared_bytes > allowed) {
      std::snprintf(message, sizeof message,
                    "%zu bytes of dynamic shared memory, but %zu are allowed", shape.shared_bytes,
                    allowed);
    }
  }
  if (message[0] == 0) return true;
  error = cudaErrorInvalidConfiguration;
  SetFailure("launch", shape.at, message);
  return false;
}

void Engine::Run(const LaunchShape& shape, void (*body)(const void*), const void* closure) {
  shape_ = shape;
  body_ = body;
  closure_ = closure;
  failed_ = false;
  waited_ = false;
  running_ = -1;
  blockIdx = {};
  if (!CheckShape(shape)) return;
  const std::size_t stride = kGuardBytes + kStackBytes;
  if (stacks_ == nullptr) {
    void* p = mmap(nullptr, kThreadsMax * stride, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    stacks_ = static_cast<char*>(p);
    for (unsigned i = 0; i < kThreadsMax; ++i)
      mprotect(stacks_ + i * stride, kGuardBytes, PROT_NONE);
  }
  threads_ = shape.block.x * shape.block.y * shape.block.z;
  blockDim = shape.block;
  gridDim = shape.grid;
  if (g_observer != nullptr) {
    g_observer->LaunchBegins(stacks_, kThreadsMax * stride, shape.early);
  }
  dynamic_ = shape.shared_bytes == 0 ? nullptr : AddShared(nullptr, shape.shared_bytes).p;
  const std::uint64_t blocks = std::uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  for (std::uint64_t i = 0; i < blocks && !failed_; ++i) {
    RunBlock(schedule->order == Order::kForward ? i : blocks - 1 - i);
  }
#if defined(PENSTOCK_FIBER_ASAN)
  for (SharedBlock& block : shared_)
    __asan_unpoison_memory_region(block.p, block.bytes + kSharedTail);
#endif
  shared_.clear();
  // The end of this launch has to mean that those before it have ended.
  if (shape.early && !waited_) SetFailure("all threads", shape.at, "no call of WaitForEarlier");
  if (g_observer == nullptr) return;
  if (const std::string wrong = g_observer->LaunchEnds(); !wrong.empty()) {
    SetFailure("all threads", shape_.at, wrong.c_str());
  }
}

cudaError_t AllowSharedBytes(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > kSharedMaxBytes) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(Limits().mutex);
  Limits().bytes[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

bool ChecksRaces() { return g_observer != nullptr; }

void SetObserver(Observer* observer) { g_observer = observer; }

void Forbid(const void* p, std::size_t bytes) {
  if (g_observer != nullptr) g_observer->Forbid(p, bytes);
}

void Allow(const void* p) {
  if (g_observer != nullptr) g_observer->Allow(p);
}

void Access(const void* p, std::size_t bytes, AccessKind kind, Site at) {
  if (g_observer != nullptr) g_observer->Access(p, bytes, kind, at);
}

}  // namespace penstock::simt
