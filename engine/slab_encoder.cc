// SPDX-License-Identifier: Apache-2.0
#include "engine/slab_encoder.h"

#include <algorithm>
#include <utility>

#include "base/check_ok.h"
#include "base/status.h"

namespace penstock::engine {
namespace {

// Of the largest block there is, each way; each begins where any alignment is met.
struct RoomSizes {
  std::size_t encoding = 0;
  std::size_t decoding = 0;
};
RoomSizes SizesOf(std::span<const PageLayout> layouts) {
  RoomSizes sizes;
  const auto round_up = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
  for (const PageLayout& layout : layouts) {
    if (!kernels::OpsEncode(layout)) continue;
    sizes.encoding = std::max(sizes.encoding, round_up(kernels::EncodedBlockBytesMax(layout)));
    sizes.decoding = std::max(sizes.decoding, round_up(kernels::EncodedBytesMax(layout)));
  }
  return sizes;
}

}  // namespace

std::size_t SlabEncoder::RoomBytes(std::span<const PageLayout> layouts) {
  const RoomSizes sizes = SizesOf(layouts);
  return kRooms * sizes.encoding + sizes.decoding;
}

absl::StatusOr<std::unique_ptr<SlabEncoder>> SlabEncoder::Make(
    Device& device, kernels::Ops& ops, HostSlabs& slabs, std::span<const PageLayout> layouts) {
  std::unique_ptr<SlabEncoder> encoder(new SlabEncoder(ops, slabs));
  if (RoomBytes(layouts) == 0) return encoder;  // It takes no block.
  Rooms& rooms = *encoder->rooms_;
  ASSIGN_OR_RETURN(rooms.memory, device.Allocate(RoomBytes(layouts)));
  std::byte* at = rooms.memory->data();
  for (Room& room : rooms.all) {
    room.begin = at;
    at += SizesOf(layouts).encoding;
  }
  rooms.decoding = at;
  return encoder;
}

SlabEncoder::Room* SlabEncoder::TakeRoom() {
  const std::lock_guard lock(rooms_->mutex);
  Room* const room = std::ranges::find(rooms_->all, false, &Room::lent);
  if (room == std::end(rooms_->all)) return nullptr;
  room->lent = true;
  return room;
}

void SlabEncoder::GiveBack(Rooms& rooms, Room& room) {
  const std::lock_guard lock(rooms.mutex);
  room.lent = false;
}

SlabEncoder::Room* SlabEncoder::EncodeInRoom(const PageLayout& layout, const std::byte* slab,
                                             const kernels::KvEncoding& encoding) {
  if (!kernels::OpsEncode(layout)) return nullptr;
  Room* const room = TakeRoom();
  if (room != nullptr) ops_.EncodeBlock(encoding, layout, slab, room->begin);
  return room;
}

SlabEncoder::Bytes SlabEncoder::Encode(const PageLayout& layout, const std::byte* slab,
                                       const kernels::KvEncoding& encoding) {
  Room* const room = EncodeInRoom(layout, slab, encoding);
  if (room == nullptr) return nullptr;
  const std::size_t bytes = kernels::EncodedBlockBytes(encoding, layout);
  const auto encoded = std::make_shared_for_overwrite<std::byte[]>(bytes);
  slabs_.Bring(encoded.get(), room->begin, bytes,
               [rooms = rooms_, room, encoded] { GiveBack(*rooms, *room); });
  return encoded;
}

SlabEncoder::Bytes SlabEncoder::EncodeNow(const PageLayout& layout, const std::byte* slab,
                                          const kernels::KvEncoding& encoding) {
  Room* const room = EncodeInRoom(layout, slab, encoding);
  if (room == nullptr) return nullptr;
  const std::size_t bytes = kernels::EncodedBlockBytes(encoding, layout);
  const auto encoded = std::make_shared_for_overwrite<std::byte[]>(bytes);
  ops_.stream().Copy(encoded.get(), room->begin, bytes);
  CHECK_OK(ops_.stream().Synchronize());
  GiveBack(*rooms_, *room);
  return encoded;
}

void SlabEncoder::Decode(const PageLayout& layout, std::byte* slab,
                         std::shared_ptr<const kernels::EncodedBlock> encoded) {
  CHECK(kernels::OpsEncode(layout));
  const std::span<const std::byte> bytes = encoded->bytes;
  CHECK_LE(bytes.size(), kernels::EncodedBytesMax(layout));
  slabs_.Send(
      rooms_->decoding, bytes,
      [&ops = ops_, layout, slab, rooms = rooms_, encoded](Stream& stream) {
        ops.DecodeBlock(encoded->encoding, layout, {rooms->decoding, encoded->bytes.size()}, slab,
                        stream);
      },
      nullptr);
}

}  // namespace penstock::engine
