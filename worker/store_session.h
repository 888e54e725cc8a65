// SPDX-License-Identifier: Apache-2.0
// Between what the coordinator says of the store (rpc/session_client.h) and a worker's part in it.
// Pure functions; any thread.
#pragma once

#include <vector>

#include "base/key.h"
#include "base/loss_class.h"
#include "base/store_load.h"
#include "engine/kv_pool.h"
#include "kvstore/client/fetcher.h"
#include "rpc/session_client.h"
#include "worker/store_part.h"

namespace penstock::worker {

std::vector<kvstore::Fetcher::Source> SourcesOf(const std::vector<rpc::BlockSource>& sources);
kvstore::StoreAddress AddressOf(const rpc::StoreCommand& command);
// Null: it has no part.
std::vector<FetchRate> FetchRatesOf(const StorePart* part);
// Copies that may be fetched.
std::vector<CodecLoss> CodecsOf(const StorePart::Options& options);
// How the blocks of a pool are known in the store. Layouts alone are read.
std::vector<StoredGroup> GroupsOf(const engine::KvPool& pool, const LossSpaces& spaces);

}  // namespace penstock::worker
