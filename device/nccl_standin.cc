// SPDX-License-Identifier: Apache-2.0
#include "device/nccl_standin.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string_view>
#include <utility>

#include "device/cuda_standin.h"
#include "device/nccl_standin_comm.h"
#include "device/standin_words.h"

namespace penstock::nccl_standin {
namespace {

void SetFault(Faults& faults, std::string_view word) {
  const std::size_t equals = word.find('=');
  int value = 1;
  if (equals != std::string_view::npos) value = std::atoi(word.data() + equals + 1);
  const std::string_view name = word.substr(0, equals);
  if (name == "rendezvous") {
    faults.rendezvous = true;
  } else if (name == "silent_death") {
    faults.silent_death = true;
  } else if (name == "init_error") {
    faults.init_error = value;
  } else if (name == "group_end_error") {
    faults.group_end_error = value;
  } else if (name == "abort_hangs") {
    faults.abort_hangs = true;
  } else {  // A test that plants it would test nothing.
    std::fprintf(stderr, "PENSTOCK_NCCL_FAULTS: there is no fault '%.*s'\n",
                 static_cast<int>(name.size()), name.data());
    std::abort();
  }
}

}  // namespace

Faults FaultsOfEnvironment() {
  Faults faults;
  ForEachWord("PENSTOCK_NCCL_FAULTS", [&](std::string_view word) { SetFault(faults, word); });
  return faults;
}

State& The() {
  static State state;
  return state;
}
void Fault(const std::string& text) {
  const std::lock_guard lock(The().mutex);
  The().counts.last_fault = text;
}
void Set(const Faults& faults) {
  {
    const std::lock_guard lock(The().mutex);
    The().faults = faults;
  }
  The().changed.notify_all();
}
Counts Now() {
  const std::lock_guard lock(The().mutex);
  return The().counts;
}

namespace {

constexpr char kMagic[] = "penstock-nccl-";
constexpr std::byte kUndefined{0xDB};
constexpr int kTurnMs = 1;

thread_local int t_depth = 0;
thread_local std::vector<std::shared_ptr<Operation>> t_group;

Faults FaultsNow() {
  const std::lock_guard lock(The().mutex);
  return The().faults;
}
void Count(std::int64_t Counts::*what, std::int64_t change) {
  const std::lock_guard lock(The().mutex);
  The().counts.*what += change;
}
ncclResult_t Misuse(const char* text) {
  Count(&Counts::misuses, 1);
  Fault(text);
  return ncclInvalidUsage;
}

// One call of a communicator.
class Caller {
 public:
  explicit Caller(ncclComm_t comm) : comm_(comm) {
    if (comm_->callers.fetch_add(1) != 0) (void)Misuse("two threads use one communicator");
  }
  ~Caller() { --comm_->callers; }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

 private:
  const ncclComm_t comm_;
};

void Init(ncclComm_t comm) {
  std::vector<Pair> pairs(static_cast<std::size_t>(comm->ranks));
  bool met = true;
  // In this order nobody waits for one who waits for him.
  for (int peer = 0; peer < comm->ranks; ++peer) {
    if (peer == comm->rank) continue;
    Pair& pair = pairs[static_cast<std::size_t>(peer)];
    pair = Meet(comm->id, comm->rank, peer, comm->abort);
    met = met && pair.to_peer && pair.from_peer;
    if (comm->abort) return;
  }
  const int error = FaultsNow().init_error;
  comm->pairs = std::move(pairs);
  comm->ready = error == 0 && met;
  comm->state = error != 0 ? error : comm->ready ? ncclSuccess : ncclSystemError;
}

ncclResult_t Usable(ncclComm_t comm) {
  if (comm == nullptr) return ncclInvalidArgument;
  const int state = comm->state;
  if (state == ncclInProgress) return Misuse("the communicator is not done with its last call");
  if (cuda_standin::ErrorOf(comm->gpu) != 0) return ncclUnhandledCudaError;
  return static_cast<ncclResult_t>(state);
}

bool OfDevice(const void* data, std::size_t bytes) {
  if (cuda_standin::IsDevice(data, bytes)) return true;
  Fault("the buffer is not of the device");
  return false;
}

ncclResult_t Move(bool send, void* data, std::size_t count, ncclDataType_t type, int peer,
                  ncclComm_t comm, cudaStream_t stream) {
  if (const ncclResult_t result = Usable(comm); result != ncclSuccess) return result;
  const Caller caller(comm);
  if (type != ncclUint8 || peer < 0 || peer >= comm->ranks || peer == comm->rank || t_depth == 0) {
    return ncclInvalidArgument;
  }
  if (!OfDevice(data, count)) return ncclInvalidArgument;
  t_group.push_back(std::make_shared<Operation>(Operation{.send = send,
                                                          .peer = peer,
                                                          .data = static_cast<std::byte*>(data),
                                                          .bytes = count,
                                                          .comm = comm,
                                                          .stream = stream}));
  return ncclSuccess;
}

// The own part to every other rank, and theirs from them.
ncclResult_t Gather(const std::byte* data, std::byte* all, std::size_t bytes, ncclComm_t comm,
                    cudaStream_t stream) {
  if (const ncclResult_t result = Usable(comm); result != ncclSuccess) return result;
  if (!OfDevice(data, bytes) || !OfDevice(all, bytes * static_cast<std::size_t>(comm->ranks))) {
    return ncclInvalidArgument;
  }
  (void)ncclGroupStart();
  for (int peer = 0; peer < comm->ranks; ++peer) {
    std::byte* const part = all + static_cast<std::size_t>(peer) * bytes;
    if (peer != comm->rank) {
      (void)Move(true, const_cast<std::byte*>(data), bytes, ncclUint8, peer, comm, stream);
      (void)Move(false, part, bytes, ncclUint8, peer, comm, stream);
    } else if (part != data) {
      t_group.push_back(std::make_shared<Operation>(
          Operation{.from = data, .data = part, .bytes = bytes, .comm = comm, .stream = stream}));
    }
  }
  return ncclGroupEnd();
}

void Launch(ncclComm_t comm) {
  auto group = std::exchange(comm->launching, {});
  if (comm->groups_running == 0) comm->received.clear();
  for (const auto& op : group) {
    if (!op->send && op->from == nullptr) comm->received.push_back(op);
  }
  ++comm->groups_running;
  Count(&Counts::groups, 1);
  cudaStream_t const stream = group.front()->stream;
  cuda_standin::Enqueue(stream, [group = std::move(group)] { RunGroup(group); });
}

// What a kernel or a network may still have written.
void Undefine(const std::vector<std::shared_ptr<Operation>>& received) {
  for (const auto& op : received) {
    if (op->done == op->bytes || !cuda_standin::IsDevice(op->data, op->bytes)) continue;
    const cuda_standin::Work work;
    std::memset(op->data, static_cast<int>(kUndefined), op->bytes);
  }
}

}  // namespace
}  // namespace penstock::nccl_standin

using penstock::nccl_standin::Caller;
using penstock::nccl_standin::Count;
using penstock::nccl_standin::Counts;
using penstock::nccl_standin::FaultsNow;
using penstock::nccl_standin::Gather;
using penstock::nccl_standin::Init;
using penstock::nccl_standin::kMagic;
using penstock::nccl_standin::kTurnMs;
using penstock::nccl_standin::Launch;
using penstock::nccl_standin::Move;
using penstock::nccl_standin::t_depth;
using penstock::nccl_standin::t_group;
using penstock::nccl_standin::The;
using penstock::nccl_standin::Undefine;
using penstock::nccl_standin::Usable;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<std::uint64_t> made = 0;
  std::random_device random;
  const std::string text = kMagic + std::to_string(::getpid()) + "-" + std::to_string(++made) +
                           "-" + std::to_string(random());
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id, text.data(), text.size());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  *comm = nullptr;
  const std::string text(id.internal, ::strnlen(id.internal, sizeof(id.internal)));
  if (ranks < 2 || ranks > 64 || rank < 0 || rank >= ranks || config == nullptr ||
      config->magic != 0xcafebeef || config->blocking != 0 || !text.starts_with(kMagic) ||
      text.size() > 100) {
    return ncclInvalidArgument;
  }
  *comm = new ncclComm;
  (*comm)->rank = rank;
  (*comm)->ranks = ranks;
  (void)cudaGetDevice(&(*comm)->gpu);
  (*comm)->id = text;
  Count(&Counts::comms, 1);
  (*comm)->init = std::jthread([made = *comm] { Init(made); });
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  const Caller caller(comm);
  if (!comm->launching.empty() && --comm->questions_left == 0) {
    Launch(comm);
    int waiting = ncclInProgress;
    comm->state.compare_exchange_strong(waiting, ncclSuccess);
  }
  if (comm->ready) {
    const int planted = penstock::cuda_standin::TakeFault("nccl" + std::to_string(comm->gpu));
    if (planted != 0) comm->state = planted;
  }
  *error = static_cast<ncclResult_t>(comm->state.load());
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  Count(&Counts::aborts, 1);
  comm->abort = true;
  if (comm->init.joinable()) comm->init.join();
  while (comm->groups_running > 0) (void)::poll(nullptr, 0, kTurnMs);
  {
    std::unique_lock lock(The().mutex);
    The().changed.wait(lock, [] { return !The().faults.abort_hangs; });
  }
  Undefine(comm->received);
  delete comm;
  Count(&Counts::comms, -1);
  return ncclSuccess;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void* data, std::size_t bytes,
                              void** registration) {
  if (const ncclResult_t result = Usable(comm); result != ncclSuccess) return result;
  if (!penstock::cuda_standin::IsDevice(data, bytes)) return ncclInvalidArgument;
  *registration = data;
  Count(&Counts::registrations, 1);
  return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void*) {
  if (comm == nullptr) return ncclInvalidArgument;
  Count(&Counts::registrations, -1);
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++t_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (t_depth == 0) return ncclInvalidUsage;
  if (--t_depth > 0) return ncclSuccess;
  auto group = std::exchange(t_group, {});
  if (group.empty()) return ncclSuccess;
  ncclComm_t const comm = group.front()->comm;
  if (const int error = FaultsNow().group_end_error; error != 0) {
    comm->state = error;
    return static_cast<ncclResult_t>(error);
  }
  for (const auto& op : group) {  // All that the program asks for in one.
    if (op->comm != comm || op->stream != group.front()->stream) return ncclInvalidUsage;
  }
  comm->launching = std::move(group);
  comm->questions_left = 2;
  comm->state = ncclInProgress;
  return ncclInProgress;
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return Move(true, const_cast<void*>(data), count, type, peer, comm, stream);
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return Move(false, data, count, type, peer, comm, stream);
}

ncclResult_t ncclAllGather(const void* data, void* all, std::size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclUint8) return ncclInvalidArgument;
  return Gather(static_cast<const std::byte*>(data), static_cast<std::byte*>(all), count, comm,
                stream);
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "internal error";
  }
}
}
