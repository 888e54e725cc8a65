// SPDX-License-Identifier: Apache-2.0
#include "cli/store_text_client.h"

#include <cstdint>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/copy_event.h"
#include "base/key.h"
#include "base/status.h"
#include "cli/text_table.h"
#include "kvstore/codecs/codec_id.h"

namespace penstock::cli {
namespace {

using nlohmann::ordered_json;

std::string TierName(v1::Tier tier) { return std::string(ToString(static_cast<Tier>(tier))); }

std::string TenantHex(std::uint32_t tenant) { return absl::StrFormat("%08x", tenant); }

std::string CodecName(std::uint32_t codec) {
  if (codec == 0) return "-";
  return std::string(ToString(static_cast<kvstore::CodecId>(codec)));
}

// "host+disk", the fastest first.
std::string TiersOf(const v1::ListResponse::Copy& copy) {
  std::string tiers;
  const auto add = [&](bool there, const char* name) {
    if (there) absl::StrAppend(&tiers, tiers.empty() ? "" : "+", name);
  };
  add(copy.host(), "host");
  add(copy.disk(), "disk");
  add(copy.remote(), "remote");
  return tiers;
}

// "-" where nothing was asked for.
std::string Share(std::uint64_t part, std::uint64_t all) {
  if (all == 0) return "-";
  return absl::StrFormat("%.1f %%", 100 * static_cast<double>(part) / static_cast<double>(all));
}

std::string OrDash(std::uint64_t bytes) { return bytes == 0 ? "-" : FormatBinaryBytes(bytes); }

std::uint64_t Gets(const v1::StatResponse& stat) {
  std::uint64_t gets = 0;
  for (const auto& tier : stat.tiers()) gets += tier.hits() + tier.misses();
  return gets;
}

// What tenants with a quota have; nothing where there are none.
std::string TenantText(const v1::StatResponse& stat) {
  if (stat.tenants().empty()) return "";
  std::vector<std::vector<std::string>> rows = {
      {"TENANT", "QUOTA", "HOST", "FULL", "DISK", "FULL"}};
  for (const auto& tenant : stat.tenants()) {
    rows.push_back(
        {TenantHex(tenant.tenant()), FormatBinaryBytes(tenant.quota()),
         FormatBinaryBytes(tenant.host_bytes()), Share(tenant.host_bytes(), tenant.quota()),
         FormatBinaryBytes(tenant.disk_bytes()), Share(tenant.disk_bytes(), tenant.quota())});
  }
  return TextTable(rows, 1);
}

constexpr const char* kCopyRow = "%-32s  %-16s  %-16s  %-6s  %9s  %-11s  %8s  %8s\n";

}  // namespace

std::string HexName(const std::string& name) {
  return ToHex(std::span(reinterpret_cast<const std::uint8_t*>(name.data()), name.size()));
}

std::string StatText(const v1::StatResponse& stat) {
  std::vector<std::vector<std::string>> rows = {
      {"TIER", "POLICY", "WHERE", "COPIES", "USED", "ROOM", "FULL", "HITS", "OF GETS", "HIT BYTES",
       "READ/s", "EVICTED", "REFUSED", "LATE", "DAMAGED"}};
  const std::uint64_t gets = Gets(stat);
  std::uint64_t misses = 0;
  for (const auto& tier : stat.tiers()) {
    misses += tier.misses();
    rows.push_back({TierName(tier.tier()), tier.policy().empty() ? "-" : tier.policy(),
                    tier.place().empty() ? "-" : tier.place(), absl::StrCat(tier.copies()),
                    tier.bytes_max() == 0 ? "-" : FormatBinaryBytes(tier.bytes()),
                    OrDash(tier.bytes_max()), Share(tier.bytes(), tier.bytes_max()),
                    absl::StrCat(tier.hits()), Share(tier.hits(), gets), OrDash(tier.bytes_hit()),
                    OrDash(static_cast<std::uint64_t>(tier.bytes_per_s())),
                    absl::StrCat(tier.evicted()), absl::StrCat(tier.refused()),
                    absl::StrCat(tier.late()), absl::StrCat(tier.damaged())});
  }
  return absl::StrCat(stat.name(), "  up ", FormatLongTime(stat.up().seconds()), ", pid ",
                      stat.pid(), ", ", stat.peers(), stat.peers() == 1 ? " peer" : " peers", "\n",
                      TextTable(rows, 3), stat.copies(), " copies, ", stat.copies_pinned(),
                      " pinned; ", gets, " gets, ", misses, " missed (", Share(misses, gets), "); ",
                      stat.finds(), " chains asked for; ", stat.puts(), " frames taken, ",
                      stat.puts_refused(), " not; ", stat.leases(), " leases\n", TenantText(stat));
}

ordered_json StatJson(const v1::StatResponse& stat) {
  ordered_json tiers = ordered_json::array();
  for (const auto& tier : stat.tiers()) {
    tiers.push_back({{"tier", TierName(tier.tier())},
                     {"policy", tier.policy()},
                     {"place", tier.place()},
                     {"copies", tier.copies()},
                     {"bytes", tier.bytes()},
                     {"bytes_max", tier.bytes_max()},
                     {"hits", tier.hits()},
                     {"misses", tier.misses()},
                     {"bytes_hit", tier.bytes_hit()},
                     {"bytes_per_s", tier.bytes_per_s()},
                     {"evicted", tier.evicted()},
                     {"refused", tier.refused()},
                     {"late", tier.late()},
                     {"damaged", tier.damaged()}});
  }
  ordered_json tenants = ordered_json::array();
  for (const auto& tenant : stat.tenants()) {
    tenants.push_back({{"tenant", TenantHex(tenant.tenant())},
                       {"quota", tenant.quota()},
                       {"host_bytes", tenant.host_bytes()},
                       {"disk_bytes", tenant.disk_bytes()}});
  }
  return {{"name", stat.name()},
          {"transfer_address", stat.transfer_address()},
          {"pid", stat.pid()},
          {"up_s", stat.up().seconds()},
          {"peers", stat.peers()},
          {"copies", stat.copies()},
          {"copies_pinned", stat.copies_pinned()},
          {"puts", stat.puts()},
          {"puts_refused", stat.puts_refused()},
          {"finds", stat.finds()},
          {"leases", stat.leases()},
          {"tiers", std::move(tiers)},
          {"tenants", std::move(tenants)}};
}

std::string CopyTextHead() {
  return absl::StrFormat(kCopyRow, "NAME", "NODE", "WHERE", "PINNED", "SIZE", "CODEC", "POSITION",
                         "TENANT");
}

std::string CopyText(const std::string& node, const v1::ListResponse::Copy& copy) {
  const bool known = copy.codec() != 0;
  return absl::StrFormat(kCopyRow, HexName(copy.name()), node, TiersOf(copy),
                         copy.pinned() ? "pinned" : "", FormatBinaryBytes(copy.bytes()),
                         CodecName(copy.codec()), known ? absl::StrCat(copy.tokens_before()) : "-",
                         TenantHex(copy.tenant()));
}

ordered_json CopyJson(const std::string& node, const v1::ListResponse::Copy& copy) {
  ordered_json tiers = ordered_json::array();
  if (copy.host()) tiers.push_back("host");
  if (copy.disk()) tiers.push_back("disk");
  if (copy.remote()) tiers.push_back("remote");
  ordered_json json = {{"name", HexName(copy.name())}, {"node", node},
                       {"tiers", std::move(tiers)},    {"pinned", copy.pinned()},
                       {"bytes", copy.bytes()},        {"tenant", TenantHex(copy.tenant())}};
  if (copy.codec() == 0) return json;  // What else is known of it is in its frame, not read yet.
  json["codec"] = CodecName(copy.codec());
  json["tokens_before"] = copy.tokens_before();
  if (!copy.parent().empty()) json["parent"] = HexName(copy.parent());
  return json;
}

std::string VerifyText(const std::string& node, const v1::VerifyResponse& sum) {
  std::string text = absl::StrCat(node, ": ", sum.copies(), " copies checked, ",
                                  FormatBinaryBytes(sum.bytes()), " read; ");
  if (sum.damaged() == 0) {
    absl::StrAppend(&text, "none damaged");
  } else {
    absl::StrAppend(&text, sum.damaged(), " damaged, and dropped");
  }
  if (sum.unread() > 0) absl::StrAppend(&text, "; ", sum.unread(), " could not be read");
  return text + "\n";
}

ordered_json VerifyJson(const std::string& node, const v1::VerifyResponse& sum) {
  return {{"node", node},
          {"copies", sum.copies()},
          {"bytes", sum.bytes()},
          {"damaged", sum.damaged()},
          {"unread", sum.unread()}};
}

}  // namespace penstock::cli
