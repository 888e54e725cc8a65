// SPDX-License-Identifier: Apache-2.0
// The communicators of one GPU: two ranks each, made when a pair first needs one, at most so many,
// each with a staging ring (nccl_ring.h). One thread issues all calls of NCCL, and asks how they
// go; nobody else waits for NCCL. Each wait has a deadline: a communicator that misses one, or has
// an error, is over, and is aborted by a thread of its own. If an abort misses its deadline too,
// the GPU counts as unhealthy from then on: nothing new is begun, and the process should be started
// again.
//
//   state     event                                        next
//   waiting   there are fewer than comms_max               opening
//   opening   NCCL is done: OnOpen                         open
//   waiting, opening, open
//             deadline, error, the Comm destroyed          aborting; OnBroken, but for the last
//   aborting  the abort has returned                       gone; its ring is free for another
//
// Where comms_max are there and one more is wanted, the one that moved nothing for longest is asked
// to yield: its link gives it up if it is idle; a read that is asked for at that very moment ends
// as UNAVAILABLE. What it costs: at most comms_max rings of 2 * slots * slot_bytes on the GPU, made
// when they are first needed and kept for the next communicator, and what NCCL takes, some 6 MB per
// CTA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "device/cuda_device.h"
#include "device/nccl_api.h"
#include "transfer/nccl_ring.h"

namespace penstock::transfer {

// Any thread may ask for health; all else on the loops of those who use it. Outlives its Comms.
class NcclComms {
 public:
  struct Options {
    CopyUnitsFn copy_units = nullptr;  // Null: the plug-in's, which must have kernels (CHECKed).
    std::size_t comms_max = 16;        // Those that are being aborted count.
    std::size_t slots = 4;             // Each way.
    std::size_t slot_bytes = std::size_t{4} << 20;
    int ctas_max = 4;  // What one communicator's kernels take of the GPU at most.
    Duration open_max = std::chrono::seconds(20);  // For a place to be free, and for both to join.
    Duration move_max = std::chrono::seconds(5);   // For a slot, once those before it have moved.
    Duration abort_max = std::chrono::seconds(30);
  };
  // On the loop that was given with it; none once the Comm is destroyed.
  class Events {
   public:
    virtual ~Events() = default;
    virtual void OnId(const NcclId& id) = 0;  // Of rank 0: what the other side must Join.
    // The ring is this communicator's, and of no other as long as somebody has it.
    virtual void OnOpen(std::shared_ptr<NcclRing> ring) = 0;
    // Once for each Move, in order; `took` on the GPU.
    virtual void OnMoved(Duration took) = 0;
    virtual void
    OnYield() = 0;  // Another waits for a communicator; destroy this one if it is idle.
    // The last. UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, or INTERNAL: the GPU failed.
    virtual void OnBroken(const absl::Status& status) = 0;
  };
  // Destroying it ends the communicator.
  class Comm {
   public:
    virtual ~Comm() = default;
    // Sends from, or receives into, that memory of its ring. Both sides ask for theirs in the same
    // order, and no side before the other can, too.
    virtual void Move(bool send, std::byte* data, std::size_t bytes) = 0;
  };

  // `device` outlives this. UNIMPLEMENTED: its plug-in has no NCCL, with the reason.
  static absl::StatusOr<std::unique_ptr<NcclComms>> Make(CudaDevice& device,
                                                         const Options& options);
  // Waits for aborts under way until their deadlines. One that has not returned then keeps its
  // thread and memory for as long as the process lives.
  virtual ~NcclComms() = default;

  // Begins a communicator as rank 0, or joins that of `id` as rank 1. `loop` outlives the Comm.
  virtual std::unique_ptr<Comm> Open(Loop& loop, Events& events, std::optional<NcclId> id) = 0;

  // INTERNAL: an abort did not return, or the GPU failed; it stays so.
  virtual absl::Status health() const = 0;
  virtual void SetUnhealthy(const absl::Status& status) = 0;
  // Of NCCL and of the slots, equal at both ends of every link: "2.28.9, slots of 4194304 bytes".
  virtual std::string release() const = 0;
  virtual const Options& options() const = 0;
  virtual CudaDevice& device() const = 0;

  struct Load {
    std::size_t comms = 0;  // Opening, open and aborting.
    std::size_t aborting = 0;
    std::size_t waiting = 0;
    std::size_t rings = 0;  // Made, in use or not.
  };
  virtual Load load() const = 0;
};

}  // namespace penstock::transfer
