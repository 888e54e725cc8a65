// SPDX-License-Identifier: Apache-2.0
// A stand-in for the part of cudart that the program uses, for tests without a GPU: linked in its
// place, it offers the same C functions over memory of the host. Work runs before the call returns,
// but for what stand-ins of other libraries Enqueue: that goes on afterwards, on a thread of its
// stream. Until it has ended, events recorded behind it are not ready; who synchronizes, or puts a
// copy or an emulated kernel behind it, waits.
//
// "Device" memory can be touched from the first piece of work on until a stream is synchronized: a
// host that reads a device address afterwards dies by SIGSEGV. Pinned memory that a copy was asked
// to read must not change before its stream is synchronized (a GPU would read it later): if it did,
// that Synchronize fails with cudaErrorUnknown.
//
// A stream may be captured into a graph (device/cuda_standin_graph.h).
//
// Any thread: what they ask for is done one after another. GPUs share the memory, but a stream or
// event used while the thread's GPU is another one is refused, as cudart does; a copy of memory that
// a lost GPU had allocated, and a wait for its event, fail with that GPU's error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct CUstream_st;  // What cudaStream_t points to.

namespace penstock::cuda_standin {

// How the machine is; what is not said is well. Errors are cudaError_t.
struct Machine {
  int driver_version = 13000;  // 0: there is no driver.
  int device_count_error = 0;  // Of cudaGetDeviceCount.
  int devices = 2;
  int compute_major = 9;
  std::size_t memory_bytes = std::size_t{1} << 30;  // Taken from the host as it is touched.
  std::int64_t synchronizes = -1;  // So many go well, then the GPU is lost; below 0: all.
  bool graphs = true;              // Streams can be captured.
  int lost_error = 719;            // cudaErrorLaunchFailure: of every call from then on.
  int lost_gpu = -1;               // Which one; below 0: all.
  bool full = false;               // No more memory is to be had.
  int full_gpu = -1;               // Of which one; below 0: all.
  int hung_gpu = -1;               // One that never answers cudaMemGetInfo, while it is this one.
  bool unlike = false;             // GPUs with odd numbers are of another model.
  // A folder: whoever finds a file there, with a cudaError_t in it, takes it away, and has lost a GPU
  // to this error; with 2, cudaErrorMemoryAllocation, it is full.
  //   gpu1    GPU 1, found at a synchronize or an allocation on it
  //   asked1  GPU 1, found at a cudaMemGetInfo on it
  //   peer1   GPU 1, found where another one copies its memory or waits for its event
  // Files of other names are those of who asks TakeFault. Empty: none.
  std::string faults = {};
};
// A process begins with what PENSTOCK_CUDA_MACHINE says (device/cuda_standin_machine.h).
// Replaces the machine and forgets all memory, of which there must be none in use.
void Reset(const Machine& machine);
// The same, leaving memory as it is.
void Change(const Machine& machine);

struct Counts {
  std::int64_t device_bytes = 0;  // In use.
  std::int64_t pinned_bytes = 0;
  std::int64_t streams = 0;
  std::int64_t events = 0;
  std::int64_t copies = 0;         // Ever.
  std::int64_t bytes_to_host = 0;  // That those brought from a device.
  std::int64_t synchronizes = 0;
  std::int64_t graphs = 0;          // In use.
  std::int64_t graph_launches = 0;  // By this process.
};
Counts Now();

// Puts work behind all that is on the stream; it must end some day, and touches device memory
// inside a Work only.
void Enqueue(CUstream_st* stream, std::function<void()> work);
// Until all that was so put on the stream has ended.
void Await(CUstream_st* stream);
// The number in the file of this name in Machine::faults, which is taken away; 0: there is none.
int TakeFault(const std::string& name);
// Of every call for this GPU, a cudaError_t; 0: it is well.
int ErrorOf(int gpu);
// Whether all of these bytes lie in one piece of device memory that is in use.
bool IsDevice(const void* data, std::size_t bytes);

// For who runs emulated kernels: while it lives there is work, of this thread alone.
class Work {
 public:
  Work();
  ~Work();
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
};

}  // namespace penstock::cuda_standin
