// SPDX-License-Identifier: Apache-2.0
#include "engine/slab_encoder.h"

#include <utility>

#include "base/check_ok.h"
#include "kernels/kv_encoding.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kBlockTokensMin = 8;  // Of Ops::EncodeBlock.

}  // namespace

SlabEncoder::Room* SlabEncoder::TakeRoom(std::size_t bytes) {
  const std::lock_guard lock(rooms_->mutex);
  const auto size = [](const Room& room) {
    return room.memory == nullptr ? 0 : room.memory->size_bytes();
  };
  Room* best = nullptr;  // Of those that are free, the largest.
  for (Room& room : rooms_->all) {
    if (!room.lent && (best == nullptr || size(room) > size(*best))) best = &room;
  }
  if (best == nullptr) return nullptr;
  if (size(*best) < bytes) {
    best->memory = nullptr;
    absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = device_.Allocate(bytes);
    if (!memory.ok()) return nullptr;
    best->memory = *std::move(memory);
  }
  best->lent = true;
  return best;
}

void SlabEncoder::GiveBack(Rooms& rooms, Room& room) {
  const std::lock_guard lock(rooms.mutex);
  room.lent = false;
}

SlabEncoder::Room* SlabEncoder::EncodeInRoom(const PageLayout& layout, const std::byte* slab,
                                             const kernels::KvEncoding& encoding,
                                             std::size_t bytes) {
  if (layout.group.dtype == KvDtype::kInt8 || layout.block_tokens < kBlockTokensMin) return nullptr;
  Room* const room = TakeRoom(bytes);
  if (room != nullptr) ops_.EncodeBlock(encoding, layout, slab, room->memory->data());
  return room;
}

SlabEncoder::Bytes SlabEncoder::Encode(const PageLayout& layout, const std::byte* slab,
                                       const kernels::KvEncoding& encoding) {
  const std::size_t bytes = kernels::EncodedBlockBytes(encoding, layout);
  Room* const room = EncodeInRoom(layout, slab, encoding, bytes);
  if (room == nullptr) return nullptr;
  const auto encoded = std::make_shared_for_overwrite<std::byte[]>(bytes);
  slabs_.Bring(encoded.get(), room->memory->data(), bytes,
               [rooms = rooms_, room, encoded] { GiveBack(*rooms, *room); });
  return encoded;
}

SlabEncoder::Bytes SlabEncoder::EncodeNow(const PageLayout& layout, const std::byte* slab,
                                          const kernels::KvEncoding& encoding) {
  const std::size_t bytes = kernels::EncodedBlockBytes(encoding, layout);
  Room* const room = EncodeInRoom(layout, slab, encoding, bytes);
  if (room == nullptr) return nullptr;
  const auto encoded = std::make_shared_for_overwrite<std::byte[]>(bytes);
  ops_.stream().Copy(encoded.get(), room->memory->data(), bytes);
  CHECK_OK(ops_.stream().Synchronize());
  GiveBack(*rooms_, *room);
  return encoded;
}

}  // namespace penstock::engine
