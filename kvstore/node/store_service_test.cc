// SPDX-License-Identifier: Apache-2.0
// A node's service for operators over gRPC, and the chores behind it.
#include "kvstore/node/store_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <string>

#include "device/cpu_device.h"
#include "grpcpp/grpcpp.h"
#include "kvstore/node/store_chores.h"
#include "kvstore/node/store_node.h"
#include "kvstore/node/tier_set_testing.h"
#include "penstock/v1/store.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/convert.h"
#include "rpc/server.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

constexpr std::int32_t kCopies = 600;  // More than one message of List.

std::string NameOfBlock(const Chain& chain) {
  const CopyName name = NameOf(TestCopyKey(chain));
  return {name.bytes.begin(), name.bytes.end()};
}

class StoreServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    StoreNode::Options options;
    options.endpoint.self = {.name = "node", .epoch = 1};
    options.endpoint.kinds = {transfer::Kind::kTcp};
    options.host_bytes = std::uint64_t{16} << 20;
    options.tiers.quotas = {{7, 123456}};
    node_ = StoreNode::Start(*device_, options).value();
    service_ = MakeStoreService(*node_);
    server_ = rpc::Server::Start({}, {service_.get()}).value();
    stub_ = v1::Store::NewStub(rpc::MakeChannel(server_->address()));
    node_->loop().Run([this] {
      for (std::int32_t i = 0; i < kCopies; ++i) {
        const std::uint32_t tenant = i < 3 ? 7 : 0;
        ASSERT_TRUE(PutBlock(node_->tiers(), chains_, i, tenant).ok()) << i;
      }
    });
  }

  struct Listed {
    grpc::Status status;
    std::vector<v1::ListResponse::Copy> copies;
    int messages = 0;
  };
  Listed List(const v1::ListRequest& request) {
    Listed listed;
    grpc::ClientContext context;
    const auto reader = stub_->List(&context, request);
    for (v1::ListResponse response; reader->Read(&response); ++listed.messages) {
      listed.copies.insert(listed.copies.end(), response.copies().begin(), response.copies().end());
    }
    listed.status = reader->Finish();
    return listed;
  }
  // How many changed; -1: an error.
  int Pin(const std::string& names, bool unpin = false) {
    grpc::ClientContext context;
    v1::PinRequest request;
    request.set_names(names);
    request.set_unpin(unpin);
    v1::PinResponse response;
    status_ = stub_->Pin(&context, request, &response);
    return status_.ok() ? static_cast<int>(response.changed()) : -1;
  }
  int Delete(const std::string& names, bool all = false) {
    grpc::ClientContext context;
    v1::DeleteRequest request;
    request.set_names(names);
    request.set_all(all);
    v1::DeleteResponse response;
    status_ = stub_->Delete(&context, request, &response);
    return status_.ok() ? static_cast<int>(response.deleted()) : -1;
  }
  v1::VerifyResponse Verify() {
    grpc::ClientContext context;
    const auto reader = stub_->Verify(&context, {});
    v1::VerifyResponse last;
    for (v1::VerifyResponse response; reader->Read(&response);) {
      EXPECT_GE(response.copies(), last.copies());
      last = response;
    }
    EXPECT_TRUE(reader->Finish().ok());
    return last;
  }
  v1::StatResponse Stat() {
    grpc::ClientContext context;
    v1::StatResponse stat;
    EXPECT_TRUE(stub_->Stat(&context, {}, &stat).ok());
    return stat;
  }

  const std::vector<Chain> chains_ = TestChains(1, kCopies);
  const std::unique_ptr<CpuDevice> device_ = CpuDevice::Make({.threads = 1}).value();
  std::unique_ptr<StoreNode> node_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<v1::Store::Stub> stub_;
  grpc::Status status_;
};

TEST_F(StoreServiceTest, ListsAllCopiesInPiecesByName) {
  const Listed all = List({});
  ASSERT_TRUE(all.status.ok());
  ASSERT_EQ(all.copies.size(), static_cast<std::size_t>(kCopies));
  EXPECT_GT(all.messages, 1);
  EXPECT_TRUE(std::ranges::is_sorted(all.copies, {}, [](const auto& copy) { return copy.name(); }));
  std::set<std::string> want;
  for (const Chain& chain : chains_) want.insert(NameOfBlock(chain));
  for (const auto& copy : all.copies) {
    EXPECT_EQ(want.erase(copy.name()), 1u);
    EXPECT_TRUE(copy.host());
    EXPECT_FALSE(copy.disk() || copy.remote() || copy.pinned());
    EXPECT_EQ(copy.bytes(), kTestFrameBytes);
    EXPECT_EQ(copy.codec(), static_cast<std::uint32_t>(CodecId::kRaw));
  }
  const auto second = std::ranges::find(all.copies, NameOfBlock(chains_[1]),
                                        [](const auto& copy) { return copy.name(); });
  ASSERT_NE(second, all.copies.end());
  EXPECT_EQ(second->parent(), NameOfBlock(chains_[0]));
  EXPECT_EQ(second->tokens_before(), 8u);
  EXPECT_EQ(second->tenant(), 7u);
}

TEST_F(StoreServiceTest, ListsWhatIsAskedForAlone) {
  ASSERT_EQ(Pin(NameOfBlock(chains_[5]) + NameOfBlock(chains_[6])), 2);
  struct Case {
    const char* name;
    std::function<void(v1::ListRequest& request)> ask;
    std::size_t copies;
  };
  const std::string five = NameOfBlock(chains_[5]);
  const std::string digits =
      ToHex(std::span(reinterpret_cast<const std::uint8_t*>(five.data()), five.size()));
  std::string upper = digits.substr(0, 20);
  std::ranges::transform(upper, upper.begin(),
                         [](char c) { return static_cast<char>(toupper(c)); });
  for (const Case& c : {
           Case{"most", [](auto& r) { r.set_most(17); }, 17},
           Case{"more than there are", [](auto& r) { r.set_most(10000); }, 600},
           Case{"host", [](auto& r) { r.set_tier(v1::TIER_HOST); }, 600},
           Case{"disk", [](auto& r) { r.set_tier(v1::TIER_DISK); }, 0},
           Case{"pinned", [](auto& r) { r.set_pinned(true); }, 2},
           Case{"a name", [&](auto& r) { r.set_prefix(digits); }, 1},
           Case{"its first digits", [&](auto& r) { r.set_prefix(upper); }, 1},
           Case{"no name", [&](auto& r) { r.set_prefix(std::string(31, '0')); }, 0},
           Case{"blocks",
                [&](auto& r) {
                  r.set_chains(rpc::ChainsToProto(std::span(chains_).first(9)) +
                               rpc::ChainsToProto(TestChains(2, 3)));
                },
                9},
           Case{"blocks that are pinned",
                [&](auto& r) {
                  r.set_chains(rpc::ChainsToProto(std::span(chains_).first(6)));
                  r.set_pinned(true);
                },
                1},
       }) {
    SCOPED_TRACE(c.name);
    v1::ListRequest request;
    c.ask(request);
    const Listed listed = List(request);
    EXPECT_TRUE(listed.status.ok());
    EXPECT_EQ(listed.copies.size(), c.copies);
  }
}

TEST_F(StoreServiceTest, WhatCannotBeIsRefused) {
  struct Case {
    std::function<void(v1::ListRequest& request)> ask;
    const char* want;
  };
  for (const Case& c : {
           Case{[](auto& r) { r.set_prefix("12g"); }, "prefix must be hex digits; byte 2 is none"},
           Case{[](auto& r) { r.set_prefix(std::string(33, '1')); }, "got 33"},
           Case{[](auto& r) { r.set_tier(v1::TIER_DEVICE); }, "host, disk or remote, got device"},
           Case{[](auto& r) { r.set_chains("abc"); }, "16 bytes each, got 3 bytes"},
       }) {
    v1::ListRequest request;
    c.ask(request);
    const Listed listed = List(request);
    EXPECT_EQ(listed.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(listed.status.error_message(), HasSubstr(c.want));
  }
  for (const std::string& names :
       {std::string(), std::string(17, 'x'), std::string(16 * 4097, 'x')}) {
    EXPECT_EQ(Pin(names), -1);
    EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(Delete(names), -1);
    EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  EXPECT_EQ(Delete(NameOfBlock(chains_[0]), /*all=*/true), -1);
  EXPECT_EQ(status_.error_message(), "all copies, or those named: not both");
  EXPECT_EQ(Stat().copies(), static_cast<std::uint64_t>(kCopies));
}

TEST_F(StoreServiceTest, PinsAndDeletesByName) {
  const std::string known = NameOfBlock(chains_[0]) + NameOfBlock(chains_[1]);
  const std::string unknown = NameOfBlock(TestChains(2, 1)[0]);
  EXPECT_EQ(Pin(known + unknown), 2);
  EXPECT_EQ(Stat().copies_pinned(), 2u);
  EXPECT_EQ(Pin(known, /*unpin=*/true), 2);
  EXPECT_EQ(Pin(known, /*unpin=*/true), 0);
  EXPECT_EQ(Delete(known + unknown), 2);
  EXPECT_EQ(Delete(known), 0);
  EXPECT_EQ(Stat().copies(), static_cast<std::uint64_t>(kCopies) - 2);
  EXPECT_EQ(Delete("", /*all=*/true), kCopies - 2);
  EXPECT_EQ(Stat().copies(), 0u);
  EXPECT_TRUE(List({}).copies.empty());
}

TEST_F(StoreServiceTest, FlushKeepsWhatIsPinned) {
  ASSERT_EQ(Pin(NameOfBlock(chains_[0])), 1);
  grpc::ClientContext context;
  v1::FlushResponse response;
  ASSERT_TRUE(stub_->Flush(&context, {}, &response).ok());
  EXPECT_EQ(response.bytes(), static_cast<std::uint64_t>(kCopies - 1) * kTestFrameBytes);
  const Listed left = List({});
  ASSERT_EQ(left.copies.size(), 1u);
  EXPECT_EQ(left.copies[0].name(), NameOfBlock(chains_[0]));
}

TEST_F(StoreServiceTest, VerifyFindsABitThatIsWrong) {
  v1::VerifyResponse sum = Verify();
  EXPECT_EQ(sum.copies(), static_cast<std::uint64_t>(kCopies));
  EXPECT_EQ(sum.bytes(), static_cast<std::uint64_t>(kCopies) * kTestFrameBytes);
  EXPECT_EQ(sum.damaged(), 0u);
  EXPECT_EQ(sum.unread(), 0u);
  node_->loop().Run([this] {
    HostTier& host = node_->tiers().host();
    const auto place = host.PlaceOf(TestCopyKey(chains_[300]));
    ASSERT_TRUE(place.has_value());
    host.Bytes(*place, kTestFrameBytes)[kTestFrameBytes - 1] ^= std::byte{1};
  });
  sum = Verify();
  EXPECT_EQ(sum.damaged(), 1u);
  v1::ListRequest request;
  request.set_chains(rpc::ChainsToProto(std::span(chains_).subspan(300, 1)));
  EXPECT_TRUE(List(request).copies.empty());
  EXPECT_EQ(Verify().damaged(), 0u);
  EXPECT_EQ(Stat().tiers(0).damaged(), 1u);
}

TEST_F(StoreServiceTest, StatTellsWhatTenantsHave) {
  const v1::StatResponse stat = Stat();
  EXPECT_EQ(stat.name(), "node");
  ASSERT_EQ(stat.tenants_size(), 1);
  EXPECT_EQ(stat.tenants(0).tenant(), 7u);
  EXPECT_EQ(stat.tenants(0).quota(), 123456u);
  EXPECT_EQ(stat.tenants(0).host_bytes(), 3 * kTestFrameBytes);
  EXPECT_EQ(stat.tenants(0).disk_bytes(), 0u);
}

// ---- The chores, on a virtual clock.

class StoreChoresTest : public TierSetTest {
 protected:
  struct Told {
    std::optional<absl::Status> status;
    StoreChores::Sum sum;
  };
  static StoreChores::Asked Ask(
      const std::shared_ptr<Told>& told, std::function<bool()> wanted = [] { return true; }) {
    return {.wanted = std::move(wanted),
            .done = [told](const absl::Status& status, const StoreChores::Sum& sum) {
              EXPECT_FALSE(told->status.has_value()) << "told twice";
              *told = {status, sum};
            }};
  }
};

TEST_F(StoreChoresTest, VerifyReadsTheDiskAndDropsWhatIsDamaged) {
  Start({.disk_bytes = std::uint64_t{64} * 32 * 4096});
  Put(0, 20);
  loop_.Advance(seconds(1));
  Flush();
  Put(20, 30);
  loop_.Advance(seconds(1));
  node_->disk->Damage(node_->disk->images().begin()->first, 8 * (3 * 4096 + 100));
  StoreChores chores(loop_, tiers());
  const auto told = std::make_shared<Told>();
  chores.Verify(Ask(told));
  loop_.Advance(seconds(10));
  ASSERT_TRUE(told->status.has_value());
  EXPECT_TRUE(told->status->ok()) << *told->status;
  EXPECT_EQ(told->sum.copies, 30u);
  EXPECT_EQ(told->sum.damaged, 1u);
  EXPECT_EQ(told->sum.unread, 0u);
  EXPECT_EQ(told->sum.copies_max, 30u);
  EXPECT_EQ(tiers().copies(), 29u);
  EXPECT_EQ(chores.running(), 0u);
}

TEST_F(StoreChoresTest, ADiskThatDoesNotReadIsNoDamage) {
  Start({.disk_bytes = std::uint64_t{64} * 32 * 4096});
  Put(0, 5);
  loop_.Advance(seconds(1));
  Flush();
  node_->disk->faults().hang = 1;
  StoreChores chores(loop_, tiers());
  const auto told = std::make_shared<Told>();
  chores.Verify(Ask(told));
  loop_.Advance(seconds(120));
  ASSERT_TRUE(told->status.has_value());
  EXPECT_EQ(told->sum.unread, 5u);
  EXPECT_EQ(told->sum.damaged, 0u);
  EXPECT_EQ(tiers().copies(), 5u);
}

TEST_F(StoreChoresTest, DeleteAllIsForGood) {
  Start({.disk_bytes = std::uint64_t{64} * 32 * 4096});
  Put(0, 40);
  loop_.Advance(seconds(1));
  StoreChores chores(loop_, tiers());
  const auto told = std::make_shared<Told>();
  chores.DeleteAll(Ask(told));
  loop_.Advance(seconds(10));
  ASSERT_EQ(told->status, absl::OkStatus());
  EXPECT_EQ(told->sum.deleted, 40u);
  Start({.disk_bytes = std::uint64_t{64} * 32 * 4096}, node_->disk->LosePower());
  EXPECT_EQ(tiers().copies(), 0u);
}

TEST_F(StoreChoresTest, AFewAtATimeAndNoneThatNobodyWants) {
  Start({});
  Put(0, 64);
  StoreChores chores(loop_, tiers());
  std::vector<std::shared_ptr<Told>> all;
  for (std::size_t i = 0; i <= StoreChores::kChoresMax; ++i) {
    all.push_back(std::make_shared<Told>());
    chores.Verify(Ask(all.back(), [i] { return i != 3; }));
  }
  EXPECT_EQ(chores.running(), StoreChores::kChoresMax);
  loop_.Advance(seconds(10));
  for (std::size_t i = 0; i < all.size(); ++i) {
    ASSERT_TRUE(all[i]->status.has_value()) << i;
    EXPECT_EQ(all[i]->status->code(), i == StoreChores::kChoresMax
                                          ? absl::StatusCode::kResourceExhausted
                                      : i == 3 ? absl::StatusCode::kCancelled
                                               : absl::StatusCode::kOk)
        << i;
  }
  EXPECT_EQ(chores.running(), 0u);
  // Those that it leaves behind are told nothing.
  const auto told = std::make_shared<Told>();
  {
    StoreChores brief(loop_, tiers());
    brief.Verify(Ask(told));
  }
  loop_.Advance(seconds(1));
  EXPECT_FALSE(told->status.has_value());
}

}  // namespace
}  // namespace penstock::kvstore
