// SPDX-License-Identifier: Apache-2.0
// Between messages of penstock.v1.Store and what the node has. Checked here, once: INVALID_ARGUMENT
// names the field, its value and the limits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "base/copy_event.h"
#include "base/key.h"
#include "kvstore/node/store_chores.h"
#include "kvstore/node/store_node.h"
#include "penstock/v1/store.pb.h"

namespace penstock::kvstore {

inline constexpr std::size_t kNamesMax = 4096;        // Of one request.
inline constexpr std::size_t kListChainsMax = 65536;  // Of one List.

// Which copies a List is of. All names with the prefix follow `begin`, in one run.
struct ListFilter {
  std::optional<Tier> tier = {};
  bool pinned = false;
  std::uint64_t most = UINT64_MAX;
  CopyName begin = {};            // The prefix, and zeros.
  std::size_t prefix_digits = 0;  // Hex.
  absl::flat_hash_set<Chain> chains = {};

  bool HasPrefix(const CopyName& name) const;
  bool Wants(const TierSet::Listed& listed) const;
};

absl::StatusOr<ListFilter> FromProto(const v1::ListRequest& request);
absl::StatusOr<std::vector<CopyName>> NamesFromProto(std::string_view names);
void ToProto(const TierSet::Listed& listed, v1::ListResponse::Copy* copy);
void ToProto(const StoreChores::Sum& sum, v1::VerifyResponse* response);
// On the node's loop. All but how long it is up.
void ToProto(StoreNode& node, v1::StatResponse* response);

}  // namespace penstock::kvstore
