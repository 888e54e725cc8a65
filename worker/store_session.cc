// SPDX-License-Identifier: Apache-2.0
#include "worker/store_session.h"

namespace penstock::worker {

std::vector<kvstore::Fetcher::Source> SourcesOf(const std::vector<rpc::BlockSource>& sources) {
  std::vector<kvstore::Fetcher::Source> all;
  for (const rpc::BlockSource& source : sources) {
    all.push_back({.store = {{source.store, source.transfer_epoch}, source.transfer_address},
                   .first_block = source.first_block,
                   .end_block = source.end_block,
                   .within = source.compute_within});
  }
  return all;
}

kvstore::StoreAddress AddressOf(const rpc::StoreCommand& command) {
  return {{command.name, command.transfer_epoch}, command.transfer_address};
}

std::vector<FetchRate> FetchRatesOf(const StorePart* part) {
  std::vector<FetchRate> rates;
  if (part == nullptr) return rates;
  for (const StorePart::Rate& rate : part->rates()) {
    rates.push_back({rate.store, rate.tier, rate.bytes_per_s});
  }
  return rates;
}

std::vector<rpc::WorkerRegistration::KvGroup> GroupsOf(const engine::KvPool& pool,
                                                       const Namespace& space) {
  std::vector<rpc::WorkerRegistration::KvGroup> groups;
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    const PageLayout& layout = pool.layout(g);
    groups.push_back({.copy_space = CopySpace(space, static_cast<std::uint32_t>(g),
                                              ToString(kvstore::LossClass::kExact)),
                      .window_tokens = layout.group.window_tokens,
                      .block_bytes = layout.block_bytes()});
  }
  return groups;
}

}  // namespace penstock::worker
