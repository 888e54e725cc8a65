// SPDX-License-Identifier: Apache-2.0
#include "kernels/simt.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "base/float16.h"
#include "kernels/simt_fiber.h"
#include "kernels/simt_observer.h"

namespace penstock::simt {
namespace {

constexpr unsigned kThreadsMax = 1024;
constexpr unsigned kWarpLanes = 32;
constexpr std::size_t kGuardBytes = 4096;           // Below each stack, no access.
constexpr std::size_t kSharedFreeBytes = 48 << 10;  // Without cudaFuncSetAttribute.
constexpr std::size_t kSharedMaxBytes = 163
                                        << 10;  // Of one block on 8.0; 9.0 and 10.0 have 227 KiB.
constexpr std::size_t kSharedTail = 128;        // Behind each variable, to see it overrun.
constexpr unsigned char kPoison = 0xff;
constexpr unsigned char kTail = 0xa5;
constexpr std::size_t kCopyBytes = 16;

constexpr Schedule kSchedules[] = {
    {"forward, copies late", Order::kForward, 0, true},
    {"reverse, copies early", Order::kReverse, 0, false},
    {"random 1, copies late", Order::kRandom, 1, true},
    {"random 2, copies early", Order::kRandom, 2, false},
};

Observer* g_observer = nullptr;

struct SharedLimits {
  std::mutex mutex;
  std::map<const void*, std::size_t> bytes;
};
SharedLimits& Limits() {
  static auto* limits = new SharedLimits;
  return *limits;
}

struct Copy {
  std::byte* to;
  const std::byte* from;  // Null: zeros.
  bool landed;
};

enum class State : std::uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

struct Fiber {
  Context context;
  State state = State::kDone;
  uint3 index{};
  Site at;  // Where it waits.
  const char* what = nullptr;
  std::vector<Copy> copies;
  std::vector<std::size_t> groups;  // Of each committed group, the count of copies up to its end.
};

constexpr std::size_t kSlotBytes = 32;
using Slots = const std::byte (*)[kSlotBytes];  // [lane]

// The lanes of `mask` come together here; they may meet again before all have read what was given,
// but not twice, so two sets of slots are enough.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  unsigned round = 0;
  const char* what = nullptr;
  Site at;
  std::byte slots[2][kWarpLanes][kSlotBytes];
};

struct Warp {
  unsigned live = 0;
  std::vector<std::unique_ptr<Meeting>> meetings;
};

struct SharedBlock {
  const void* tag;  // Null: the launch's dynamic bytes.
  std::byte* p;
  std::size_t bytes;
  std::unique_ptr<std::byte, decltype(&std::free)> owner;
};

// What one OS thread needs to run launches, one at a time.
class Engine {
 public:
  ~Engine();
  void Run(const LaunchShape& shape, void (*body)(const void*), const void* closure);

  const Schedule* schedule = &kSchedules[0];
  cudaError_t error = cudaSuccess;
  std::string failure;

  [[noreturn]] void FailAt(Site at, const char* message);
  void BarrierArrive(Site at);
  // Waits for the lanes of `mask`; returns what each gave. Without a value, orders memory.
  Slots Meet(unsigned mask, const char* what, const void* value, std::size_t bytes, Site at);
  void* Shared(const void* tag, std::size_t bytes, std::size_t alignment, Site at);
  std::byte* Dynamic() { return dynamic_; }
  void Begin(void* shared, const void* global, bool live, Site at);
  void Commit() { current().groups.push_back(current().copies.size()); }
  void Wait(std::size_t pending);
  unsigned lane() const { return static_cast<unsigned>(running_) % kWarpLanes; }

 private:
  Fiber& current() { return fibers_[static_cast<std::size_t>(running_)]; }
  void SetFailure(const char* thread, Site at, const char* message);
  bool CheckShape(const LaunchShape& shape);
  void RunBlock(std::uint64_t number);
  void MakeReady(unsigned thread) { ready_.push_back(thread); }
  void ReleaseBarrier();
  void WaitAs(State state, const char* what, Site at);
  // Runs the next ready fiber, or the starter when there is none or the launch has failed.
  void Next(Context& from, bool ends);
  void CheckEnd();
  void Land(Copy& copy);
  SharedBlock& AddShared(const void* tag, std::size_t bytes);
  void PoisonShared(SharedBlock& shared);
  static void Entry();
  std::uint64_t Random();

  char* stacks_ = nullptr;
  std::vector<Fiber> fibers_ = std::vector<Fiber>(kThreadsMax);
  Warp warps_[kThreadsMax / kWarpLanes];
  std::vector<unsigned> ready_;  // The last one runs next, or a random one.
  std::vector<SharedBlock> shared_;
  std::byte* dynamic_ = nullptr;
  Context starter_;
  bool starter_known_ = false;
  LaunchShape shape_{};
  void (*body_)(const void*) = nullptr;
  const void* closure_ = nullptr;
  unsigned threads_ = 0;
  unsigned live_ = 0;
  unsigned at_barrier_ = 0;
  Site barrier_;
  int running_ = -1;
  std::uint64_t random_ = 1;
  bool failed_ = false;
};

thread_local Engine t_engine;

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
  if (g_observer != nullptr) g_observer->BlockBegins(number, threads_);
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
    g_observer->LaunchBegins(shape.kernel_name, reinterpret_cast<std::byte*>(stacks_),
                             kThreadsMax * stride);
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
  if (g_observer != nullptr) g_observer->LaunchEnds();
}

}  // namespace

std::span<const Schedule> Schedules() { return kSchedules; }

void SetSchedule(const Schedule& schedule) { t_engine.schedule = &schedule; }

std::string TakeFailure() { return std::exchange(t_engine.failure, {}); }

cudaError_t LastError(bool take) {
  return take ? std::exchange(t_engine.error, cudaSuccess) : t_engine.error;
}

cudaError_t AllowSharedBytes(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > kSharedMaxBytes) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(Limits().mutex);
  Limits().bytes[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

void SetObserver(Observer* observer) { g_observer = observer; }

void RunGrid(const LaunchShape& shape, void (*body)(const void*), const void* closure) {
  t_engine.Run(shape, body, closure);
}

void Fail(Site at, const char* format, ...) {
  char message[500];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  t_engine.FailAt(at, message);
}

void* SharedVariable(const void* tag, std::size_t bytes, std::size_t alignment, Site at) {
  return t_engine.Shared(tag, bytes, alignment, at);
}

std::byte* DynamicShared() { return t_engine.Dynamic(); }

void BlockBarrier(Site at) { t_engine.BarrierArrive(at); }

void WarpBarrier(unsigned mask, Site at) { t_engine.Meet(mask, "SyncWarp", nullptr, 0, at); }

void Exchange(const char* what, void* value, std::size_t bytes, int from, Site at) {
  if (from < 0 || from >= static_cast<int>(kWarpLanes))
    Fail(at, "%s: there is no lane %d", what, from);
  const Slots slots = t_engine.Meet(~0u, what, value, bytes, at);
  std::memcpy(value, slots[from], bytes);
}

unsigned Vote(bool predicate, Site at) {
  const Slots slots = t_engine.Meet(~0u, "Ballot", &predicate, sizeof predicate, at);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    votes |= slots[lane][0] != std::byte{0} ? 1u << lane : 0;
  }
  return votes;
}

void MultiplyInt8(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                  int columns, Site at) {
  const std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  static_assert(sizeof mine <= kSlotBytes);
  const Slots slots =
      t_engine.Meet(~0u, columns == 32 ? "MmaInt8" : "MmaInt8Half", mine, sizeof mine, at);
  // Word `word` of what `lane` gave: four int8.
  const auto quad = [slots](unsigned lane, int word) {
    return reinterpret_cast<const std::int8_t*>(slots[lane] + 4 * word);
  };
  const unsigned g = t_engine.lane() / 4;
  for (int i = 0; i < 4; ++i) {
    const unsigned column = 2 * (t_engine.lane() % 4) + static_cast<unsigned>(i % 2);
    for (int half = 0; half < columns / 16; ++half) {
      for (unsigned t = 0; t < 4; ++t) {
        const std::int8_t* x = quad(4 * g + t, 2 * half + i / 2);
        const std::int8_t* y = quad(4 * column + t, 4 + half);
        for (int k = 0; k < 4; ++k) d[i] += x[k] * y[k];
      }
    }
  }
}

void CopyAsync(void* shared, const void* global, bool live, Site at) {
  t_engine.Begin(shared, global, live, at);
}

void CommitCopies() { t_engine.Commit(); }

void WaitCopies(int pending) { t_engine.Wait(static_cast<std::size_t>(pending)); }

unsigned Lane() { return t_engine.lane(); }

float FloatFromF16(std::uint16_t bits) { return ToFloat(F16{bits}); }

std::uint16_t F16FromFloat(float x) { return static_cast<std::uint16_t>(ToF16Saturated(x)); }

void Access(const void* p, std::size_t bytes, bool write, Site at) {
  if (g_observer != nullptr) g_observer->Access(p, bytes, write, at);
}

}  // namespace penstock::simt
