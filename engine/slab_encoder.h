// SPDX-License-Identifier: Apache-2.0
// Blocks of a pool in device memory, encoded by the device before they cross to the host, and decoded
// by it once they have come from there: fewer bytes, and next to none of the host's time. What they
// are encoded as is kernels/kv_encoding.h's.
//
// All device memory is had when this is made. Owned by its pool, as which it is used: by the engine's
// thread alone.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>

#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "device/device.h"
#include "engine/host_slabs.h"
#include "kernels/kv_encoding.h"
#include "kernels/ops.h"

namespace penstock::engine {

class SlabEncoder {
 public:
  // Of [EncodedBlockBytes].
  using Bytes = std::shared_ptr<const std::byte[]>;

  // Device memory for blocks of these layouts; 0 where no device encodes any of them.
  static std::size_t RoomBytes(std::span<const PageLayout> layouts);
  // `ops` are what writes the slabs of `slabs`, which are on its one device, of these layouts; all
  // outlive the result. RESOURCE_EXHAUSTED: the device has no memory for it.
  static absl::StatusOr<std::unique_ptr<SlabEncoder>> Make(Device& device, kernels::Ops& ops,
                                                           HostSlabs& slabs,
                                                           std::span<const PageLayout> layouts);

  // Encodes the slab behind all that the device was given so far, and copies what it becomes to the
  // host: the bytes are there when HostSlabs says so of the last copy, and until then the slab stays
  // as it is. Null, and nothing is done, for blocks that no device encodes (kernels::OpsEncode), and
  // while all room for encoded blocks is taken: the host encodes.
  Bytes Encode(const PageLayout& layout, const std::byte* slab,
               const kernels::KvEncoding& encoding);
  // As Encode, but the bytes are there when it returns, ahead of all other copies.
  Bytes EncodeNow(const PageLayout& layout, const std::byte* slab,
                  const kernels::KvEncoding& encoding);
  // Brings `encoded` to the device and has it decoded into the slab, which nobody else has any use
  // for: it is there when HostSlabs says so of the last copy. OpsEncode takes the layout.
  void Decode(const PageLayout& layout, std::byte* slab,
              std::shared_ptr<const kernels::EncodedBlock> encoded);

 private:
  static constexpr std::size_t kRooms = 8;
  // Of device memory, for an encoded block that is on its way to the host.
  struct Room {
    std::byte* begin = nullptr;
    bool lent = false;
  };
  struct Rooms {  // Shared with the copies, whose thread gives them back.
    std::unique_ptr<DeviceMemory> memory;
    std::byte* decoding = nullptr;  // For a block that is to be decoded: they come one at a time.
    std::mutex mutex;               // Guards `all`.
    Room all[kRooms];
  };
  SlabEncoder(kernels::Ops& ops, HostSlabs& slabs)
      : ops_(ops), slabs_(slabs), rooms_(std::make_shared<Rooms>()) {}
  // With the slab's encoding, or null.
  Room* EncodeInRoom(const PageLayout& layout, const std::byte* slab,
                     const kernels::KvEncoding& encoding);
  Room* TakeRoom();
  static void GiveBack(Rooms& rooms, Room& room);

  kernels::Ops& ops_;
  HostSlabs& slabs_;
  const std::shared_ptr<Rooms> rooms_;
};

}  // namespace penstock::engine
