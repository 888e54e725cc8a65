// SPDX-License-Identifier: Apache-2.0
#include "transfer/handoff_messages.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "base/device_name.h"
#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::transfer {
namespace {

enum class Type : std::uint8_t {
  kPool = 1,
  kReady = 2,
  kReceived = 3,
  kFailed = 4,
  kMapped = 5,
  kWanted = 6
};
constexpr std::int64_t kBlockNumberMax = 1 << 30;

class Writer {
 public:
  template <typename T>
  void Put(T value) {
    static_assert(std::is_integral_v<T>);
    PutBytes(&value, sizeof(value));
  }
  void Put(Type type) { Put(static_cast<std::uint8_t>(type)); }
  void Put(const Grant& grant) {
    Put(grant.epoch);
    Put(grant.number);
  }
  void Put(absl::string_view text) {
    Put(static_cast<std::uint16_t>(text.size()));
    PutBytes(text.data(), text.size());
  }
  // Of all so far.
  std::uint32_t Crc() const { return kernels::Crc32c(0, out_.data(), out_.size()); }
  std::vector<std::byte> Take() { return std::move(out_); }

 private:
  void PutBytes(const void* data, std::size_t size) {
    if (size == 0) return;
    const std::size_t at = out_.size();
    out_.resize(at + size);
    std::memcpy(out_.data() + at, data, size);
  }

  std::vector<std::byte> out_;
};

// Reads that run over the end give zeros and are found by End().
class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in), all_(in) {}

  template <typename T>
  T Get() {
    T value{};
    if (in_.size() < sizeof(value)) {
      short_ = true;
      in_ = {};
      return value;
    }
    std::memcpy(&value, in_.data(), sizeof(value));
    in_ = in_.subspan(sizeof(value));
    return value;
  }
  Grant GetGrant() {
    const auto epoch = Get<std::uint64_t>();
    return {.epoch = epoch, .number = Get<std::uint64_t>()};
  }
  std::string GetText(std::size_t most) {
    const std::size_t size = Get<std::uint16_t>();
    if (size > std::min(most, in_.size())) {
      short_ = true;
      return {};
    }
    const std::string text(reinterpret_cast<const char*>(in_.data()), size);
    in_ = in_.subspan(size);
    return text;
  }
  // A count of things of `bytes` each, of which there is room for so many.
  absl::StatusOr<std::size_t> GetCount(std::string_view field, std::size_t most,
                                       std::size_t bytes) {
    const auto count = static_cast<std::size_t>(Get<std::uint32_t>());
    RETURN_IF_ERROR(CheckRange(field, static_cast<std::int64_t>(count), 0,
                               static_cast<std::int64_t>(std::min(most, in_.size() / bytes))));
    return count;
  }
  // Of all so far.
  std::uint32_t Crc() const { return kernels::Crc32c(0, all_.data(), all_.size() - in_.size()); }
  absl::Status End() const {
    if (!short_ && in_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        short_
            ? absl::StrCat("a handoff message of ", all_.size(), " bytes is too short for its type")
            : absl::StrCat("a handoff message of ", all_.size(), " bytes has ", in_.size(),
                           " too many"));
  }

 private:
  std::span<const std::byte> in_;
  const std::span<const std::byte> all_;
  bool short_ = false;
};

constexpr std::size_t kGroupBytes = 4 + 8 + 9 * 4 + 4;
constexpr std::size_t kPartBytes = 4 + 8 + 4 * 4;

void PutBody(const PoolMessage& message, Writer& out) {
  CHECK_LE(message.groups.size(), kGroupsMax);
  std::size_t parts = 0;
  for (const PoolGroup& g : message.groups) parts += g.parts.size();
  CHECK_LE(parts, kPartsMax);
  out.Put(Type::kPool);
  out.Put(static_cast<std::uint32_t>(message.groups.size()));
  for (const PoolGroup& g : message.groups) {
    const PageLayout& layout = g.side.layout;
    out.Put(static_cast<std::uint32_t>(g.segment));
    out.Put(g.slab_bytes);
    for (const std::int32_t field :
         {layout.block_tokens, layout.page_tokens, layout.group.window_tokens,
          layout.group.cache_layers, layout.group.kv_heads, layout.group.k_dim, layout.group.v_dim,
          static_cast<std::int32_t>(layout.group.dtype), g.side.head_begin}) {
      out.Put(field);
    }
    out.Put(static_cast<std::uint32_t>(g.parts.size()));
    for (const PoolPart& part : g.parts) {
      out.Put(static_cast<std::uint32_t>(part.segment));
      out.Put(part.slab_bytes);
      for (const std::int32_t field :
           {part.slab.first_layer, part.slab.layers, part.slab.head_begin, part.slab.kv_heads}) {
        out.Put(field);
      }
    }
  }
  out.Put(out.Crc());
}

// On the wire a checksum is mixed with whose block it is of: where a damaged message names another
// grant, layer, block or leg, it fits no bytes.
std::uint32_t PlaceOf(const ReadyMessage& message, std::size_t i, std::size_t leg) {
  std::uint64_t place = message.grant.epoch;
  for (const std::uint64_t field :
       {message.grant.number, static_cast<std::uint64_t>(message.group),
        static_cast<std::uint64_t>(message.cache_layer),
        static_cast<std::uint64_t>(message.lineage.loss),
        static_cast<std::uint64_t>(message.lineage.from),
        static_cast<std::uint64_t>(message.first_block) + i, std::uint64_t{leg}}) {
    place = (place ^ field) * 0x9e3779b97f4a7c15u;
    place ^= place >> 32;
  }
  return static_cast<std::uint32_t>(place);
}

void PutBody(const ReadyMessage& message, Writer& out) {
  const std::size_t legs = message.blocks.empty() ? 1 : message.blocks[0].crcs.size();
  CHECK(legs >= 1 && legs <= SplitPlan::kLegsMax);
  CHECK_LE(message.blocks.size(), BlocksMax(legs));
  out.Put(Type::kReady);
  out.Put(message.grant);
  out.Put(message.group);
  out.Put(message.cache_layer);
  out.Put(message.first_block);
  out.Put(static_cast<std::uint8_t>(message.lineage.loss));
  out.Put(message.lineage.from);
  out.Put(static_cast<std::uint8_t>(legs));
  out.Put(static_cast<std::uint32_t>(message.blocks.size()));
  for (std::size_t i = 0; i < message.blocks.size(); ++i) {
    const ReadyMessage::Block& block = message.blocks[i];
    CHECK_EQ(block.crcs.size(), legs);
    out.Put(block.slab);
    for (std::size_t leg = 0; leg < legs; ++leg) {
      out.Put(block.crcs[leg] ^ PlaceOf(message, i, leg));
    }
  }
}

template <typename Range>
void PutRange(Type type, const Range& message, Writer& out) {
  out.Put(type);
  out.Put(message.grant);
  out.Put(message.first_block);
  out.Put(message.end_block);
}
void PutBody(const MappedMessage& message, Writer& out) { PutRange(Type::kMapped, message, out); }
void PutBody(const WantedMessage& message, Writer& out) { PutRange(Type::kWanted, message, out); }

void PutBody(const ReceivedMessage& message, Writer& out) {
  out.Put(Type::kReceived);
  out.Put(message.grant);
}

void PutBody(const FailedMessage& message, Writer& out) {
  out.Put(Type::kFailed);
  out.Put(message.grant);
  out.Put(static_cast<std::uint8_t>(message.status.code()));
  out.Put(message.status.message().substr(0, kReasonBytesMax));
}

absl::StatusOr<PoolPart> GetPart(Reader& in, const SideLayout& whole) {
  PoolPart part;
  part.segment = SegmentId{in.Get<std::uint32_t>()};
  part.slab_bytes = in.Get<std::uint64_t>();
  SlabPart& slab = part.slab;
  slab.first_layer = in.Get<std::int32_t>();
  slab.layers = in.Get<std::int32_t>();
  slab.head_begin = in.Get<std::int32_t>();
  slab.kv_heads = in.Get<std::int32_t>();
  const KvGroup& group = whole.layout.group;
  RETURN_IF_ERROR(CheckRange("first layer of a part", slab.first_layer, 0, group.cache_layers));
  RETURN_IF_ERROR(
      CheckRange("layers of a part", slab.layers, 0, group.cache_layers - slab.first_layer));
  RETURN_IF_ERROR(CheckRange("head_begin of a part", slab.head_begin, whole.head_begin,
                             whole.head_begin + group.kv_heads - 1));
  RETURN_IF_ERROR(CheckRange("kv_heads of a part", slab.kv_heads, 1,
                             whole.head_begin + group.kv_heads - slab.head_begin));
  PageLayout own = whole.layout;
  own.group.cache_layers = slab.layers;
  own.group.kv_heads = slab.kv_heads;
  RETURN_IF_ERROR(CheckRange("slab_bytes of a part", static_cast<std::int64_t>(part.slab_bytes),
                             static_cast<std::int64_t>(own.block_bytes()), std::int64_t{1} << 40));
  return part;
}

absl::StatusOr<PoolGroup> GetGroup(Reader& in) {
  PoolGroup g;
  g.segment = SegmentId{in.Get<std::uint32_t>()};
  g.slab_bytes = in.Get<std::uint64_t>();
  const auto block_tokens = in.Get<std::int32_t>();
  const auto page_tokens = in.Get<std::int32_t>();
  KvGroup shape;
  shape.window_tokens = in.Get<std::int32_t>();
  shape.cache_layers = in.Get<std::int32_t>();
  shape.kv_heads = in.Get<std::int32_t>();
  shape.k_dim = in.Get<std::int32_t>();
  shape.v_dim = in.Get<std::int32_t>();
  const auto dtype = in.Get<std::int32_t>();
  RETURN_IF_ERROR(CheckRange("dtype", dtype, 0, static_cast<std::int64_t>(KvDtype::kInt8)));
  shape.dtype = static_cast<KvDtype>(dtype);
  g.side.head_begin = in.Get<std::int32_t>();
  // Products of these stay far below 64 bits.
  RETURN_IF_ERROR(CheckRange("head_begin", g.side.head_begin, 0, 1 << 16));
  RETURN_IF_ERROR(CheckRange("kv_heads", shape.kv_heads, 1, 1 << 16));
  RETURN_IF_ERROR(CheckRange("cache_layers", shape.cache_layers, 1, 1 << 16));
  ASSIGN_OR_RETURN(g.side.layout, PageLayout::Make(shape, block_tokens, page_tokens));
  RETURN_IF_ERROR(CheckRange("slab_bytes", static_cast<std::int64_t>(g.slab_bytes),
                             static_cast<std::int64_t>(g.side.layout.block_bytes()),
                             std::int64_t{1} << 40));
  ASSIGN_OR_RETURN(const std::size_t parts, in.GetCount("parts", kGpusMax, kPartBytes));
  for (std::size_t i = 0; i < parts; ++i) {
    ASSIGN_OR_RETURN(PoolPart part, GetPart(in, g.side));
    g.parts.push_back(part);
  }
  return g;
}

absl::StatusOr<HandoffMessage> GetPool(Reader& in) {
  PoolMessage message;
  ASSIGN_OR_RETURN(const std::size_t count, in.GetCount("groups", kGroupsMax, kGroupBytes));
  for (std::size_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(PoolGroup group, GetGroup(in));
    message.groups.push_back(std::move(group));
  }
  const std::uint32_t want = in.Crc();
  const auto crc = in.Get<std::uint32_t>();
  RETURN_IF_ERROR(in.End());
  if (crc != want) {
    return absl::InvalidArgumentError(
        absl::StrCat("the checksum of a pool message must be ", want, ", got ", crc));
  }
  return message;
}

absl::StatusOr<HandoffMessage> GetReady(Reader& in) {
  ReadyMessage message;
  message.grant = in.GetGrant();
  message.group = in.Get<std::int32_t>();
  message.cache_layer = in.Get<std::int32_t>();
  message.first_block = in.Get<std::int32_t>();
  const auto loss = in.Get<std::uint8_t>();
  message.lineage.from = in.Get<std::int32_t>();
  RETURN_IF_ERROR(CheckRange("loss class", loss, 0, kLossClasses - 1));
  RETURN_IF_ERROR(CheckRange("first block of that loss", message.lineage.from, 0, Lineage::kNever));
  message.lineage.loss = static_cast<LossClass>(loss);
  RETURN_IF_ERROR(CheckRange("group", message.group, 0, kGroupsMax - 1));
  RETURN_IF_ERROR(CheckRange("cache_layer", message.cache_layer, 0, 1 << 20));
  RETURN_IF_ERROR(CheckRange("first_block", message.first_block, 0, kBlockNumberMax));
  const std::size_t legs = in.Get<std::uint8_t>();
  RETURN_IF_ERROR(
      CheckRange("legs", static_cast<std::int64_t>(legs), 1, std::int64_t{SplitPlan::kLegsMax}));
  ASSIGN_OR_RETURN(const std::size_t count, in.GetCount("blocks", BlocksMax(legs), 4 + 4 * legs));
  // Legs are those of its blocks.
  if (count == 0) RETURN_IF_ERROR(CheckRange("legs of no blocks", std::int64_t(legs), 1, 1));
  for (std::size_t i = 0; i < count; ++i) {
    ReadyMessage::Block& block = message.blocks.emplace_back();
    block.slab = in.Get<std::uint32_t>();
    block.crcs.resize(legs);
    for (std::size_t leg = 0; leg < legs; ++leg) {
      block.crcs[leg] = in.Get<std::uint32_t>() ^ PlaceOf(message, i, leg);
    }
  }
  RETURN_IF_ERROR(in.End());
  return message;
}

template <typename Range>
absl::StatusOr<HandoffMessage> GetRange(Reader& in) {
  Range message;
  message.grant = in.GetGrant();
  message.first_block = in.Get<std::int32_t>();
  message.end_block = in.Get<std::int32_t>();
  RETURN_IF_ERROR(in.End());
  RETURN_IF_ERROR(CheckRange("first_block", message.first_block, 0, kBlockNumberMax));
  RETURN_IF_ERROR(CheckRange("end_block", message.end_block, std::int64_t{message.first_block} + 1,
                             kBlockNumberMax + 1));
  return message;
}

absl::StatusOr<HandoffMessage> GetFailed(Reader& in) {
  FailedMessage message;
  message.grant = in.GetGrant();
  const auto code = in.Get<std::uint8_t>();
  RETURN_IF_ERROR(CheckRange("code", code, 1, 16));
  const std::string reason = in.GetText(kReasonBytesMax);
  RETURN_IF_ERROR(in.End());
  message.status = absl::Status(static_cast<absl::StatusCode>(code), reason);
  return message;
}

}  // namespace

std::vector<SlabPart> PoolGroup::SlabParts() const {
  if (parts.empty()) return {WholeOf(side)};
  std::vector<SlabPart> slabs;
  for (const PoolPart& part : parts) slabs.push_back(part.slab);
  return slabs;
}

absl::Status CheckParts(std::span<const PoolGroup> groups, Kind kind) {
  if (kind == Kind::kNccl) return absl::OkStatus();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].parts.empty()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("group ", g, " of the pool lies in ", groups[g].parts.size(),
                     " parts, on a link of kind ", ToAbsl(ToString(kind))));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SplitPlan>> MakePlans(std::span<const PoolGroup> from,
                                                 std::span<const PoolGroup> to) {
  if (from.size() != to.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the pool of the sender of KV has ", from.size(),
                     " groups of layers, that of the receiver ", to.size()));
  }
  std::vector<SplitPlan> plans;
  for (std::size_t g = 0; g < from.size(); ++g) {
    ASSIGN_OR_RETURN(SplitPlan plan, SplitPlan::Make(from[g].side, from[g].SlabParts(), to[g].side,
                                                     to[g].SlabParts()));
    plans.push_back(std::move(plan));
  }
  return plans;
}

MappedMessage Hull(const std::optional<MappedMessage>& before, const MappedMessage& mapped) {
  if (!before.has_value()) return mapped;
  return {mapped.grant, std::min(before->first_block, mapped.first_block),
          std::max(before->end_block, mapped.end_block)};
}

std::vector<std::byte> Encode(const HandoffMessage& message) {
  Writer out;
  std::visit([&](const auto& m) { PutBody(m, out); }, message);
  return out.Take();
}

absl::StatusOr<HandoffMessage> Decode(std::span<const std::byte> bytes) {
  Reader in(bytes);
  const auto type = in.Get<std::uint8_t>();
  switch (static_cast<Type>(type)) {
    case Type::kPool:
      return GetPool(in);
    case Type::kReady:
      return GetReady(in);
    case Type::kReceived: {
      const ReceivedMessage message{in.GetGrant()};
      RETURN_IF_ERROR(in.End());
      return message;
    }
    case Type::kFailed:
      return GetFailed(in);
    case Type::kMapped:
      return GetRange<MappedMessage>(in);
    case Type::kWanted:
      return GetRange<WantedMessage>(in);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("type of a handoff message must be from 1 to 6, got ", type));
}

}  // namespace penstock::transfer
