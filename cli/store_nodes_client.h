// SPDX-License-Identifier: Apache-2.0
// The store nodes of a cluster, as an operator asks them: found through the coordinator. Calls block;
// one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "penstock/v1/store.grpc.pb.h"

namespace penstock::cli {

class StoreNode {
 public:
  StoreNode(std::string name, const std::string& endpoint);
  const std::string& name() const { return name_; }

  // Errors name the node and where it should be.
  absl::StatusOr<v1::StatResponse> Stat();
  absl::Status List(const v1::ListRequest& request,
                    const std::function<void(const v1::ListResponse::Copy& copy)>& on_copy);
  // Of any number of names, 16 bytes each. How many there were.
  absl::StatusOr<std::uint64_t> Pin(const std::string& names, bool unpin);
  absl::StatusOr<std::uint64_t> Delete(const std::string& names);
  absl::StatusOr<std::uint64_t> DeleteAll();
  absl::StatusOr<std::uint64_t> Flush();  // Bytes.
  absl::StatusOr<v1::VerifyResponse> Verify(
      const std::function<void(const v1::VerifyResponse& so_far)>& on_progress);

 private:
  absl::Status Named(const absl::Status& status) const;
  // In pieces of as many names as one request takes.
  absl::StatusOr<std::uint64_t> InPieces(
      const std::string& names,
      const std::function<absl::StatusOr<std::uint64_t>(const std::string& piece)>& ask);

  std::string name_;
  std::string endpoint_;
  std::unique_ptr<v1::Store::Stub> stub_;
};

struct StoreNodes {
  std::vector<StoreNode> nodes;
  std::vector<std::int32_t> block_tokens;  // Of the cluster's models: each that there is, once.
};
// All nodes, or the one of that name. NOT_FOUND: there is none, or none of that name (the others are
// named); what the coordinator says.
absl::StatusOr<StoreNodes> FindStoreNodes(const std::string& server, const std::string& name);

}  // namespace penstock::cli
