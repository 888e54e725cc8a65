// SPDX-License-Identifier: Apache-2.0
#include "worker/store_session.h"

namespace penstock::worker {

std::vector<kvstore::Fetcher::Source> SourcesOf(const std::vector<rpc::BlockSource>& sources) {
  std::vector<kvstore::Fetcher::Source> all;
  for (const rpc::BlockSource& source : sources) {
    all.push_back({.store = {{source.store, source.transfer_epoch}, source.transfer_address},
                   .first_block = source.first_block,
                   .end_block = source.end_block,
                   .loss = source.loss,
                   .within = source.compute_within,
                   .fetch_time = source.fetch_time});
  }
  return all;
}

kvstore::StoreAddress AddressOf(const rpc::StoreCommand& command) {
  return {{command.name, command.transfer_epoch}, command.transfer_address};
}

std::vector<FetchRate> FetchRatesOf(const StorePart* part) {
  return part == nullptr ? std::vector<FetchRate>() : part->rates();
}

std::vector<CodecLoss> CodecsOf(const StorePart::Options& options) {
  std::vector<CodecLoss> codecs;
  for (const kvstore::Keeper::Form& form : options.fetched) {
    codecs.push_back({static_cast<std::uint8_t>(form.codec), form.loss});
  }
  return codecs;
}

std::vector<StoredGroup> GroupsOf(const engine::KvPool& pool, const LossSpaces& spaces) {
  std::vector<StoredGroup> groups;
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    const PageLayout& layout = pool.layout(g);
    StoredGroup group = {.window_tokens = static_cast<std::uint32_t>(layout.group.window_tokens),
                         .block_bytes = layout.block_bytes()};
    for (std::size_t i = 0; i < kLossClasses; ++i) {
      group.copy_spaces[i] =
          CopySpaceOf(spaces, static_cast<std::uint32_t>(g), static_cast<LossClass>(i));
    }
    groups.push_back(group);
  }
  return groups;
}

}  // namespace penstock::worker
