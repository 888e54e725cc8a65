// SPDX-License-Identifier: Apache-2.0
#include "kernels/simt.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/float16.h"
#include "kernels/simt_engine.h"

namespace penstock::simt {
namespace {

constexpr Schedule kSchedules[] = {
    {"forward, copies late", Order::kForward, 0, true},
    {"reverse, copies early", Order::kReverse, 0, false},
    {"random 1, copies late", Order::kRandom, 1, true},
    {"random 2, copies early", Order::kRandom, 2, false},
};

Engine& Mine() { return Engine::Mine(); }

}  // namespace

std::span<const Schedule> Schedules() { return kSchedules; }

void SetSchedule(const Schedule& schedule) { Mine().schedule = &schedule; }

std::string TakeFailure() { return std::exchange(Mine().failure, {}); }

cudaError_t LastError(bool take) {
  return take ? std::exchange(Mine().error, cudaSuccess) : Mine().error;
}

void RunGrid(const LaunchShape& shape, void (*body)(const void*), const void* closure) {
  Mine().Run(shape, body, closure);
}

void Fail(Site at, const char* format, ...) {
  char message[500];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  Mine().FailAt(at, message);
}

void* SharedVariable(const void* tag, std::size_t bytes, std::size_t alignment, Site at) {
  return Mine().Shared(tag, bytes, alignment, at);
}

std::byte* DynamicShared() { return Mine().Dynamic(); }

void BlockBarrier(Site at) { Mine().BarrierArrive(at); }

void WarpBarrier(unsigned mask, Site at) { Mine().Meet(mask, "SyncWarp", nullptr, 0, at); }

void Exchange(const char* what, void* value, std::size_t bytes, int from, Site at) {
  if (from < 0 || from >= static_cast<int>(kWarpLanes))
    Fail(at, "%s: there is no lane %d", what, from);
  const Slots slots = Mine().Meet(~0u, what, value, bytes, at);
  std::memcpy(value, slots[from], bytes);
}

unsigned Vote(bool predicate, Site at) {
  const Slots slots = Mine().Meet(~0u, "Ballot", &predicate, sizeof predicate, at);
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
      Mine().Meet(~0u, columns == 32 ? "MmaInt8" : "MmaInt8Half", mine, sizeof mine, at);
  // Word `word` of what `lane` gave: four int8.
  const auto quad = [slots](unsigned lane, int word) {
    return reinterpret_cast<const std::int8_t*>(slots[lane] + 4 * word);
  };
  const unsigned g = Mine().lane() / 4;
  for (int i = 0; i < 4; ++i) {
    const unsigned column = 2 * (Mine().lane() % 4) + static_cast<unsigned>(i % 2);
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
  Mine().Begin(shared, global, live, at);
}

void Synchronize() { Mine().Synchronize(); }

void WaitForEarlierLaunches() { Mine().WaitForEarlier(); }

void CommitCopies() { Mine().Commit(); }

void WaitCopies(int pending) { Mine().Wait(static_cast<std::size_t>(pending)); }

unsigned Lane() { return Mine().lane(); }

float FloatFromF16(std::uint16_t bits) { return ToFloat(F16{bits}); }

std::uint16_t F16FromFloat(float x) { return static_cast<std::uint16_t>(ToF16Saturated(x)); }

}  // namespace penstock::simt
