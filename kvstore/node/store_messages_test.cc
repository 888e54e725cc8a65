// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_messages.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "transfer/messages_testing.h"

namespace penstock::kvstore {
namespace {

using transfer::SegmentId;

template <typename Digest>
Digest Filled(std::uint8_t with) {
  Digest digest;
  digest.bytes.fill(with);
  return digest;
}

const std::vector<std::byte> kHeader(512, std::byte{7});

// One of each type, and what is optional both ways.
std::vector<StoreMessage> All() {
  const auto space = Filled<Namespace>(1);
  const std::vector<Chain> chains = {Filled<Chain>(2), Filled<Chain>(3), Filled<Chain>(4)};
  const OfferMessage offer = {.id = 3,
                              .key = {space, chains[1]},
                              .parent = chains[0],
                              .tenant = 5,
                              .tokens_before = 32,
                              .segment = SegmentId{6},
                              .offset = 8192,
                              .header = kHeader};
  OfferMessage first = offer;
  first.parent = std::nullopt;
  return {AskMessage{1, space, chains},
          WantMessage{2, {true, false, true}},
          WantMessage{2, std::vector<bool>(17, true)},
          offer,
          first,
          TakenMessage{4, absl::OkStatus()},
          TakenMessage{4, absl::ResourceExhaustedError("no room")},
          FindMessage{5, 250, space, chains, true},
          FoundMessage{.id = 6,
                       .index = 1,
                       .tier = Tier::kDisk,
                       .waited_us = 900,
                       .segment = SegmentId{2},
                       .offset = 4096,
                       .generation_offset = 16,
                       .generation = 77,
                       .lease_ms = 5000,
                       .may_keep = true,
                       .header = kHeader},
          MissingMessage{7, 2, absl::NotFoundError("no such copy here")},
          ReleaseMessage{8, UINT32_MAX},
          RenewMessage{9},
          KeepMessage{10, 64},
          DropMessage{11, {0, 5, 4}},
          LostMessage{12, 3}};
}

TEST(StoreMessagesTest, ComeBackAsTheyWere) {
  transfer::ExpectMessagesComeBack(All(), Decode);
  const auto want = std::get<WantMessage>(*Decode(Encode(All()[1])));
  EXPECT_EQ(want.wanted, std::vector<bool>({true, false, true}));
  const auto offer = std::get<OfferMessage>(*Decode(Encode(All()[3])));
  EXPECT_EQ(offer.key.chain, Filled<Chain>(3));
  EXPECT_EQ(offer.parent, Filled<Chain>(2));
  EXPECT_EQ(offer.segment, SegmentId{6});
  EXPECT_EQ(offer.offset, 8192u);
  EXPECT_EQ(offer.header, kHeader);
  EXPECT_EQ(std::get<OfferMessage>(*Decode(Encode(All()[4]))).parent, std::nullopt);
  const auto found = std::get<FoundMessage>(*Decode(Encode(All()[8])));
  EXPECT_EQ(found.tier, Tier::kDisk);
  EXPECT_EQ(found.generation_offset, 16u);
  EXPECT_EQ(found.generation, 77u);
  EXPECT_EQ(std::get<MissingMessage>(*Decode(Encode(All()[9]))).status,
            absl::NotFoundError("no such copy here"));
}

TEST(StoreMessagesTest, ReasonsAreCut) {
  const TakenMessage message = {1, absl::InternalError(std::string(5000, 'x'))};
  const auto decoded = std::get<TakenMessage>(*Decode(Encode(message)));
  EXPECT_EQ(decoded.status.message().size(), kReasonBytesMax);
}

TEST(StoreMessagesTest, TheLargestFit) {
  const std::vector<Chain> chains(kChainsMax, Filled<Chain>(1));
  const std::vector<std::byte> header(kHeaderBytesMax, std::byte{1});
  for (const StoreMessage& message :
       std::vector<StoreMessage>{AskMessage{1, {}, chains}, FindMessage{1, 1, {}, chains},
                                 WantMessage{1, std::vector<bool>(kChainsMax)},
                                 OfferMessage{.header = header}, FoundMessage{.header = header}}) {
    EXPECT_TRUE(Decode(Encode(message)).ok());
  }
}

TEST(StoreMessagesTest, EveryCutAndEveryExtraByteIsRefused) {
  transfer::ExpectCutsAreRefused(All(), Decode);
}

TEST(StoreMessagesTest, ErrorsNameFieldAndNumbers) {
  struct Case {
    const char* name;
    std::size_t message;  // Of All().
    std::size_t at;
    std::uint8_t byte;
    const char* want;
  };
  constexpr std::size_t kAskCount = 1 + 8 + 16, kOfferParents = 1 + 8 + 32;
  const Case cases[] = {
      {"type 0", 0, 0, 0, "type of a store message must be from 1 to 12, got 0"},
      {"type 13", 0, 0, 13, "type of a store message must be from 1 to 12, got 13"},
      {"more chains than bytes", 0, kAskCount, 4,
       "chains of a store message must be from 1 to 3, got 4"},
      {"no chains", 0, kAskCount, 0, "chains of a store message must be from 1 to 3, got 0"},
      {"no copies", 1, 1 + 8, 0, "copies of a want message must be from 1 to 8, got 0"},
      {"bits behind the last", 1, 1 + 8 + 4, 0x0d,
       "bits behind those of a want message must be from 0 to 0, got 1"},
      {"two parents", 3, kOfferParents, 2,
       "parents of an offer message must be from 0 to 1, got 2"},
      {"a parent that is none", 3, kOfferParents, 0,
       "an offer message names a parent, and says that it has none"},
      {"a header beyond the end", 3, kOfferParents + 1 + 16 + 8 + 4 + 8 + 1, 3,
       "header bytes of a store message must be from 1 to 512, got 768"},
      {"code 17", 6, 1 + 8, 17, "code of a store message must be from 0 to 16, got 17"},
      {"a reason of what is well", 6, 1 + 8, 0,
       "bytes of a store message's reason must be from 0 to 0, got 7"},
      {"neither way", 7, 1 + 8 + 4, 2, "backwards of a find message must be from 0 to 1, got 2"},
      {"tier 0", 8, 1 + 8 + 4, 0, "tier of a found message must be from 1 to 4, got 0"},
      {"tier 5", 8, 1 + 8 + 4, 5, "tier of a found message must be from 1 to 4, got 5"},
      {"kept twice", 8, 1 + 8 + 4 + 1 + 4 + 4 + 8 + 8 + 8 + 4, 2,
       "may_keep of a found message must be from 0 to 1, got 2"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    std::vector<std::byte> bytes = Encode(All()[c.message]);
    ASSERT_LT(c.at, bytes.size());
    bytes[c.at] = std::byte{c.byte};
    const absl::Status status = Decode(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), c.want);
  }
}

}  // namespace
}  // namespace penstock::kvstore
