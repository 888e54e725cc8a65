// SPDX-License-Identifier: Apache-2.0
// Blocks of a pool in device memory, encoded by the device before they cross to the host: half of
// the bytes, or less, and none of the host's time. For copies with a loss, whose bytes are
// kernels/kv_encoding.h's.
//
// Owned by its pool, as which it is used: by the engine's thread alone.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>

#include "base/kv_spec.h"
#include "device/device.h"
#include "engine/host_slabs.h"
#include "kernels/ops.h"

namespace penstock::engine {

class SlabEncoder {
 public:
  // Of [EncodedBlockBytes].
  using Bytes = std::shared_ptr<const std::byte[]>;

  // `ops` are what writes the slabs of `slabs`, which are on its one device; all outlive this.
  SlabEncoder(Device& device, kernels::Ops& ops, HostSlabs& slabs)
      : device_(device), ops_(ops), slabs_(slabs), rooms_(std::make_shared<Rooms>()) {}

  // Encodes the slab behind all that the device was given so far, and copies what it becomes to the
  // host: the bytes are there when HostSlabs says so of the last copy, and until then the slab stays
  // as it is. Null, and nothing is done, for blocks that no device encodes (of int8, or of less than
  // 8 tokens), while all room for encoded blocks is taken, or where the device has no memory for it:
  // the host encodes.
  Bytes Encode(const PageLayout& layout, const std::byte* slab,
               const kernels::KvEncoding& encoding);
  // As Encode, but the bytes are there when it returns, ahead of all other copies.
  Bytes EncodeNow(const PageLayout& layout, const std::byte* slab,
                  const kernels::KvEncoding& encoding);

 private:
  // Device memory for an encoded block that is on its way to the host.
  struct Room {
    std::unique_ptr<DeviceMemory> memory;  // As large as was needed so far.
    bool lent = false;
  };
  struct Rooms {  // Shared with the copies, whose thread gives them back.
    std::mutex mutex;
    Room all[8];  // Guarded, but for the memory of those that are lent.
  };
  // With the slab's encoding, or null.
  Room* EncodeInRoom(const PageLayout& layout, const std::byte* slab,
                     const kernels::KvEncoding& encoding, std::size_t bytes);
  Room* TakeRoom(std::size_t bytes);
  static void GiveBack(Rooms& rooms, Room& room);

  Device& device_;
  kernels::Ops& ops_;
  HostSlabs& slabs_;
  const std::shared_ptr<Rooms> rooms_;
};

}  // namespace penstock::engine
