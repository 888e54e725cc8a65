// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_proto_service.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "rpc/convert.h"

namespace penstock::kvstore {
namespace {

constexpr std::size_t kNameBytes = sizeof(CopyName::bytes);

std::optional<unsigned> HexDigit(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
  return std::nullopt;
}

unsigned DigitOf(const CopyName& name, std::size_t digit) {
  const unsigned byte = name.bytes[digit / 2];
  return digit % 2 == 0 ? byte >> 4 : byte & 15;
}

std::string NameBytes(const BlockKey& key) {
  const CopyName name = NameOf(key);
  return {name.bytes.begin(), name.bytes.end()};
}

}  // namespace

bool ListFilter::HasPrefix(const CopyName& name) const {
  for (std::size_t i = 0; i < prefix_digits; ++i) {
    if (DigitOf(name, i) != DigitOf(begin, i)) return false;
  }
  return true;
}

bool ListFilter::Wants(const TierSet::Listed& listed) const {
  if (pinned && !listed.pinned) return false;
  if (!chains.empty() && !chains.contains(listed.copy.key.chain)) return false;
  if (!tier.has_value()) return true;
  return *tier == Tier::kHost ? listed.host : *tier == Tier::kDisk ? listed.disk : listed.remote;
}

absl::StatusOr<ListFilter> FromProto(const v1::ListRequest& request) {
  ListFilter filter;
  if (request.tier() != v1::TIER_UNSPECIFIED) {
    ASSIGN_OR_RETURN(filter.tier, rpc::FromProto("tier", request.tier()));
    if (filter.tier == Tier::kDevice) {
      return absl::InvalidArgumentError("tier must be host, disk or remote, got device");
    }
  }
  filter.pinned = request.pinned();
  if (request.most() > 0) filter.most = request.most();
  const std::string& prefix = request.prefix();
  RETURN_IF_ERROR(
      CheckRange("length of prefix", static_cast<std::int64_t>(prefix.size()), 0, 2 * kNameBytes));
  filter.prefix_digits = prefix.size();
  for (std::size_t i = 0; i < prefix.size(); ++i) {
    const std::optional<unsigned> digit = HexDigit(prefix[i]);
    if (!digit.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("prefix must be hex digits; byte ", i, " is none"));
    }
    filter.begin.bytes[i / 2] |= static_cast<std::uint8_t>(*digit << (i % 2 == 0 ? 4 : 0));
  }
  RETURN_IF_ERROR(CheckRange("bytes of chains", static_cast<std::int64_t>(request.chains().size()),
                             0, static_cast<std::int64_t>(kListChainsMax * sizeof(Chain::bytes))));
  ASSIGN_OR_RETURN(const std::vector<Chain> chains, rpc::ChainsFromProto(request.chains()));
  filter.chains.insert(chains.begin(), chains.end());
  return filter;
}

absl::StatusOr<std::vector<CopyName>> NamesFromProto(std::string_view bytes) {
  if (bytes.size() % kNameBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("names must be ", kNameBytes, " bytes each, got ", bytes.size(), " bytes"));
  }
  RETURN_IF_ERROR(
      CheckRange("names", static_cast<std::int64_t>(bytes.size() / kNameBytes), 1, kNamesMax));
  std::vector<CopyName> names(bytes.size() / kNameBytes);
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::memcpy(names[i].bytes.data(), bytes.data() + i * kNameBytes, kNameBytes);
  }
  return names;
}

void ToProto(const TierSet::Listed& listed, v1::ListResponse::Copy* copy) {
  copy->set_name(NameBytes(listed.copy.key));
  copy->set_host(listed.host);
  copy->set_disk(listed.disk);
  copy->set_remote(listed.remote);
  copy->set_pinned(listed.pinned);
  copy->set_codec(listed.copy.codec);
  copy->set_bytes(listed.copy.bytes);
  copy->set_tokens_before(listed.copy.tokens_before);
  copy->set_tenant(listed.copy.tenant);
  if (listed.copy.parent.has_value()) copy->set_parent(NameBytes(*listed.copy.parent));
}

void ToProto(const StoreChores::Sum& sum, v1::VerifyResponse* response) {
  response->set_copies(sum.copies);
  response->set_bytes(sum.bytes);
  response->set_damaged(sum.damaged);
  response->set_unread(sum.unread);
  response->set_copies_max(std::max(sum.copies, sum.copies_max));
}

void ToProto(StoreNode& node, v1::StatResponse* response) {
  TierSet& tiers = node.tiers();
  response->set_name(node.options().endpoint.self.name);
  response->set_transfer_address(node.transfer_address());
  response->set_pid(static_cast<std::uint64_t>(::getpid()));
  const auto add = [&](Tier tier) {
    const TierSet::TierStats& stats = tiers.stats(tier);
    v1::StatResponse::TierStat* const row = response->add_tiers();
    row->set_tier(static_cast<v1::Tier>(tier));
    row->set_hits(stats.hits);
    row->set_misses(stats.misses);
    row->set_bytes_hit(stats.bytes_hit);
    row->set_evicted(stats.evicted);
    row->set_refused(stats.refused);
    row->set_damaged(stats.damaged);
    row->set_late(stats.late);
    row->set_bytes_per_s(stats.bytes_per_s);
    return row;
  };
  const HostTier::Stats host = tiers.host().stats();
  v1::StatResponse::TierStat* row = add(Tier::kHost);
  row->set_bytes(host.bytes);
  row->set_bytes_max(host.bytes_max);
  row->set_copies(host.copies);
  row->set_policy(node.options().host.policy);
  if (tiers.disk() != nullptr) {
    const DiskTier::Stats disk = tiers.disk()->stats();
    row = add(Tier::kDisk);
    row->set_bytes(disk.bytes_live);
    row->set_bytes_max(disk.bytes_live_max);
    row->set_copies(disk.blocks);
    row->set_policy(node.options().tiers.disk_policy);
    row->set_place(node.options().disk_directory);
  }
  if (tiers.remote() != nullptr) {
    row = add(Tier::kRemote);
    row->set_copies(tiers.remote_known());
    row->set_place(absl::StrCat(node.options().remote.address,
                                tiers.remote()->stats().connected ? "" : " (does not answer)"));
  }
  const StoreServer::Stats& server = node.server().stats();
  response->set_puts(server.puts);
  response->set_puts_refused(server.puts_refused);
  response->set_finds(server.finds);
  response->set_peers(node.server().peers());
  response->set_leases(host.leases);
  response->set_copies_pinned(tiers.pinned());
  response->set_copies(tiers.copies());
  for (const TierSet::TenantBytes& tenant : tiers.tenants()) {
    v1::StatResponse::TenantStat* const of = response->add_tenants();
    of->set_tenant(tenant.tenant);
    of->set_quota(tenant.quota);
    of->set_host_bytes(tenant.host);
    of->set_disk_bytes(tenant.disk);
  }
}

}  // namespace penstock::kvstore
