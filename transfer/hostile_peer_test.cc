// SPDX-License-Identifier: Apache-2.0
// Links whose peer is a test that writes whatever it likes to the socket.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/epoll_loop.h"
#include "device/cpu_device.h"
#include "kernels/crc32c.h"
#include "transfer/channel.h"
#include "transfer/hello.h"
#include "transfer/mapped_segment.h"
#include "transfer/shm_link.h"
#include "transfer/tcp_frames.h"
#include "transfer/tcp_link.h"
#include "transfer/wire.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

// A channel of ours whose other end is `theirs`, a blocking socket.
class Victim {
 public:
  explicit Victim(bool shm, TcpOptions options = {}) {
    std::array<int, 2> fds{};
    EXPECT_EQ(
        ::socketpair(AF_UNIX, (shm ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC, 0, fds.data()),
        0);
    theirs.Reset(fds[1]);
    EXPECT_EQ(::fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
    memory = device_->Allocate(1 << 20, Sharing::kPeers).value();
    loop->Run([&] {
      segment = table_.Register(*memory);
      UniqueFd ours(fds[0]);
      channel = std::make_unique<Channel>(
          *loop, Peer{"hostile", 1},
          shm ? MakeShmLink(*loop, std::move(ours), table_)
              : MakeTcpLink(*loop, std::move(ours), table_, std::move(options)));
      channel->Start({.on_message = [this](auto) { ++messages; },
                      .on_closed = [this](auto& s) { closed.push_back(s); }});
    });
  }
  ~Victim() {
    loop->Run([&] { channel.reset(); });
  }
  bool Until(const std::function<bool()>& done) {
    const MonoTime end = SteadyClock().Now() + seconds(30);
    for (bool ended = false; SteadyClock().Now() < end; std::this_thread::yield()) {
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
  }
  void Send(const std::vector<std::byte>& bytes) {
    ASSERT_EQ(::send(theirs.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // The channel closes because the peer broke the protocol.
  void ExpectCut(const std::string& part) {
    ASSERT_TRUE(Until([&] { return !closed.empty(); }));
    EXPECT_EQ(closed[0].code(), StatusCode::kInvalidArgument) << closed[0];
    EXPECT_NE(closed[0].message().find(part), absl::string_view::npos) << closed[0];
  }

  std::unique_ptr<EpollLoop> loop = EpollLoop::Make("victim").value();
  UniqueFd theirs;
  std::unique_ptr<DeviceMemory> memory;
  SegmentId segment{};
  std::unique_ptr<Channel> channel;
  int messages = 0;
  std::vector<absl::Status> closed;
  std::vector<std::byte> target = std::vector<std::byte>(1016, std::byte{0xEE});
  const std::vector<ByteRun> runs = {{0, 0, 1000}};

 private:
  std::unique_ptr<Device> device_ = CpuDevice::Make({}).value();
  SegmentTable table_;
};

std::vector<std::byte> Frame(FrameType type, std::uint64_t id, std::size_t payload_bytes,
                             std::vector<std::byte> payload) {
  const auto header = EncodeHeader(
      {.type = type, .payload_bytes = static_cast<std::uint32_t>(payload_bytes), .id = id});
  payload.insert(payload.begin(), header.begin(), header.end());
  return payload;
}
std::vector<std::byte> Frame(FrameType type, std::uint64_t id, std::vector<std::byte> payload) {
  const std::size_t bytes = payload.size();
  return Frame(type, id, bytes, std::move(payload));
}

std::vector<std::byte> RequestOf(SegmentId segment, std::uint64_t from, std::uint32_t bytes) {
  const std::vector<ByteRun> runs = {{0, 0, bytes}};
  return ReadRequest::Encode(segment,
                             std::vector<Unit>{{.from = from, .to = nullptr, .runs = runs}});
}

TEST(HostileTcpPeerTest, WhoBreaksTheProtocolIsCutOff) {
  struct Case {
    const char* name;
    const char* want;
    std::vector<std::byte> bytes;
  };
  const std::vector<std::byte> junk(100, std::byte{0x5a});
  const Case cases[] = {
      {"unknown type", "a frame of type 90", junk},
      {"empty message", "has from 1 to", Frame(FrameType::kMessage, 0, {})},
      {"long message", "has from 1 to 65536",
       Frame(FrameType::kMessage, 0, Link::kMessageBytesMax + 1, {})},
      {"message with an id", "wrong padding or id", Frame(FrameType::kMessage, 3, junk)},
      {"data nobody asked for", "did not ask", Frame(FrameType::kData, 9, junk)},
      {"more data than asked", "did not ask",
       Frame(FrameType::kData, 1, 1001, std::vector<std::byte>(10))},
      {"the end of nothing", "was not under way",
       Frame(FrameType::kEnd, 9, EncodeEnd(absl::NotFoundError("x")))},
      {"an end that cannot be", "a status that cannot be",
       Frame(FrameType::kEnd, 1, EncodeEnd(absl::OkStatus()))},
      {"long data", "has from 1 to 1048576", Frame(FrameType::kData, 1, (1 << 20) + 1, {})},
      {"junk request", "a read request", Frame(FrameType::kRead, 1, junk)},
      {"endless request", "a read request",
       Frame(FrameType::kRead, 1, std::vector<std::byte>(64, std::byte{0xff}))},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Victim victim(false);
    std::vector<absl::Status> ends;
    victim.Read(ends);
    victim.Send(c.bytes);
    victim.ExpectCut(c.want);
    ASSERT_EQ(ends.size(), 1u);
    EXPECT_EQ(ends[0].code(), StatusCode::kUnavailable) << ends[0];
    EXPECT_EQ(victim.target, std::vector<std::byte>(1016, std::byte{0xEE}));
  }
}

TEST(HostileTcpPeerTest, ReadsOutsideAreRefusedAndTooManyCutOff) {
  Victim victim(false);
  // The next frame that is not a ping.
  const auto answer = [&]() -> FrameHeader {
    FrameHeader header{.type = FrameType::kPing};
    while (header.type == FrameType::kPing) {
      std::array<std::byte, kHeaderBytes> bytes{};
      EXPECT_EQ(::recv(victim.theirs.get(), bytes.data(), bytes.size(), MSG_WAITALL),
                static_cast<ssize_t>(bytes.size()));
      header = DecodeHeader(bytes).value();
      std::vector<std::byte> payload(header.payload_bytes);
      EXPECT_EQ(::recv(victim.theirs.get(), payload.data(), payload.size(), MSG_WAITALL),
                static_cast<ssize_t>(payload.size()));
    }
    return header;
  };
  victim.Send(Frame(FrameType::kRead, 1, RequestOf(victim.segment, (1 << 20) - 10, 11)));
  FrameHeader header = answer();
  EXPECT_EQ(header.type, FrameType::kEnd);
  EXPECT_EQ(header.id, 1u);
  victim.Send(Frame(FrameType::kRead, 2, RequestOf(SegmentId{99}, 0, 11)));
  EXPECT_EQ(answer().type, FrameType::kEnd);
  victim.Send(Frame(FrameType::kRead, 3, RequestOf(victim.segment, (1 << 20) - 11, 11)));
  header = answer();
  EXPECT_EQ(header.type, FrameType::kData);
  EXPECT_EQ(header.payload_bytes, 11u);
  // Never reads what it asks for.
  for (std::uint64_t id = 10; id < 10 + kReadsMax + 20; ++id) {
    const std::vector<std::byte> frame =
        Frame(FrameType::kRead, id, RequestOf(victim.segment, 0, 1 << 20));
    if (::send(victim.theirs.get(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0) break;
  }
  victim.ExpectCut("one too many");
}

TEST(HostileTcpPeerTest, DataOfACancelledReadGoesNowhere) {
  Victim victim(false);
  std::vector<absl::Status> ends, later;
  victim.Read(ends, milliseconds(0));
  ASSERT_TRUE(victim.Until([&] { return !ends.empty(); }));
  EXPECT_EQ(ends[0].code(), StatusCode::kDeadlineExceeded);
  victim.Read(later);
  victim.Send(Frame(FrameType::kData, 1, std::vector<std::byte>(1000, std::byte{1})));
  victim.Send(Frame(FrameType::kMessage, 0, std::vector<std::byte>(1)));
  ASSERT_TRUE(victim.Until([&] { return victim.messages == 1; }));
  EXPECT_EQ(victim.target, std::vector<std::byte>(1016, std::byte{0xEE}));
  victim.Send(Frame(FrameType::kData, 2, std::vector<std::byte>(400, std::byte{2})));
  victim.Send(Frame(FrameType::kData, 2, std::vector<std::byte>(600, std::byte{2})));
  ASSERT_TRUE(victim.Until([&] { return !later.empty(); }));
  EXPECT_EQ(later[0].code(), StatusCode::kDataLoss) << later[0];
  EXPECT_EQ(victim.target[7], std::byte{0xEE});
  EXPECT_EQ(victim.target[8], std::byte{2});
  EXPECT_EQ(victim.target[1007], std::byte{2});
  EXPECT_EQ(victim.target[1008], std::byte{0xEE});
}

TEST(HostileTcpPeerTest, RandomBytesAreSurvived) {
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    std::mt19937 random(seed);
    Victim victim(false);
    std::vector<absl::Status> ends;
    victim.Read(ends);
    std::vector<std::byte> bytes;
    for (int i = 0; i < 20; ++i) {
      // Frames that are nearly right.
      std::vector<std::byte> payload(random() % 40);
      for (std::byte& b : payload) b = static_cast<std::byte>(random() % 4);
      auto frame = Frame(static_cast<FrameType>(1 + random() % 6), random() % 3, payload);
      if (random() % 4 == 0) frame[random() % frame.size()] ^= std::byte{1};
      bytes.insert(bytes.end(), frame.begin(), frame.end());
    }
    victim.Send(bytes);
    victim.theirs.Reset();
    ASSERT_TRUE(victim.Until([&] { return !victim.closed.empty(); }));
    EXPECT_EQ(ends.size(), 1u);
  }
}

std::vector<std::byte> Packet(std::uint8_t type, std::uint32_t segment, std::uint64_t bytes) {
  std::vector<std::byte> packet;
  WireWriter writer(packet);
  writer.Number(type);
  writer.Number(segment);
  if (type == 3) writer.Number(bytes);
  return packet;
}

void SendWithFd(int socket, const std::vector<std::byte>& packet, int fd) {
  iovec part{const_cast<std::byte*>(packet.data()), packet.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  ASSERT_EQ(::sendmsg(socket, &message, MSG_NOSIGNAL), static_cast<ssize_t>(packet.size()));
}

UniqueFd Memfd(std::size_t bytes, int seals) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_TRUE(seals == 0 || ::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

TEST(HostileShmPeerTest, SegmentsThatCouldFaultAreRefused) {
  UniqueFd pipe_ends[2];
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  pipe_ends[0].Reset(pipe[0]);
  pipe_ends[1].Reset(pipe[1]);
  const UniqueFd open = Memfd(4096, 0), grow = Memfd(4096, F_SEAL_GROW),
                 small = Memfd(4095, F_SEAL_SHRINK), good = Memfd(4096, F_SEAL_SHRINK);
  struct Case {
    const char* name;
    int fd;
    std::uint64_t bytes;
    const char* want;
  };
  for (const Case& c :
       {Case{"not sealed", open.get(), 4096, "not sealed against shrinking"},
        Case{"sealed otherwise", grow.get(), 4096, "not sealed against shrinking"},
        Case{"smaller than said", small.get(), 4096, "4095 bytes, said to have 4096"},
        Case{"of no bytes", good.get(), 0, "said to have 0"},
        Case{"absurd", good.get(), ~std::uint64_t{0}, "said to have"},
        Case{"no file", pipe[0], 4096, "not sealed against shrinking"}}) {
    SCOPED_TRACE(c.name);
    Victim victim(true);
    std::vector<absl::Status> ends;
    victim.Read(ends);
    SendWithFd(victim.theirs.get(), Packet(3, 1, c.bytes), c.fd);
    victim.ExpectCut(c.want);
    ASSERT_EQ(ends.size(), 1u);
    EXPECT_EQ(ends[0].code(), StatusCode::kUnavailable);
  }
  Victim victim(true);
  std::vector<absl::Status> ends;
  victim.Read(ends);
  SendWithFd(victim.theirs.get(), Packet(3, 1, 4096), good.get());
  ASSERT_TRUE(victim.Until([&] { return !ends.empty(); }));
  EXPECT_EQ(ends[0].code(), StatusCode::kDataLoss) << ends[0];  // Zeros, another checksum.
}

TEST(HostileShmPeerTest, WhoBreaksTheProtocolIsCutOff) {
  struct Case {
    const char* name;
    std::vector<std::byte> packet;
    const char* want;
  };
  for (const Case& c : {Case{"unknown type", Packet(9, 1, 0), "a packet of type 9"},
                        Case{"short", {std::byte{2}, std::byte{0}}, "a packet of type 2"},
                        Case{"empty message", {std::byte{1}}, "an empty message"},
                        Case{"not asked for", Packet(3, 7, 1), "not asked for"},
                        Case{"no descriptor", Packet(3, 1, 4096), "without a descriptor"},
                        Case{"long", std::vector<std::byte>(65538, std::byte{1}), "too long"}}) {
    SCOPED_TRACE(c.name);
    Victim victim(true);
    std::vector<absl::Status> ends;
    victim.Read(ends);
    victim.Send(c.packet);
    victim.ExpectCut(c.want);
    EXPECT_EQ(ends.size(), 1u);
  }
  Victim victim(true);
  const UniqueFd fd = Memfd(4096, F_SEAL_SHRINK);
  SendWithFd(victim.theirs.get(), Packet(2, 1, 0), fd.get());
  victim.ExpectCut("a descriptor that nobody asked for");
}

TEST(HelloTest, WhatIsNotAHelloIsRefused) {
  Hello hello;
  hello.self = {"worker-1", 7};
  hello.identity = {{"model", "m"}, {"numerics", "avx2"}};
  const std::vector<std::byte> bytes = EncodeHello(hello);
  const auto preamble = std::span(bytes).first<kPreambleBytes>();
  const auto body = std::span(bytes).subspan(kPreambleBytes);
  EXPECT_EQ(DecodePreamble(preamble).value(), body.size());
  const Hello again = DecodeHello(body).value();
  EXPECT_EQ(again.self, hello.self);
  EXPECT_EQ(again.identity, hello.identity);
  for (std::size_t n = 0; n < body.size(); ++n) EXPECT_FALSE(DecodeHello(body.first(n)).ok());
  std::array<std::byte, kPreambleBytes> other{};
  std::copy(preamble.begin(), preamble.end(), other.begin());
  other[4] = std::byte{9};
  EXPECT_EQ(DecodePreamble(other).status().message(), "transfer protocol is 4 here, 9 at the peer");
  other[0] = std::byte{'G'};
  EXPECT_EQ(DecodePreamble(other).status().code(), StatusCode::kInvalidArgument);
  Hello longer = hello;
  longer.identity.emplace_back("extra", "x");
  EXPECT_EQ(CompareIdentity(hello, longer).message(),
            "field 2 of the identity is nothing here, extra at worker-1");
}

}  // namespace
}  // namespace penstock::transfer
