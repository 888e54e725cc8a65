// SPDX-License-Identifier: Apache-2.0
// Tests of GPU kernels, written once for three programs: x_test, whose kernels run in
// kernels/simt.h; x_test_race, which checks for races too (kernels/simt_race.h); and x_test_gpu
// (PENSTOCK_REAL_GPU is defined), linked with what nvcc made, for a machine with a GPU.
//
//   const DeviceBuffer<float> x(std::vector<float>{1, 2});
//   DeviceBuffer<float> y(2);
//   ForEachSchedule([&] {
//     y.Poison();
//     ASSERT_TRUE(Ran(DoubleCuda(x.data(), 2, y.data(), nullptr)));
//     EXPECT_EQ(y.Get(), (std::vector<float>{2, 4}));
//   });
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#if !defined(PENSTOCK_REAL_GPU)
#include <sanitizer/asan_interface.h>

#include "kernels/simt.h"
#endif

namespace penstock::kernels {

// What a launcher returned, and on a GPU whether all that was launched has run well. Under the
// emulator, the message of what failed.
inline testing::AssertionResult Ran(cudaError_t launched) {
#if defined(PENSTOCK_REAL_GPU)
  const cudaError_t error = launched != cudaSuccess ? launched : cudaDeviceSynchronize();
  if (error == cudaSuccess) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << cudaGetErrorName(error) << ": " << cudaGetErrorString(error);
#else
  simt::Synchronize();
  const std::string failure = simt::TakeFailure();
  if (launched == cudaSuccess && failure.empty()) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "error " << static_cast<int>(launched) << ": " << failure;
#endif
}

// The same floats to the bit, but that one NaN is as good as another.
inline void ExpectSameBits(const std::vector<float>& want, const std::vector<float>& got) {
  ASSERT_EQ(want.size(), got.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(want[i]), std::bit_cast<std::uint32_t>(got[i]))
        << "at " << i << ": " << want[i] << " vs " << got[i];
  }
}

// Calls `body` once per schedule of the emulator, until one fails; where races are checked and on a
// GPU, once.
template <typename Body>
void ForEachSchedule(const Body& body) {
#if defined(PENSTOCK_REAL_GPU)
  body();
#else
  const std::size_t schedules = simt::ChecksRaces() ? 1 : simt::Schedules().size();
  for (const simt::Schedule& schedule : simt::Schedules().first(schedules)) {
    SCOPED_TRACE(std::string("schedule ") + schedule.name);
    simt::SetSchedule(schedule);
    body();
    if (testing::Test::HasFailure()) break;
  }
  simt::SetSchedule(simt::Schedules()[0]);
#endif
}

// Device memory of `size` T, aligned to 256; under the emulator host memory, behind whose end
// nothing may be written (nor read: the race check and the address sanitizer see it). Bytes are
// 0xff (NaN, -1) until set.
template <typename T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit DeviceBuffer(std::size_t size) : size_(size) {
    data_ = Allocate();
    Poison();
  }
  explicit DeviceBuffer(std::span<const T> values) : DeviceBuffer(values.size()) { Set(values); }
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(std::span<const T>(values)) {}
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }

#if defined(PENSTOCK_REAL_GPU)
  ~DeviceBuffer() { cudaFree(data_); }
  void Set(std::span<const T> values) {
    EXPECT_EQ(values.size(), size_);
    Check(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  void Poison() { Check(cudaMemset(data_, 0xff, bytes())); }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    Check(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }
#else
  ~DeviceBuffer() {
    simt::Allow(reinterpret_cast<char*>(data_) + bytes());
    ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<char*>(data_) + bytes(), kTail);
    const auto* tail = reinterpret_cast<const unsigned char*>(data_) + bytes();
    for (std::size_t i = 0; i < kTail; ++i) {
      if (tail[i] != kTailByte) {
        ADD_FAILURE() << "byte " << bytes() + i << " of a buffer of " << bytes() << " was written";
        break;
      }
    }
    std::free(data_);
  }
  void Set(std::span<const T> values) {
    EXPECT_EQ(values.size(), size_);
    if (size_ != 0) std::memcpy(static_cast<void*>(data_), values.data(), bytes());
  }
  void Poison() { std::memset(static_cast<void*>(data_), 0xff, bytes()); }
  std::vector<T> Get() const { return std::vector<T>(data_, data_ + size_); }
#endif

 private:
  std::size_t bytes() const { return size_ * sizeof(T); }

#if defined(PENSTOCK_REAL_GPU)
  static void Check(cudaError_t error) {
    EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
  }
  T* Allocate() const {
    void* p = nullptr;
    Check(cudaMalloc(&p, bytes() == 0 ? 1 : bytes()));
    return static_cast<T*>(p);
  }
#else
  static constexpr std::size_t kTail = 4096;
  static constexpr unsigned char kTailByte = 0xa5;
  T* Allocate() const {
    void* p = std::aligned_alloc(256, (bytes() + kTail + 255) / 256 * 256);
    if (p == nullptr) throw std::bad_alloc();
    std::memset(static_cast<char*>(p) + bytes(), kTailByte, kTail);
    simt::Forbid(static_cast<char*>(p) + bytes(), kTail);
    ASAN_POISON_MEMORY_REGION(static_cast<char*>(p) + bytes(), kTail);
    return static_cast<T*>(p);
  }
#endif

  std::size_t size_ = 0;
  T* data_ = nullptr;
};

}  // namespace penstock::kernels
