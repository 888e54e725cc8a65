// SPDX-License-Identifier: Apache-2.0
// Links of kind ucx whose peer is a test that sends whatever frames it likes.
#include "transfer/ucx_link.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/seed_testing.h"
#include "transfer/channel.h"
#include "transfer/tcp_frames.h"
#include "transfer/ucx_config.h"
#include "transfer/ucx_worker.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

// UCX alone, on the thread of the test.
class RawPeer {
 public:
  RawPeer() {
    ucp_config_t* const config = MakeUcxConfig(ChooseUcxDevices("127.0.0.1").value()).value();
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_AM;
    EXPECT_EQ(ucp_init(&params, config, &context_), UCS_OK);
    ucp_config_release(config);
    const ucp_worker_params_t worker{};
    EXPECT_EQ(ucp_worker_create(context_, &worker, &worker_), UCS_OK);
    ucp_am_handler_param_t handler{};
    handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB;
    handler.cb = [](void*, const void*, std::size_t, void*, std::size_t,
                    const ucp_am_recv_param_t*) { return UCS_OK; };
    EXPECT_EQ(ucp_worker_set_am_recv_handler(worker_, &handler), UCS_OK);
    ucp_worker_attr_t attributes{};
    attributes.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS;
    EXPECT_EQ(ucp_worker_query(worker_, &attributes), UCS_OK);
    const auto* const bytes = reinterpret_cast<const std::byte*>(attributes.address);
    address.assign(bytes, bytes + attributes.address_length);
    ucp_worker_release_address(worker_, attributes.address);
  }
  ~RawPeer() {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    if (endpoint_ != nullptr) Wait(ucp_ep_close_nbx(endpoint_, &param));
    ucp_worker_destroy(worker_);
    ucp_cleanup(context_);
  }
  void Connect(std::span<const std::byte> to) {
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                        UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(to.data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.cb = [](void*, ucp_ep_h, ucs_status_t) {};
    ASSERT_EQ(ucp_ep_create(worker_, &params, &endpoint_), UCS_OK);
  }
  void Send(std::span<const std::byte> header, std::span<const std::byte> payload) {
    ucp_request_param_t param{};
    Wait(ucp_am_send_nbx(endpoint_, 0, header.data(), header.size(), payload.data(), payload.size(),
                         &param));
  }
  void Progress() { (void)ucp_worker_progress(worker_); }

  std::vector<std::byte> address;

 private:
  void Wait(ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) return;
    const MonoTime end = SteadyClock().Now() + seconds(10);
    while (ucp_request_check_status(request) == UCS_INPROGRESS && SteadyClock().Now() < end) {
      Progress();
      std::this_thread::yield();
    }
    ucp_request_free(request);
  }
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
};

// A channel of ours whose other end is `theirs`.
class Victim {
 public:
  Victim() {
    std::array<int, 2> fds{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
    socket.Reset(fds[1]);
    loop->Run([&] {
      segment = table_.Register({.bytes = memory_});
      worker_ = UcxWorker::Make(*loop, ChooseUcxDevices("127.0.0.1").value()).value();
      auto link = std::make_unique<UcxLink>(*loop, *worker_, table_, UcxTransport::LinkOptions{});
      number = link->number();
      EXPECT_TRUE(link->Connect(theirs.address, 1).ok());
      link->Keep(UniqueFd(fds[0]));
      channel = std::make_unique<Channel>(*loop, Peer{"hostile", 1}, std::move(link));
      channel->Start({.on_message = [this](auto m) { messages.emplace_back(m.begin(), m.end()); },
                      .on_closed = [this](auto& s) { closed.push_back(s); }});
      theirs.Connect(worker_->address());
    });
  }
  ~Victim() {
    loop->Run([&] {
      channel.reset();
      worker_.reset();
    });
  }
  bool Until(const std::function<bool()>& done) {
    const MonoTime end = SteadyClock().Now() + seconds(30);
    for (bool ended = false; SteadyClock().Now() < end; std::this_thread::yield()) {
      theirs.Progress();
      loop->Run([&] { ended = done(); });
      if (ended) return true;
    }
    return false;
  }
  // A read of the hostile peer's memory, 1,000 bytes.
  void Read(std::vector<absl::Status>& ends, Duration limit = seconds(25)) {
    loop->Run([&] {
      channel->Read({.segment = SegmentId{1},
                     .units = {{.from = 0, .to = target.data() + 8, .runs = runs}},
                     .crcs = {0},
                     .deadline = loop->Now() + limit},
                    [&ends](const absl::Status& s) { ends.push_back(s); });
    });
    // Asked for in the turn after, when nobody can take it back.
    loop->Run([] {});
    loop->Run([] {});
  }
  void Send(UcxFrameType type, std::uint64_t id, const std::vector<std::byte>& payload) {
    SendAs(sequence++, type, id, payload.size(), payload);
  }
  void SendAs(std::uint64_t as, UcxFrameType type, std::uint64_t id, std::size_t says,
              const std::vector<std::byte>& payload) {
    theirs.Send(EncodeUcxHeader({.link = number,
                                 .sequence = as,
                                 .type = type,
                                 .payload_bytes = static_cast<std::uint32_t>(says),
                                 .id = id}),
                payload);
  }
  // The channel closes because the peer broke the protocol.
  void ExpectCut(const std::string& part) {
    ASSERT_TRUE(Until([&] { return !closed.empty(); }));
    EXPECT_EQ(closed[0].code(), StatusCode::kInvalidArgument) << closed[0];
    EXPECT_NE(closed[0].message().find(part), absl::string_view::npos) << closed[0];
  }

  const std::unique_ptr<EpollLoop> loop = EpollLoop::Make("victim").value();
  RawPeer theirs;
  UniqueFd socket;
  SegmentId segment{};
  std::uint64_t number = 0;
  std::uint64_t sequence = 0;
  std::unique_ptr<Channel> channel;
  std::vector<std::vector<std::byte>> messages;
  std::vector<absl::Status> closed;
  std::vector<std::byte> target = std::vector<std::byte>(1016, std::byte{0xEE});
  const std::vector<ByteRun> runs = {{0, 0, 1000}};

 private:
  std::vector<std::byte> memory_ = std::vector<std::byte>(1 << 20);
  SegmentTable table_;
  std::unique_ptr<UcxWorker> worker_;
};

std::vector<std::byte> Filled(std::size_t bytes, int value) {
  return std::vector<std::byte>(bytes, static_cast<std::byte>(value));
}

std::vector<std::byte> RequestOf(SegmentId segment, std::uint64_t from, std::uint32_t bytes) {
  const std::vector<ByteRun> runs = {{0, 0, bytes}};
  return ReadRequest::Encode(segment,
                             std::vector<Unit>{{.from = from, .to = nullptr, .runs = runs}});
}

TEST(HostileUcxPeerTest, WhoBreaksTheProtocolIsCutOff) {
  struct Case {
    const char* name;
    const char* want;
    UcxFrameType type;
    std::uint64_t id;
    std::vector<std::byte> payload;
  };
  for (const Case& c : {
           Case{"unknown type", "a frame of type 90", UcxFrameType{90}, 0, Filled(1, 1)},
           Case{"empty message", "has from 1 to", UcxFrameType::kMessage, 0, {}},
           Case{"long message", "has from 1 to 65536", UcxFrameType::kMessage, 0,
                Filled(Link::kMessageBytesMax + 1, 1)},
           Case{"message with an id", "wrong padding or id", UcxFrameType::kMessage, 3,
                Filled(1, 1)},
           Case{"data nobody asked for", "did not ask", UcxFrameType::kData, 9, Filled(10, 1)},
           Case{"more data than asked", "did not ask", UcxFrameType::kData, 1, Filled(1001, 1)},
           Case{"the end of nothing", "was not under way", UcxFrameType::kEnd, 9,
                EncodeEnd(absl::NotFoundError("x"))},
           Case{"an end that cannot be", "a status that cannot be", UcxFrameType::kEnd, 1,
                EncodeEnd(absl::OkStatus())},
           Case{"long data", "has from 1 to 262144", UcxFrameType::kData, 1,
                Filled(kUcxDataBytesMax + 1, 1)},
           Case{"junk request", "a read request", UcxFrameType::kRead, 1, Filled(100, 0x5a)},
           Case{
               "delivered unsent", "5 bytes delivered, of 0 sent", UcxFrameType::kDelivered, 5, {}},
       }) {
    SCOPED_TRACE(c.name);
    Victim victim;
    std::vector<absl::Status> ends;
    victim.Read(ends);
    victim.Send(c.type, c.id, c.payload);
    victim.ExpectCut(c.want);
    ASSERT_EQ(ends.size(), 1u);
    EXPECT_EQ(ends[0].code(), StatusCode::kUnavailable) << ends[0];
    EXPECT_EQ(victim.target, Filled(1016, 0xEE));
  }
}

TEST(HostileUcxPeerTest, FramesAreTakenOnceAndInOrder) {
  Victim victim;
  victim.SendAs(2, UcxFrameType::kMessage, 0, 1, Filled(1, 3));
  victim.SendAs(1, UcxFrameType::kMessage, 0, 1, Filled(1, 2));
  victim.SendAs(0, UcxFrameType::kMessage, 0, 1, Filled(1, 1));
  ASSERT_TRUE(victim.Until([&] { return victim.messages.size() == 3; }));
  EXPECT_EQ(victim.messages,
            (std::vector<std::vector<std::byte>>{Filled(1, 1), Filled(1, 2), Filled(1, 3)}));
  victim.SendAs(1, UcxFrameType::kMessage, 0, 1, Filled(1, 2));
  victim.ExpectCut("frame 1 came twice");
}

TEST(HostileUcxPeerTest, WhatCannotBeTakenIsBounded) {
  Victim victim;
  for (std::uint64_t i = 1; i < 1000; ++i) {
    victim.SendAs(i, UcxFrameType::kMessage, 0, Link::kMessageBytesMax,
                  Filled(Link::kMessageBytesMax, 1));
    bool cut = false;
    victim.loop->Run([&] { cut = !victim.closed.empty(); });
    if (cut) break;
  }
  victim.ExpectCut("bytes before it");
}

TEST(HostileUcxPeerTest, HeadersThatLieOrAreNoneHarmNobody) {
  {
    Victim victim;
    victim.SendAs(0, UcxFrameType::kMessage, 0, 7, Filled(1, 3));
    victim.ExpectCut("a frame of 1 bytes that says 7");
  }
  Victim victim;
  victim.theirs.Send(Filled(3, 1), Filled(9, 1));
  victim.theirs.Send(Filled(kUcxHeaderBytes, 0x7f), Filled(9, 1));  // No such link.
  victim.Send(UcxFrameType::kMessage, 0, Filled(1, 1));
  ASSERT_TRUE(victim.Until([&] { return victim.messages.size() == 1; }));
  EXPECT_TRUE(victim.closed.empty());
  EXPECT_EQ(::send(victim.socket.get(), "x", 1, MSG_NOSIGNAL), 1);
  victim.ExpectCut("bytes where none belong");
}

TEST(HostileUcxPeerTest, WhoAsksAndTakesNothingIsCutOff) {
  Victim victim;
  for (std::uint64_t id = 1; id < kReadsMax + 50; ++id) {
    victim.Send(UcxFrameType::kRead, id, RequestOf(victim.segment, 0, 1 << 20));
  }
  victim.ExpectCut("one too many");
}

TEST(HostileUcxPeerTest, DataOfACancelledReadGoesNowhere) {
  Victim victim;
  std::vector<absl::Status> ends, later;
  victim.Read(ends);
  victim.Send(UcxFrameType::kData, 1, Filled(400, 1));
  ASSERT_TRUE(victim.Until([&] { return victim.target[407] == std::byte{1}; }));
  victim.loop->Run([&] { victim.channel->Cancel(ReadId{1}); });
  ASSERT_TRUE(victim.Until([&] { return !ends.empty(); }));
  EXPECT_EQ(ends[0].code(), StatusCode::kCancelled);
  const std::vector<std::byte> at_end = victim.target;
  victim.Send(UcxFrameType::kData, 1, Filled(600, 9));  // It was on its way.
  victim.Send(UcxFrameType::kMessage, 0, Filled(1, 1));
  ASSERT_TRUE(victim.Until([&] { return victim.messages.size() == 1; }));
  EXPECT_EQ(victim.target, at_end);
  victim.Read(later);
  victim.Send(UcxFrameType::kData, 2, Filled(1000, 2));
  ASSERT_TRUE(victim.Until([&] { return !later.empty(); }));
  EXPECT_EQ(later[0].code(), StatusCode::kDataLoss) << later[0];
  EXPECT_EQ(victim.target[7], std::byte{0xEE});
  EXPECT_EQ(victim.target[8], std::byte{2});
  EXPECT_EQ(victim.target[1007], std::byte{2});
  EXPECT_EQ(victim.target[1008], std::byte{0xEE});
}

TEST(HostileUcxPeerTest, RandomFramesAreSurvived) {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    Victim victim;
    std::vector<absl::Status> ends;
    victim.Read(ends);
    for (int i = 0; i < 20; ++i) {
      std::vector<std::byte> payload(random() % 40);
      for (std::byte& b : payload) b = static_cast<std::byte>(random() % 4);
      auto header = EncodeUcxHeader({.link = victim.number,
                                     .sequence = static_cast<std::uint64_t>(i),
                                     .type = static_cast<UcxFrameType>(1 + random() % 7),
                                     .payload_bytes = static_cast<std::uint32_t>(payload.size()),
                                     .id = random() % 3});
      if (random() % 4 == 0) header[8 + random() % 24] ^= std::byte{1};
      victim.theirs.Send(header, payload);
    }
    victim.socket.Reset();
    ASSERT_TRUE(victim.Until([&] { return !victim.closed.empty(); }));
    EXPECT_EQ(ends.size(), 1u);
  }
}

}  // namespace
}  // namespace penstock::transfer
