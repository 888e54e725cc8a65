// SPDX-License-Identifier: Apache-2.0
// The serving side of a link of kind nccl: packs the reads that the peer asked for into slots, in
// their order, and offers each slot when it is packed.
//
// On the loop, as its link, which carries frames and posts moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "transfer/nccl_copies.h"
#include "transfer/nccl_frames.h"
#include "transfer/nccl_ring.h"
#include "transfer/segment_table.h"
#include "transfer/serving_queue.h"

namespace penstock::transfer {

// What both sides of a link have it do.
class NcclWire {
 public:
  virtual ~NcclWire() = default;
  virtual void SendNccl(const NcclFrame& frame) = 0;
  virtual void SendEnd(std::uint64_t read, const absl::Status& status) = 0;  // FrameType::kEnd
};

class NcclOut {
 public:
  // Serves what `own` has on that GPU, which is `device`. `link`: as ServingQueue's.
  NcclOut(NcclWire& wire, const SegmentTable& own, std::size_t gpu, ServingBudget& link,
          CudaDevice& device, CopyUnitsFn copy_units)
      : wire_(wire), serving_(own, gpu, link), copies_(device, copy_units) {}

  // As ServingQueue's. In its turn a read is packed, or ends as its status says.
  absl::Status Serve(std::uint64_t id, ReadRequest request, std::size_t request_bytes) {
    return serving_.Serve(id, std::move(request), request_bytes);
  }
  void Cancel(std::uint64_t id) { serving_.Cancel(id); }
  // From here on nothing is loaded from that segment: waits for what is being packed.
  void DropSegment(SegmentId segment);

  // A communicator is open on both sides, or over: then all that is asked for ends here.
  void Attach(std::shared_ptr<NcclRing> ring);
  void Detach();

  // Whether something waits to be packed; and whether a copy is under way, to Advance soon.
  bool wants() const { return !serving_.empty(); }
  bool copying() const { return copies_.under_way() > 0; }
  bool idle() const { return serving_.empty() && offers_.empty(); }
  // Packs, as far as slots are free, and offers what is packed. INTERNAL: the GPU failed.
  absl::Status Advance();

  struct Offer {
    std::byte* data = nullptr;
    std::size_t bytes = 0;
  };
  // The reader's answer to the first offer without one: to be posted, or not. INVALID_ARGUMENT:
  // that is another number.
  absl::StatusOr<Offer> OnReady(std::uint64_t number);
  absl::Status OnSkip(std::uint64_t number);
  // The first that was posted has moved.
  void OnMoved();

 private:
  struct Packed {
    enum class State : std::uint8_t { kPacking, kOffered, kPosted, kDone } state{};
    std::size_t slot = 0;
    std::uint64_t number = 0;
    std::uint64_t read = 0;
    std::size_t bytes = 0;
  };
  absl::Status Pack();
  void OfferPacked(Packed& packed, Duration took);
  Packed* First(Packed::State state);
  absl::StatusOr<Packed*> Answered(std::uint64_t number);
  void Free(Packed& packed);

  NcclWire& wire_;
  ServingQueue serving_;
  std::shared_ptr<NcclRing> ring_;  // Null: there is no communicator. Shared with its owner.
  std::vector<std::size_t> free_;
  std::deque<Packed> offers_;  // By number.
  std::uint64_t next_number_ = 0;
  // The copies of an earlier communicator come first, and are nobody's.
  std::size_t orphans_ = 0;
  NcclCopies copies_;
};

}  // namespace penstock::transfer
