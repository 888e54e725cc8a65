// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "device/cuda_standin.h"
#include "device/nccl_standin_comm.h"

namespace penstock::nccl_standin {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{256} << 10;
constexpr int kTurnMs = 1;

enum class Step { kMoved, kWaits, kDone, kLost };

// As send or recv: kWaits when the socket has no room or nothing.
Step OfResult(ssize_t result) {
  if (result > 0) return Step::kMoved;
  if (result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
    return Step::kWaits;
  return Step::kLost;
}
Step SendAll(int fd, const void* data, std::size_t bytes) {  // Of a few bytes, which fit or do not.
  return OfResult(::send(fd, data, bytes, MSG_NOSIGNAL));
}

const Pair& PairOf(const Operation& op) {
  return op.comm->pairs[static_cast<std::size_t>(op.peer)];
}

Step StepSend(Operation& op, bool rendezvous, std::vector<std::byte>& piece) {
  const int fd = PairOf(op).to_peer.get();
  if (!op.met) {
    const Step step = SendAll(fd, &op.bytes, sizeof(op.bytes));
    op.met = step == Step::kMoved;
    return step;
  }
  if (!op.asked) {
    std::array<char, 64> bytes;
    const Step step = OfResult(::recv(fd, bytes.data(), rendezvous ? 1 : bytes.size(), 0));
    if (step == Step::kLost) return step;
    op.asked = step == Step::kMoved || !rendezvous;  // Else what came is only taken away.
    return op.asked ? Step::kMoved : step;
  }
  if (op.done == op.bytes) return Step::kDone;
  piece.resize(std::min<std::uint64_t>(op.bytes - op.done, kPieceBytes));
  {
    const cuda_standin::Work work;
    std::memcpy(piece.data(), op.data + op.done, piece.size());
  }
  const ssize_t sent = ::send(fd, piece.data(), piece.size(), MSG_NOSIGNAL);
  if (sent > 0) op.done += static_cast<std::uint64_t>(sent);
  return OfResult(sent);
}

Step StepReceive(Operation& op, std::vector<std::byte>& piece) {
  const int fd = PairOf(op).from_peer.get();
  if (!op.asked) {
    const char byte = 1;
    const Step step = SendAll(fd, &byte, 1);
    op.asked = step == Step::kMoved;
    return step;
  }
  if (!op.met) {
    std::uint64_t bytes = 0;
    const Step step = OfResult(::recv(fd, &bytes, sizeof(bytes), 0));
    op.met = step == Step::kMoved;
    if (op.met && bytes != op.bytes) {
      Fault("a receive of " + std::to_string(op.bytes) + " bytes meets a send of " +
            std::to_string(bytes));
      op.comm->state = ncclInvalidUsage;
      return Step::kLost;
    }
    return step;
  }
  if (op.done == op.bytes) return Step::kDone;
  piece.resize(std::min<std::uint64_t>(op.bytes - op.done, kPieceBytes));
  const ssize_t got = ::recv(fd, piece.data(), piece.size(), 0);
  if (got > 0) {
    const cuda_standin::Work work;
    std::memcpy(op.data + op.done, piece.data(), static_cast<std::size_t>(got));
    op.done += static_cast<std::uint64_t>(got);
  }
  return OfResult(got);
}

void Rest(const ncclComm& comm, bool lost) {
  if (lost) return (void)::poll(nullptr, 0, kTurnMs);
  std::vector<pollfd> wait;
  for (const Pair& pair : comm.pairs) {  // One of no rank has no sockets: poll passes over it.
    wait.push_back({pair.to_peer.get(), 0, 0});
    wait.push_back({pair.from_peer.get(), POLLIN, 0});
  }
  (void)::poll(wait.data(), wait.size(), kTurnMs);
}

}  // namespace

void RunGroup(const std::vector<std::shared_ptr<Operation>>& group) {
  Faults faults;
  {
    const std::lock_guard lock(The().mutex);
    faults = The().faults;
  }
  std::vector<std::byte> piece;
  bool lost = false;
  ncclComm& comm = *group.front()->comm;
  for (const auto& op : group) {
    if (op->from == nullptr) continue;
    const cuda_standin::Work work;
    std::memmove(op->data, op->from, op->bytes);
    op->done = op->bytes;
  }
  while (!comm.abort) {
    bool moved = false, waits = false;
    // Of each direction with each peer, the first that is not done.
    std::vector<bool> had(2 * comm.pairs.size());
    for (const auto& op : group) {
      if (op->from != nullptr) continue;
      const std::size_t way = 2 * static_cast<std::size_t>(op->peer) + (op->send ? 1 : 0);
      if (lost || had[way]) continue;
      const Step step =
          op->send ? StepSend(*op, faults.rendezvous, piece) : StepReceive(*op, piece);
      if (step == Step::kDone) continue;
      had[way] = true;
      moved = moved || step == Step::kMoved;
      waits = true;
      lost = step == Step::kLost;
    }
    if (lost && !faults.silent_death) {
      int success = ncclSuccess;
      comm.state.compare_exchange_strong(success, ncclRemoteError);
    }
    if (!lost && !waits) break;
    if (!moved) Rest(comm, lost);
  }
  --comm.groups_running;
}

}  // namespace penstock::nccl_standin
