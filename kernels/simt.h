// SPDX-License-Identifier: Apache-2.0
// The other face of kernels/gpu.h: runs GPU kernels on the CPU, and checks them. Every thread of a
// block is a fiber; blocks run one after another on the thread that launches, and the launch
// returns when all are done. x86-64 only.
//
// A launch fails, with a message that names kernel, block, thread and line, when
//   - a barrier is reached by some threads at one line and by others at another, or never by some,
//   - a warp operation is reached by a lane outside its mask, at unlike lines, or names a lane that
//     has returned; when threads wait for each other for ever,
//   - a vector access or an asynchronous copy is misaligned, or a copy's target is not shared,
//   - bytes behind the end of shared memory were written,
//   - of a GPU_LAUNCH_EARLY, no thread calls WaitForEarlier,
//   - the launch asks for more than a GPU of 8.0, 9.0 or 10.0 has, or for more than 48 KiB of
//     dynamic shared memory without cudaFuncSetAttribute.
// Shared memory begins as bytes 0xff (NaN, -1). A Schedule says in which order threads and blocks
// run and whether asynchronous copies land at once or at the wait; a kernel is right when all
// schedules give the same.
//
// It is sequentially consistent, so a missing memory fence between blocks goes unseen, and it says
// nothing about time.
//
// Threads: launches of different OS threads do not touch each other; schedule and failure belong to
// the OS thread.
#pragma once

#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "kernels/simt_by_name.h"

namespace penstock::simt {

// Where a kernel calls something; as a default argument, the caller's line.
struct Site {
  const char* file = nullptr;
  int line = 0;
  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Order { kForward, kReverse, kRandom };

struct Schedule {
  const char* name;
  Order order;
  std::uint64_t seed;
  bool late_copies;  // Asynchronous copies land at the wait; before, their target holds 0xff.
};

// Those that tests walk; the first is the default.
std::span<const Schedule> Schedules();
// Of this OS thread's launches from now on.
void SetSchedule(const Schedule& schedule);
// Whether this program checks for races, which is slow and needs no second schedule.
bool ChecksRaces();

// What the first failed launch of this OS thread since the last call said; empty: none failed.
std::string TakeFailure();
// As cudaDeviceSynchronize: later launches need not wait for those so far.
void Synchronize();
// From now on this OS thread's launches must not touch [p, p + bytes): those that do fail, where
// the program checks for races. Between launches only.
void Forbid(const void* p, std::size_t bytes);
// They may again. p: as given to Forbid, by the same OS thread; any other changes nothing.
void Allow(const void* p);
// As cudaGetLastError: the first error of a launch since the last call with `take`.
cudaError_t LastError(bool take);
// As cudaFuncSetAttribute(cudaFuncAttributeMaxDynamicSharedMemorySize), for all OS threads.
cudaError_t AllowSharedBytes(const void* kernel, int bytes);

// --- What the macros and gpu:: below are made of ---

struct LaunchShape {
  const char* kernel_name;
  const void* kernel;
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;
  bool early;  // GPU_LAUNCH_EARLY
  Site at;
};

// Runs body(closure) once per thread.
void RunGrid(const LaunchShape& shape, void (*body)(const void* closure), const void* closure);

// Makes known, before main, how arguments of a kernel of this signature are passed, for who starts
// kernels by name (simt_by_name.h). `type`: of typeid; `bytes`: of all arguments.
bool KnowSignature(const char* type, std::size_t bytes, BindFn bind);
template <typename... P>
inline const bool kKnown = KnowSignature(
    typeid(void(P...)).name(), (std::size_t{0} + ... + sizeof(P)),
    [](const void* kernel, void* const* arguments) -> std::function<void()> {
      return [&]<std::size_t... i>(std::index_sequence<i...>) {
        return [call = reinterpret_cast<void (*)(P...)>(reinterpret_cast<std::uintptr_t>(kernel)),
                kept = std::tuple<P...>(*static_cast<const P*>(arguments[i])...)] {
          std::apply(call, kept);
        };
      }
      (std::index_sequence_for<P...>{});
    });

template <typename... P, typename... A>
void Launch(Site at, const char* name, bool early, void (*kernel)(P...), dim3 grid, dim3 block,
            std::size_t shared_bytes, cudaStream_t /*stream*/, const A&... args) {
  (void)kKnown<P...>;
  const auto run = [&] { kernel(args...); };
  using Run = decltype(run);
  RunGrid(
      {name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, early, at},
      [](const void* closure) { (*static_cast<Run*>(closure))(); }, &run);
}

// Ends the launch. Only inside a kernel.
[[noreturn]] void Fail(Site at, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The block's variable of shared memory that `tag` names, undefined bytes at first use.
void* SharedVariable(const void* tag, std::size_t bytes, std::size_t alignment, Site at);
std::byte* DynamicShared();

void BlockBarrier(Site at);
void WarpBarrier(unsigned mask, Site at);
// Every lane gives `value` of at most 16 bytes and gets that of lane `from`.
void Exchange(const char* what, void* value, std::size_t bytes, int from, Site at);
unsigned Vote(bool predicate, Site at);
// m16n8k32 (a[2], a[3], b1 used) or m16n8k16 of int8.
void MultiplyInt8(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                  int columns, Site at);
void CopyAsync(void* shared, const void* global, bool live, Site at);
void CommitCopies();
void WaitForEarlierLaunches();
void WaitCopies(int pending);
unsigned Lane();
float FloatFromF16(std::uint16_t bits);
std::uint16_t F16FromFloat(float x);

// Tells the race check of an access.
enum class AccessKind : std::uint8_t { kRead, kWrite, kAtomic };
void Access(const void* p, std::size_t bytes, AccessKind kind, Site at);
inline void CheckAligned(const void* p, std::size_t alignment, Site at) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (address % alignment != 0) Fail(at, "access of %zu bytes at %p is misaligned", alignment, p);
}

// Tells the race check (simt_race.h) of whole accesses, where its compiler pass would see four of 4
// bytes.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define PENSTOCK_SIMT_WHOLE [[gnu::noinline, gnu::no_sanitize_thread]]
inline constexpr bool kTellAccesses = true;
#else
#define PENSTOCK_SIMT_WHOLE
inline constexpr bool kTellAccesses = false;
#endif

}  // namespace penstock::simt

#define GPU_KERNEL(threads_max, blocks_min) void
#define GPU_DEVICE inline
#define GPU_TABLE(T, name) constexpr T name
#define GPU_SHARED(T, name, n)                                  \
  static const char name##_tag = 0;                             \
  T(&name)                                                      \
  [n] = *static_cast<T(*)[n]>(::penstock::simt::SharedVariable( \
      &name##_tag, sizeof(T) * (n), alignof(T), ::penstock::simt::Site::Here()))
#define GPU_DYNAMIC_SHARED(name) std::byte* const name = ::penstock::simt::DynamicShared()
#define GPU_LAUNCH(kernel, ...) \
  ::penstock::simt::Launch(::penstock::simt::Site::Here(), #kernel, false, kernel, __VA_ARGS__)
// Starts when those before it have ended, too; what it touches before it waits is for the race check.
#define GPU_LAUNCH_EARLY(kernel, ...) \
  ::penstock::simt::Launch(::penstock::simt::Site::Here(), #kernel, true, kernel, __VA_ARGS__)

// Of the thread that runs.
inline thread_local uint3 threadIdx{};
inline thread_local uint3 blockIdx{};
inline thread_local dim3 blockDim{};
inline thread_local dim3 gridDim{};

template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace penstock::gpu {

using simt::Site;

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

inline void WaitForEarlier() { simt::WaitForEarlierLaunches(); }
inline void LetNextStart() {}

inline void SyncThreads(Site at = Site::Here()) { simt::BlockBarrier(at); }
inline void SyncWarp(unsigned mask = kAllLanes, Site at = Site::Here()) {
  simt::WarpBarrier(mask, at);
}

template <typename T>
T Shfl(T value, int lane, Site at = Site::Here()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  simt::Exchange("Shfl", &value, sizeof(T), lane, at);
  return value;
}
template <typename T>
T ShflXor(T value, int lanes, Site at = Site::Here()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  simt::Exchange("ShflXor", &value, sizeof(T), static_cast<int>(simt::Lane()) ^ lanes, at);
  return value;
}
template <typename T>
T Pick(T value, std::uint32_t index, Site at = Site::Here()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  simt::Exchange("Pick", &value, sizeof(T), static_cast<int>(index % kWarp), at);
  return value;
}
inline unsigned Ballot(bool predicate, Site at = Site::Here()) { return simt::Vote(predicate, at); }
inline unsigned LowestBit(unsigned bits) { return static_cast<unsigned>(std::countr_zero(bits)); }
inline unsigned CountBits(unsigned bits) { return static_cast<unsigned>(std::popcount(bits)); }

inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float Sqrt(float x) { return std::sqrt(x); }
inline float Divide(float a, float b) { return a / b; }
inline int RoundToInt(float x) {
  if (!(x == x)) return 0;
  if (x >= 0x1p31f) return INT32_MAX;
  if (x <= -0x1p31f) return INT32_MIN;
  return static_cast<int>(std::nearbyint(x));
}
inline float FloatFromBits(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t BitsFromFloat(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float FromF16(std::uint16_t bits) { return simt::FloatFromF16(bits); }
inline std::uint16_t ToF16Saturated(float x) { return simt::F16FromFloat(x); }

inline std::uint32_t PickBytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t both = std::uint64_t{b} << 32 | a;
  std::uint32_t picked = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const auto byte = static_cast<std::uint32_t>(both >> (8 * ((selector >> (4 * i)) & 7))) & 255;
    picked |= byte << (8 * i);
  }
  return picked;
}
inline int Dot4(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) {
    c += static_cast<std::int8_t>(a >> (8 * i)) * static_cast<std::int8_t>(b >> (8 * i));
  }
  return c;
}

template <typename T>
PENSTOCK_SIMT_WHOLE T Load(const void* p, Site at = Site::Here()) {
  simt::CheckAligned(p, alignof(T), at);
  if constexpr (simt::kTellAccesses) simt::Access(p, sizeof(T), simt::AccessKind::kRead, at);
  return *static_cast<const T*>(p);
}
template <typename T>
T LoadOnce(const void* p, Site at = Site::Here()) {
  return Load<T>(p, at);
}
template <typename T>
PENSTOCK_SIMT_WHOLE void Store(void* p, T value, Site at = Site::Here()) {
  simt::CheckAligned(p, alignof(T), at);
  if constexpr (simt::kTellAccesses) simt::Access(p, sizeof(T), simt::AccessKind::kWrite, at);
  *static_cast<T*>(p) = value;
}

// Threads of a launch take turns, and other launches do not come here.
template <typename T, typename Change>
PENSTOCK_SIMT_WHOLE void Atomic(T* p, const Change& change, Site at) {
  simt::CheckAligned(p, sizeof(*p), at);
  if constexpr (simt::kTellAccesses) simt::Access(p, sizeof(*p), simt::AccessKind::kAtomic, at);
  *p = change(*p);
}
inline void AtomicXor(std::uint32_t* p, std::uint32_t value, Site at = Site::Here()) {
  Atomic(
      p, [value](std::uint32_t old) { return old ^ value; }, at);
}
inline void AtomicAdd(std::uint32_t* p, std::uint32_t value, Site at = Site::Here()) {
  Atomic(
      p, [value](std::uint32_t old) { return old + value; }, at);
}
inline void AtomicAdd64(std::uint64_t* p, std::uint64_t value, Site at = Site::Here()) {
  Atomic(
      p, [value](std::uint64_t old) { return old + value; }, at);
}

inline void CopyAsync16(void* shared, const void* global, bool live = true,
                        Site at = Site::Here()) {
  simt::CopyAsync(shared, global, live, at);
}
inline void CopyAsyncCommit() { simt::CommitCopies(); }
template <int pending>
void CopyAsyncWait() {
  simt::WaitCopies(pending);
}

inline void LoadMatrices(std::uint32_t (&r)[4], const void* row, Site at = Site::Here()) {
  simt::CheckAligned(row, 16, at);
  const int lane = static_cast<int>(simt::Lane());
  for (int m = 0; m < 4; ++m) {
    const auto from = Shfl(reinterpret_cast<std::uintptr_t>(row), 8 * m + lane / 4, at);
    r[m] = Load<std::uint32_t>(reinterpret_cast<const std::byte*>(from) + 4 * (lane % 4), at);
  }
}

inline void MmaInt8(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                    Site at = Site::Here()) {
  simt::MultiplyInt8(d, a, b0, b1, 32, at);
}
inline void MmaInt8Half(int (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t b,
                        Site at = Site::Here()) {
  simt::MultiplyInt8(d, {a0, a1, 0, 0}, b, 0, 16, at);
}

}  // namespace penstock::gpu
