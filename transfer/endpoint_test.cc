// SPDX-License-Identifier: Apache-2.0
#include "transfer/endpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "kernels/crc32c.h"
#include "transfer/endpoint_testing.h"
#include "transfer/hello.h"
#include "transfer/socket_address.h"
#include "transfer/ucx_transport.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Of this build.
std::vector<std::string> Kinds() {
  std::vector<std::string> kinds = {"shm", "tcp"};
  if (UcxTransport::Built()) kinds.push_back("ucx");
  return kinds;
}

std::size_t OpenDescriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

// An endpoint of this process, and what came to it.
struct Own {
  Own(EpollLoop& l, Endpoint::Options options) : loop(l) {
    loop.Run([&] {
      auto made = Endpoint::Make(
          loop, std::move(options),
          [this](std::unique_ptr<Channel> channel) { accepted.push_back(std::move(channel)); },
          [this](const absl::Status& why) { refused.push_back(why); });
      status = made.status();
      if (made.ok()) endpoint = *std::move(made);
    });
  }
  ~Own() {
    loop.Run([&] {
      accepted.clear();
      connected.clear();
      endpoint.reset();
    });
  }
  // Waits, half a minute at most, for something on the loop.
  bool Until(const std::function<bool()>& done) {
    const MonoTime end = SteadyClock().Now() + seconds(30);
    for (bool ended = false; SteadyClock().Now() < end; std::this_thread::yield()) {
      loop.Run([&] { ended = done(); });
      if (ended) return true;
    }
    return false;
  }
  // Connects; the channel is connected.back(), not yet started.
  absl::Status Connect(const Peer& peer, const std::string& address) {
    bool done = false;
    absl::Status result;
    loop.Run([&] {
      endpoint->Connect(peer, address, [&](absl::StatusOr<std::unique_ptr<Channel>> channel) {
        result = channel.status();
        if (channel.ok()) connected.push_back(*std::move(channel));
        done = true;
      });
      EXPECT_FALSE(done);
    });
    EXPECT_TRUE(Until([&] { return done; }));
    return result;
  }

  EpollLoop& loop;
  std::unique_ptr<Endpoint> endpoint;
  absl::Status status;
  std::vector<std::unique_ptr<Channel>> accepted, connected;
  std::vector<absl::Status> refused;
};

class EndpointTest : public testing::Test {
 protected:
  const TemporaryFolder folder_;
  const std::unique_ptr<EpollLoop> loop_ = EpollLoop::Make("endpoints").value();
};

// One read of all of the peer's segment, piece by piece.
struct Reads {
  Reads(std::size_t count, std::size_t bytes) : memory(count * bytes), ends(count) {
    run = {{0, 0, static_cast<std::uint32_t>(bytes)}};
    std::vector<std::byte> want(bytes);
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t b = 0; b < bytes; ++b) want[b] = PeerByte(i * bytes + b);
      crcs.push_back(kernels::Crc32c(0, want.data(), bytes));
    }
  }
  void Begin(Channel& channel, SegmentId segment, Loop& loop, Duration limit) {
    const std::size_t bytes = run[0].bytes;
    for (std::size_t i = 0; i < ends.size(); ++i) {
      channel.Read({.segment = segment,
                    .units = {{.from = i * bytes, .to = memory.data() + i * bytes, .runs = run}},
                    .crcs = {crcs[i]},
                    .deadline = loop.Now() + limit},
                   [this, i](const absl::Status& s) {
                     ends[i].push_back(s);
                     if (on_end) on_end();
                   });
    }
  }
  std::size_t ended() const {
    std::size_t count = 0;
    for (const auto& e : ends) count += e.size();
    return count;
  }
  std::vector<ByteRun> run;
  std::vector<std::byte> memory;
  std::vector<std::uint32_t> crcs;
  std::vector<std::vector<absl::Status>> ends;
  std::function<void()> on_end;
};

TEST_F(EndpointTest, TakesTheBestKindThatBothHave) {
  struct Case {
    const char* ours;
    const char* theirs;
    const char* want;  // Describe of the channel, from its beginning.
  };
  for (const Case& c : {Case{"shm,tcp", "shm,tcp", "shm, 0 segments mapped"},
                        Case{"tcp", "shm,tcp", "tcp 127.0.0.1:"}, Case{"shm,tcp", "tcp", "tcp "},
                        Case{"shm", "shm,tcp", "shm, "}}) {
    SCOPED_TRACE(absl::StrCat(c.ours, " to ", c.theirs));
    Own a(*loop_, PeerOptions("a", folder_.path(), c.ours));
    Own b(*loop_, PeerOptions("b", folder_.path(), c.theirs));
    ASSERT_TRUE(a.status.ok() && b.status.ok()) << a.status << b.status;
    ASSERT_TRUE(a.Connect({"b", 1}, b.endpoint->address()).ok());
    ASSERT_TRUE(b.Until([&] { return b.accepted.size() == 1; }));
    loop_->Run([&] {
      EXPECT_EQ(a.connected[0]->Describe().rfind(c.want, 0), 0u) << a.connected[0]->Describe();
      EXPECT_EQ(a.connected[0]->kind(), b.accepted[0]->kind());
      EXPECT_EQ(a.connected[0]->peer(), (Peer{"b", 1}));
      EXPECT_EQ(b.accepted[0]->peer(), (Peer{"a", 1}));
    });
  }
}

TEST_F(EndpointTest, NoKindInCommonIsUnavailable) {
  Own a(*loop_, PeerOptions("a", folder_.path(), "shm"));
  Own b(*loop_, PeerOptions("b", folder_.path(), "tcp"));
  const absl::Status status = a.Connect({"b", 1}, b.endpoint->address());
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "cannot connect to b: its address has none of the kinds that this side has");
}

TEST_F(EndpointTest, UnlikePeersAreToldBothValuesOnBothSides) {
  for (const std::string& kind : Kinds()) {
    SCOPED_TRACE(kind);
    Endpoint::Options options = PeerOptions("a", folder_.path(), kind);
    options.identity = {{"model", "another"}};
    Own a(*loop_, options);
    Own b(*loop_, PeerOptions("b", folder_.path(), kind));
    const absl::Status status = a.Connect({"b", 1}, b.endpoint->address());
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(status.message(), "model is another here, test at b");
    ASSERT_TRUE(b.Until([&] { return b.refused.size() == 1; }));
    EXPECT_EQ(b.refused[0].code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(b.refused[0].message(), "model is test here, another at a");
    EXPECT_TRUE(b.accepted.empty());
  }
}

TEST_F(EndpointTest, AnotherLifeAtTheAddressIsAborted) {
  Own a(*loop_, PeerOptions("a", folder_.path(), "shm,tcp"));
  Own b(*loop_, PeerOptions("b", folder_.path(), "shm,tcp"));
  const absl::Status status = a.Connect({"b", 7}, b.endpoint->address());
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_EQ(status.message(), "at the address of b, epoch 7, there is b, epoch 1");
}

TEST_F(EndpointTest, WhoIsNotThereIsUnavailableAndWhoIsSilentIsLate) {
  Endpoint::Options options = PeerOptions("a", folder_.path(), "shm,tcp");
  options.connect_timeout = milliseconds(50);
  Own a(*loop_, options);
  std::string gone;
  {
    const Own b(*loop_, PeerOptions("b", folder_.path(), "shm,tcp"));
    gone = b.endpoint->address();
  }
  const absl::Status status = a.Connect({"b", 1}, gone);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
  for (const char* part :
       {"cannot connect to b: shm:", "No such file", "tcp:127.0.0.1:", "Connection refused"}) {
    EXPECT_NE(status.message().find(part), absl::string_view::npos) << status;
  }
  // Listens, and never says a word.
  Route route{.kind = Kind::kTcp, .host = "127.0.0.1", .path = "", .port = 0};
  const UniqueFd mute = Listen(route).value();
  EXPECT_EQ(a.Connect({"b", 1}, FormatRoutes({route})).code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(a.Connect({"b", 1}, "tcp:somewhere").code(), StatusCode::kUnavailable);
}

TEST_F(EndpointTest, SocketsAreForThisUserOnlyAndGoWithTheEndpoint) {
  {
    const Own a(*loop_, PeerOptions("a/x", folder_.path(), "shm"));
    ASSERT_TRUE(a.status.ok()) << a.status;
    struct stat info;
    ASSERT_EQ(::stat((folder_.path() + "/a_x-1.sock").c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    const Own twin(*loop_, PeerOptions("a/x", folder_.path(), "shm"));
    EXPECT_EQ(twin.status.code(), StatusCode::kUnavailable) << twin.status;
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  // One that a killed process left behind is no obstacle.
  Route route{.kind = Kind::kShm, .host = "h", .path = folder_.path() + "/a-1.sock", .port = 0};
  Listen(route).value();
  const Own a(*loop_, PeerOptions("a", folder_.path(), "shm"));
  EXPECT_TRUE(a.status.ok()) << a.status;
}

TEST_F(EndpointTest, WrongOptionsAreNamed) {
  struct Case {
    const char* want;
    void (*change)(Endpoint::Options&);
  };
  for (const Case& c : {
           Case{"socket_folder must be given", [](auto& o) { o.socket_folder.clear(); }},
           Case{"kinds may have shm, nccl, ucx and tcp, got inproc",
                [](auto& o) { o.kinds = {Kind::kInproc}; }},
           Case{"GPUs for kind nccl must be from 1 to 64, got 0",
                [](auto& o) { o.kinds = {Kind::kNccl}; }},
           Case{"kinds must not be empty", [](auto& o) { o.kinds.clear(); }},
           Case{"name bytes must be from 1", [](auto& o) { o.self.name.clear(); }},
           Case{"numeric IPv4 or IPv6 address is needed, got 'localhost'",
                [](auto& o) { o.tcp_host = "localhost"; }},
           Case{"at most 107 bytes, got", [](auto& o) { o.socket_folder = std::string(99, 'x'); }},
           Case{"identity fields must be",
                [](auto& o) {
                  o.identity.resize(65, {"a", "b"});
                }},
       }) {
    Endpoint::Options options = PeerOptions("some-name", folder_.path(), "shm,tcp");
    c.change(options);
    const Own a(*loop_, options);
    EXPECT_EQ(a.status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(a.status.message().find(c.want), absl::string_view::npos) << a.status;
  }
}

TEST_F(EndpointTest, ListensOnIpv6) {
  Endpoint::Options options = PeerOptions("b", folder_.path(), "tcp");
  options.tcp_host = "::1";
  Own b(*loop_, options);
  if (!b.status.ok()) GTEST_SKIP() << "no IPv6 here: " << b.status;
  Own a(*loop_, PeerOptions("a", folder_.path(), "tcp"));
  ASSERT_TRUE(a.Connect({"b", 1}, b.endpoint->address()).ok());
  EXPECT_EQ(a.connected[0]->Describe().rfind("tcp [::1]:", 0), 0u);
}

// Strangers that connect and say nothing hold up neither each other nor, for long, real peers.
TEST_F(EndpointTest, MuteStrangersAreBoundedAndForgotten) {
  Endpoint::Options options = PeerOptions("b", folder_.path(), "tcp");
  options.strangers_max = 3;
  options.connect_timeout = milliseconds(100);
  Own b(*loop_, options);
  Own a(*loop_, PeerOptions("a", folder_.path(), "tcp"));
  const std::vector<Route> routes = ParseRoutes(b.endpoint->address()).value();
  std::vector<UniqueFd> mute;
  for (int i = 0; i < 8; ++i) mute.push_back(BeginConnect(routes[0]).value());
  EXPECT_TRUE(a.Connect({"b", 1}, b.endpoint->address()).ok());
  ASSERT_TRUE(b.Until([&] { return b.refused.size() == 8 && b.accepted.size() == 1; }));
  for (const absl::Status& status : b.refused) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
  }
}

TEST(EndpointProcessTest, ReadsAndMessagesBetweenProcesses) {
  constexpr std::size_t kPiece = 100'000, kPieces = 50;
  for (const std::string& kind : Kinds()) {
    SCOPED_TRACE(kind);
    const TemporaryFolder folder;
    const PeerProcess peer(FolderOfThisProgram(), "peer", folder.path(), kind, kPiece * kPieces);
    const auto loop = EpollLoop::Make("own").value();
    Own own(*loop, PeerOptions("own", folder.path(), kind));
    ASSERT_TRUE(own.Connect(peer.peer(), peer.address()).ok());
    Reads reads(kPieces, kPiece);
    int echoes = 0;
    loop->Run([&] {
      Channel& channel = *own.connected[0];
      channel.Start({.on_message = [&](auto) { ++echoes; }, .on_closed = {}});
      EXPECT_TRUE(channel.Send(std::vector<std::byte>(60'000)).ok());
      reads.Begin(channel, peer.segment(), *loop, seconds(25));
    });
    ASSERT_TRUE(own.Until([&] { return echoes == 1 && reads.ended() == kPieces; }));
    for (const auto& ends : reads.ends) EXPECT_TRUE(ends[0].ok()) << ends[0];
    for (std::size_t i = 0; i < reads.memory.size(); i += 4097) {
      ASSERT_EQ(reads.memory[i], PeerByte(i));
    }
    EXPECT_EQ(own.connected[0]->Describe().rfind(kind == "shm" ? "shm, 1 segment" : kind + " ", 0),
              0u);
  }
}

TEST(EndpointProcessTest, AKilledPeerEndsEveryReadAtOnceAndLeavesNoDescriptor) {
  constexpr std::size_t kPiece = 1 << 20, kPieces = 50;
  for (const std::string& kind : Kinds()) {
    SCOPED_TRACE(kind);
    const TemporaryFolder folder;
    const auto loop = EpollLoop::Make("own").value();
    Own own(*loop, PeerOptions("own", folder.path(), kind));
    const std::size_t before = OpenDescriptors();
    {
      PeerProcess peer(FolderOfThisProgram(), "peer", folder.path(), kind, kPiece * kPieces);
      ASSERT_TRUE(own.Connect(peer.peer(), peer.address()).ok());
      Reads reads(kPieces, kPiece);
      std::vector<absl::Status> closed;
      MonoTime killed;
      reads.on_end = [&] {  // On the loop: the reads after this one are all still under way.
        if (reads.ended() != 2) return;
        killed = SteadyClock().Now();
        peer.Kill();
      };
      loop->Run([&] {
        own.connected[0]->Start(
            {.on_message = {}, .on_closed = [&](auto& s) { closed.push_back(s); }});
        reads.Begin(*own.connected[0], peer.segment(), *loop, seconds(25));
      });
      ASSERT_TRUE(own.Until([&] { return !closed.empty(); }));
      EXPECT_LT(SteadyClock().Now() - killed, seconds(1));
      EXPECT_EQ(closed[0].code(), StatusCode::kUnavailable) << closed[0];
      EXPECT_EQ(reads.ended(), kPieces);
      int cut = 0;
      for (const auto& ends : reads.ends) {
        ASSERT_EQ(ends.size(), 1u);
        EXPECT_TRUE(ends[0].ok() || absl::IsUnavailable(ends[0])) << ends[0];
        cut += ends[0].ok() ? 0 : 1;
      }
      EXPECT_GT(cut, 0);
      loop->Run([&] { own.connected.clear(); });
    }
    EXPECT_EQ(OpenDescriptors(), before);
  }
}

// The release of UCX is compared as what else must be alike; nothing of UCX's is read before.
TEST_F(EndpointTest, AnotherReleaseOfUcxIsRefused) {
  if (!UcxTransport::Built()) GTEST_SKIP() << "built without UCX";
  const Own b(*loop_, PeerOptions("b", folder_.path(), "ucx"));
  Endpoint::Options options = PeerOptions("a", folder_.path(), "tcp");
  options.identity.emplace_back("UCX", "1.12.0");
  Own a(*loop_, options);
  // Over the socket where peers of kind ucx meet, which begins as a TCP one does.
  const std::string address = "tcp" + b.endpoint->address().substr(3);
  const absl::Status status = a.Connect({"b", 1}, address);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
  EXPECT_NE(status.message().find("UCX is 1.12.0 here, 1."), absl::string_view::npos) << status;
}

TEST_F(EndpointTest, WithoutUcxItsKindIsAnError) {
  if (UcxTransport::Built()) GTEST_SKIP() << "built with UCX";
  const Own a(*loop_, PeerOptions("a", folder_.path(), "ucx"));
  EXPECT_EQ(a.status.code(), StatusCode::kUnimplemented);
  EXPECT_NE(a.status.message().find("built without UCX"), absl::string_view::npos) << a.status;
}

// Loading UCX leaves the process as it was: a hang-up ends it.
TEST(EndpointProcessTest, SignalsAreNotTaken) {
  struct sigaction action {};
  ASSERT_EQ(::sigaction(SIGHUP, nullptr, &action), 0);
  EXPECT_EQ(action.sa_handler, SIG_DFL);
}

// Transports are what we say: these of the environment would leave the two without any.
TEST(EndpointProcessTest, TheEnvironmentOfUcxDoesNotDecide) {
  if (!UcxTransport::Built()) GTEST_SKIP() << "built without UCX";
  for (const char* name : {"UCX_TLS", "UCX_NET_DEVICES", "UCX_PROTOS"}) {
    ASSERT_EQ(::setenv(name, "none-such", 1), 0);
  }
  const TemporaryFolder folder;
  const PeerProcess peer(FolderOfThisProgram(), "peer", folder.path(), "ucx", 1 << 16);
  const auto loop = EpollLoop::Make("own").value();
  Own own(*loop, PeerOptions("own", folder.path(), "ucx"));
  ASSERT_TRUE(own.status.ok()) << own.status;
  ASSERT_TRUE(own.Connect(peer.peer(), peer.address()).ok());
  Reads reads(1, 1 << 16);
  loop->Run([&] {
    own.connected[0]->Start({});
    reads.Begin(*own.connected[0], peer.segment(), *loop, seconds(25));
  });
  ASSERT_TRUE(own.Until([&] { return reads.ended() == 1; }));
  EXPECT_TRUE(reads.ends[0][0].ok()) << reads.ends[0][0];
  EXPECT_EQ(own.connected[0]->Describe().rfind("ucx 127.0.0.1:", 0), 0u);
  EXPECT_NE(own.connected[0]->Describe().find(" (tcp/lo)"), std::string::npos);
  for (const char* name : {"UCX_TLS", "UCX_NET_DEVICES", "UCX_PROTOS"}) ::unsetenv(name);
}

// After the hello, whatever a peer says instead of its UCX address.
TEST_F(EndpointTest, JunkInsteadOfAUcxAddressIsRefused) {
  if (!UcxTransport::Built()) GTEST_SKIP() << "built without UCX";
  Own b(*loop_, PeerOptions("b", folder_.path(), "ucx"));
  std::string release;
  loop_->Run([&] { release = UcxTransport::Make(*loop_, "127.0.0.1").value()->release(); });
  Hello hello;
  hello.self = {"a", 1};
  hello.identity = {{"model", "test"}, {"UCX", release}};
  const Route route = ParseRoutes(b.endpoint->address()).value()[0];
  std::size_t refused = 0;
  for (const std::vector<std::byte>& junk :
       {std::vector<std::byte>(12, std::byte{0}), std::vector<std::byte>(12, std::byte{0xff}),
        std::vector<std::byte>()}) {
    const UniqueFd fd = BeginConnect(route).value();
    ASSERT_EQ(::fcntl(fd.get(), F_SETFL, 0), 0);
    const std::vector<std::byte> said = EncodeHello(hello);
    ASSERT_EQ(::send(fd.get(), said.data(), said.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(said.size()));
    (void)::send(fd.get(), junk.data(), junk.size(), MSG_NOSIGNAL);
    ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
    ASSERT_TRUE(b.Until([&] { return b.refused.size() == refused + 1; }));
    const absl::StatusCode code = b.refused[refused++].code();
    EXPECT_EQ(code, junk.empty() ? StatusCode::kUnavailable : StatusCode::kInvalidArgument);
    EXPECT_TRUE(b.accepted.empty());
  }
}

// A peer that is stopped: over a network its silence ends the channel, over shared memory reads need it
// only to be told of the segment.
TEST(EndpointProcessTest, AStoppedPeerIsNoticed) {
  for (const std::string& kind : Kinds()) {
    if (kind == "shm") continue;
    SCOPED_TRACE(kind);
    const TemporaryFolder folder;
    PeerProcess peer(FolderOfThisProgram(), "peer", folder.path(), kind, 1 << 20);
    const auto loop = EpollLoop::Make("own").value();
    Endpoint::Options options = PeerOptions("own", folder.path(), kind);
    options.silence_max = milliseconds(200);
    Own own(*loop, options);
    ASSERT_TRUE(own.Connect(peer.peer(), peer.address()).ok());
    peer.Stop();
    Reads reads(2, 1 << 19);
    std::vector<absl::Status> closed;
    loop->Run([&] {
      own.connected[0]->Start(
          {.on_message = {}, .on_closed = [&](auto& s) { closed.push_back(s); }});
      reads.Begin(*own.connected[0], peer.segment(), *loop, seconds(25));
    });
    ASSERT_TRUE(own.Until([&] { return !closed.empty(); }));
    EXPECT_EQ(closed[0].code(), StatusCode::kUnavailable);
    EXPECT_EQ(closed[0].message().rfind("the peer said nothing for ", 0), 0u) << closed[0];
    for (const auto& ends : reads.ends) EXPECT_TRUE(absl::IsUnavailable(ends.at(0)));
  }
}

}  // namespace
}  // namespace penstock::transfer
