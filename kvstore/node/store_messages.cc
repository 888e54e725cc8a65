// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_messages.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "transfer/wire.h"

namespace penstock::kvstore {
namespace {

using transfer::SegmentId;
using transfer::WireReader;
using transfer::WireWriter;

// Of the types, as the variant lists them, from 1.
constexpr std::size_t kTypes = std::variant_size_v<StoreMessage>;

template <typename Tag>
void Put(WireWriter& out, const Digest128<Tag>& digest) {
  out.Bytes(std::as_bytes(std::span(digest.bytes)));
}

template <typename Digest>
Digest GetDigest(WireReader& in) {
  Digest digest;
  const std::span<const std::byte> bytes = in.Bytes(digest.bytes.size());
  std::ranges::copy(bytes, std::as_writable_bytes(std::span(digest.bytes)).begin());
  return digest;
}

void Put(WireWriter& out, const std::vector<Chain>& chains) {
  CHECK_LE(chains.size(), kChainsMax);
  out.Number(static_cast<std::uint32_t>(chains.size()));
  for (const Chain& chain : chains) Put(out, chain);
}

absl::StatusOr<std::vector<Chain>> GetChains(WireReader& in) {
  const auto count = in.Number<std::uint32_t>();
  RETURN_IF_ERROR(CheckRange("chains of a store message", std::int64_t{count}, 1,
                             static_cast<std::int64_t>(std::min(kChainsMax, in.left() / 16))));
  std::vector<Chain> chains;
  chains.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) chains.push_back(GetDigest<Chain>(in));
  return chains;
}

void Put(WireWriter& out, const std::vector<std::byte>& header) {
  CHECK_LE(header.size(), kHeaderBytesMax);
  out.Number(static_cast<std::uint32_t>(header.size()));
  out.Bytes(header);
}

absl::StatusOr<std::vector<std::byte>> GetHeader(WireReader& in) {
  const auto bytes = in.Number<std::uint32_t>();
  RETURN_IF_ERROR(CheckRange("header bytes of a store message", std::int64_t{bytes}, 1,
                             static_cast<std::int64_t>(std::min(kHeaderBytesMax, in.left()))));
  const std::span<const std::byte> header = in.Bytes(bytes);
  return std::vector<std::byte>(header.begin(), header.end());
}

void Put(WireWriter& out, const absl::Status& status) {
  out.Number(static_cast<std::uint8_t>(status.code()));
  const absl::string_view message = status.message();
  out.Text(std::string_view(message.data(), std::min(message.size(), kReasonBytesMax)));
}

// Not a StatusOr of one, which would take its own errors for values.
absl::Status GetStatus(WireReader& in, absl::Status& status) {
  const auto code = in.Number<std::uint8_t>();
  RETURN_IF_ERROR(CheckRange("code of a store message", int{code}, 0, 16));
  const std::string text = in.Text();
  RETURN_IF_ERROR(CheckRange("bytes of a store message's reason",
                             static_cast<std::int64_t>(text.size()), 0,
                             code == 0 ? 0 : static_cast<std::int64_t>(kReasonBytesMax)));
  status = absl::Status(static_cast<absl::StatusCode>(code), text);
  return absl::OkStatus();
}

void PutBody(const AskMessage& m, WireWriter& out) {
  out.Number(m.id);
  Put(out, m.space);
  Put(out, m.chains);
}

void PutBody(const WantMessage& m, WireWriter& out) {
  CHECK_LE(m.wanted.size(), kChainsMax);
  out.Number(m.id);
  out.Number(static_cast<std::uint32_t>(m.wanted.size()));
  for (std::size_t begin = 0; begin < m.wanted.size(); begin += 8) {
    std::uint8_t bits = 0;
    for (std::size_t i = begin; i < std::min(begin + 8, m.wanted.size()); ++i) {
      bits = static_cast<std::uint8_t>(bits | (m.wanted[i] ? 1u << (i - begin) : 0u));
    }
    out.Number(bits);
  }
}

void PutBody(const OfferMessage& m, WireWriter& out) {
  out.Number(m.id);
  Put(out, m.key.space);
  Put(out, m.key.chain);
  out.Number(static_cast<std::uint8_t>(m.parent.has_value()));
  Put(out, m.parent.value_or(Chain()));
  out.Number(m.tenant);
  out.Number(m.tokens_before);
  out.Number(static_cast<std::uint32_t>(m.segment));
  out.Number(m.offset);
  Put(out, m.header);
}

void PutBody(const TakenMessage& m, WireWriter& out) {
  out.Number(m.id);
  Put(out, m.status);
}

void PutBody(const FindMessage& m, WireWriter& out) {
  out.Number(m.id);
  out.Number(m.within_ms);
  out.Number(static_cast<std::uint8_t>(m.backwards));
  Put(out, m.space);
  Put(out, m.chains);
}

void PutBody(const FoundMessage& m, WireWriter& out) {
  out.Number(m.id);
  out.Number(m.index);
  out.Number(static_cast<std::uint8_t>(m.tier));
  out.Number(m.waited_us);
  out.Number(static_cast<std::uint32_t>(m.segment));
  out.Number(m.offset);
  out.Number(m.generation_offset);
  out.Number(m.generation);
  out.Number(m.lease_ms);
  out.Number(static_cast<std::uint8_t>(m.may_keep));
  Put(out, m.header);
}

void PutBody(const MissingMessage& m, WireWriter& out) {
  out.Number(m.id);
  out.Number(m.index);
  Put(out, m.status);
}

void PutBody(const ReleaseMessage& m, WireWriter& out) {
  out.Number(m.id);
  out.Number(m.count);
}

void PutBody(const RenewMessage& m, WireWriter& out) { out.Number(m.id); }

void PutBody(const KeepMessage& m, WireWriter& out) {
  out.Number(m.id);
  out.Number(m.count);
}

void PutBody(const DropMessage& m, WireWriter& out) {
  out.Number(m.id);
  out.Number(static_cast<std::uint32_t>(m.indices.size()));
  for (const std::uint32_t index : m.indices) out.Number(index);
}

void PutBody(const LostMessage& m, WireWriter& out) {
  out.Number(m.id);
  out.Number(m.index);
}

absl::StatusOr<StoreMessage> GetAsk(WireReader& in) {
  AskMessage m;
  m.id = in.Number<std::uint64_t>();
  m.space = GetDigest<Namespace>(in);
  ASSIGN_OR_RETURN(m.chains, GetChains(in));
  return m;
}

absl::StatusOr<StoreMessage> GetWant(WireReader& in) {
  WantMessage m;
  m.id = in.Number<std::uint64_t>();
  const auto count = in.Number<std::uint32_t>();
  RETURN_IF_ERROR(CheckRange("copies of a want message", std::int64_t{count}, 1,
                             static_cast<std::int64_t>(std::min(kChainsMax, in.left() * 8))));
  std::uint8_t bits = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (i % 8 == 0) bits = in.Number<std::uint8_t>();
    m.wanted.push_back((bits & 1) != 0);
    bits = static_cast<std::uint8_t>(bits >> 1);
  }
  RETURN_IF_ERROR(CheckRange("bits behind those of a want message", int{bits}, 0, 0));
  return m;
}

absl::StatusOr<StoreMessage> GetOffer(WireReader& in) {
  OfferMessage m;
  m.id = in.Number<std::uint64_t>();
  m.key.space = GetDigest<Namespace>(in);
  m.key.chain = GetDigest<Chain>(in);
  const auto parents = in.Number<std::uint8_t>();
  RETURN_IF_ERROR(CheckRange("parents of an offer message", int{parents}, 0, 1));
  const auto parent = GetDigest<Chain>(in);
  if (parents == 0 && parent != Chain()) {
    return absl::InvalidArgumentError("an offer message names a parent, and says that it has none");
  }
  if (parents != 0) m.parent = parent;
  m.tenant = in.Number<std::uint32_t>();
  m.tokens_before = in.Number<std::uint32_t>();
  m.segment = SegmentId{in.Number<std::uint32_t>()};
  m.offset = in.Number<std::uint64_t>();
  ASSIGN_OR_RETURN(m.header, GetHeader(in));
  return m;
}

absl::StatusOr<StoreMessage> GetTaken(WireReader& in) {
  TakenMessage m;
  m.id = in.Number<std::uint64_t>();
  RETURN_IF_ERROR(GetStatus(in, m.status));
  return m;
}

absl::StatusOr<StoreMessage> GetFind(WireReader& in) {
  FindMessage m;
  m.id = in.Number<std::uint64_t>();
  m.within_ms = in.Number<std::uint32_t>();
  const auto backwards = in.Number<std::uint8_t>();
  RETURN_IF_ERROR(CheckRange("backwards of a find message", int{backwards}, 0, 1));
  m.backwards = backwards == 1;
  m.space = GetDigest<Namespace>(in);
  ASSIGN_OR_RETURN(m.chains, GetChains(in));
  return m;
}

absl::StatusOr<StoreMessage> GetFound(WireReader& in) {
  FoundMessage m;
  m.id = in.Number<std::uint64_t>();
  m.index = in.Number<std::uint32_t>();
  const auto tier = in.Number<std::uint8_t>();
  RETURN_IF_ERROR(CheckRange("tier of a found message", int{tier}, int{1}, int{kTiers - 1}));
  m.tier = static_cast<Tier>(tier);
  m.waited_us = in.Number<std::uint32_t>();
  m.segment = SegmentId{in.Number<std::uint32_t>()};
  m.offset = in.Number<std::uint64_t>();
  m.generation_offset = in.Number<std::uint64_t>();
  m.generation = in.Number<std::uint64_t>();
  m.lease_ms = in.Number<std::uint32_t>();
  const auto may_keep = in.Number<std::uint8_t>();
  RETURN_IF_ERROR(CheckRange("may_keep of a found message", int{may_keep}, 0, 1));
  m.may_keep = may_keep == 1;
  ASSIGN_OR_RETURN(m.header, GetHeader(in));
  return m;
}

absl::StatusOr<StoreMessage> GetMissing(WireReader& in) {
  MissingMessage m;
  m.id = in.Number<std::uint64_t>();
  m.index = in.Number<std::uint32_t>();
  RETURN_IF_ERROR(GetStatus(in, m.status));
  return m;
}

absl::StatusOr<StoreMessage> GetRelease(WireReader& in) {
  ReleaseMessage m;
  m.id = in.Number<std::uint64_t>();
  m.count = in.Number<std::uint32_t>();
  return m;
}

absl::StatusOr<StoreMessage> GetRenew(WireReader& in) {
  return RenewMessage{in.Number<std::uint64_t>()};
}

absl::StatusOr<StoreMessage> GetKeep(WireReader& in) {
  KeepMessage m;
  m.id = in.Number<std::uint64_t>();
  m.count = in.Number<std::uint32_t>();
  return m;
}

absl::StatusOr<StoreMessage> GetDrop(WireReader& in) {
  DropMessage m;
  m.id = in.Number<std::uint64_t>();
  const auto count = in.Number<std::uint32_t>();
  RETURN_IF_ERROR(CheckRange("copies of a drop message", std::int64_t{count}, 1,
                             static_cast<std::int64_t>(std::min(kChainsMax, in.left() / 4))));
  for (std::uint32_t i = 0; i < count; ++i) m.indices.push_back(in.Number<std::uint32_t>());
  return m;
}

absl::StatusOr<StoreMessage> GetLost(WireReader& in) {
  LostMessage m;
  m.id = in.Number<std::uint64_t>();
  m.index = in.Number<std::uint32_t>();
  return m;
}

}  // namespace

std::vector<std::byte> Encode(const StoreMessage& message) {
  std::vector<std::byte> bytes;
  WireWriter out(bytes);
  out.Number(static_cast<std::uint8_t>(message.index() + 1));
  std::visit([&](const auto& m) { PutBody(m, out); }, message);
  CHECK_LE(bytes.size(), transfer::Link::kMessageBytesMax);
  return bytes;
}

absl::StatusOr<StoreMessage> Decode(std::span<const std::byte> bytes) {
  using Get = absl::StatusOr<StoreMessage> (*)(WireReader&);
  constexpr Get kGets[] = {GetAsk,     GetWant,    GetOffer, GetTaken, GetFind, GetFound,
                           GetMissing, GetRelease, GetRenew, GetKeep,  GetDrop, GetLost};
  static_assert(std::size(kGets) == kTypes);
  WireReader in(bytes);
  const auto type = in.Number<std::uint8_t>();
  RETURN_IF_ERROR(CheckRange("type of a store message", int{type}, 1, static_cast<int>(kTypes)));
  ASSIGN_OR_RETURN(StoreMessage message, kGets[type - 1](in));
  if (in.ok() && in.left() == 0) return message;
  return absl::InvalidArgumentError(in.ok() ? absl::StrCat("a store message of ", bytes.size(),
                                                           " bytes has ", in.left(), " too many")
                                            : absl::StrCat("a store message of ", bytes.size(),
                                                           " bytes is too short for type ", type));
}

}  // namespace penstock::kvstore
