// SPDX-License-Identifier: Apache-2.0
// A cluster of shell scripts that behave as our processes do: they write ready files, and end when
// they are told.
#include "launch/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/log_printer.h"

namespace penstock::launch {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

// A free port is made up of the process id. With the policy round-robin the port is taken.
constexpr const char* kScript = R"(#!/bin/sh
role=$1
echo "$@"
while [ $# -gt 0 ]; do
  case $1 in
    --ready-file) ready=$2 ;;
    --port) port=$2 ;;
    --policy) [ "$2" != round-robin ] || { echo "port is taken" >&2; exit 1; } ;;
  esac
  shift
done
[ "${port:-0}" != 0 ] || port=$(($$ % 60000 + 1000))
trap 'echo ends; exit 0' TERM
echo "{\"grpc\": \"127.0.0.1:$port\", \"http\": \"http://127.0.0.1:9\", \"pid\": $$}" > "$ready.part"
mv "$ready.part" "$ready"
while :; do sleep 1000 & wait; done
)";

class ClusterTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string folder = testing::TempDir() + "penstock-cluster-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    program_ = folder + "/program";
    std::ofstream(program_) << kScript;
    std::filesystem::permissions(program_, std::filesystem::perms::owner_all);
  }
  void TearDown() override {
    if (HasFailure()) {
      for (const std::string& event : events_) ADD_FAILURE() << event;
    }
    if (loop_ != nullptr) {
      loop_->Run([&] { cluster_.reset(); });
    }
    std::filesystem::remove_all(std::filesystem::path(program_).parent_path());
  }

  void Start(const std::string& file, std::size_t host = 0) {
    Cluster::Options options;
    options.deployment = ParseDeployment(file, "test.yaml").value();
    options.host = host;
    options.commands.program = program_;
    options.supervisor.restart.pause_min = milliseconds(1);
    options.ask_every = milliseconds(1);
    options.ask.coordinator = [this](const std::string& address,
                                     std::function<void(absl::StatusOr<ClusterState>)> done) {
      Add("asks " + address);
      loop_->Post([this, done] {
        const std::lock_guard lock(mutex_);
        done(state_);
      });
    };
    options.ask.gateway =
        [this](const std::string& address,
               std::function<void(absl::StatusOr<std::vector<ClusterState::Model>>)> done) {
          Add("asks the gateway " + address);
          loop_->Post([this, done] {
            const std::lock_guard lock(mutex_);
            done(heard_);
          });
        };
    loop_ = EpollLoop::Make("test").value();
    loop_->Run([&] {
      cluster_ = Cluster::Start(*loop_, std::move(options),
                                {.on_line =
                                     [this](const std::string& name, std::string_view line) {
                                       Add(absl::StrCat(name, " | ", std::string(line)));
                                     },
                                 .on_progress = [this](const std::string& text) { Add(text); },
                                 .on_ready = [this] { Add("all ready"); },
                                 .on_failed =
                                     [this](const absl::Status& why) {
                                       Add("failed: " + std::string(why.message()));
                                     }})
                     .value();
    });
  }
  void Answer(absl::StatusOr<ClusterState> state) {
    const std::lock_guard lock(mutex_);
    state_ = std::move(state);
  }
  void Hear(absl::StatusOr<std::vector<ClusterState::Model>> models) {
    const std::lock_guard lock(mutex_);
    heard_ = std::move(models);
  }
  void Add(std::string event) {
    const std::lock_guard lock(events_mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }
  bool Wait(const std::string& event, int times = 1) {
    std::unique_lock lock(events_mutex_);
    return changed_.wait_for(lock, seconds(30), [&] {
      return std::count_if(events_.begin(), events_.end(), [&](const std::string& have) {
               return have.find(event) != std::string::npos;
             }) >= times;
    });
  }
  // The first event with that in it.
  std::string Event(const std::string& part) {
    const std::lock_guard lock(events_mutex_);
    const auto at = std::find_if(events_.begin(), events_.end(), [&](const std::string& have) {
      return have.find(part) != std::string::npos;
    });
    return at == events_.end() ? "" : *at;
  }
  std::vector<Endpoint> Endpoints() {
    std::vector<Endpoint> endpoints;
    loop_->Run([&] { endpoints = cluster_->endpoints(); });
    return endpoints;
  }
  bool Stop() {
    loop_->Run([&] { cluster_->Stop([this] { Add("stopped"); }); });
    return Wait("stopped");
  }

  static ClusterState Ready() {
    return {.models = {{.name = "m", .ready = true}},
            .workers = {{.name = "prefill-1", .state = "ready"},
                        {.name = "prefill-2", .state = "ready"},
                        {.name = "decode-1", .state = "ready"}},
            .pairs = {{.prefill = "prefill-1", .decode = "decode-1", .verified = true},
                      {.prefill = "prefill-2", .decode = "decode-1", .verified = true}}};
  }

  // Of those that said so, as they ended.
  std::vector<std::string> Ends() {
    const std::lock_guard lock(events_mutex_);
    std::vector<std::string> ends;
    for (const std::string& event : events_) {
      if (event.ends_with(" | ends")) ends.push_back(event.substr(0, event.find(' ')));
    }
    return ends;
  }

  std::string program_;
  std::mutex mutex_, events_mutex_;
  std::condition_variable changed_;
  std::vector<std::string> events_;
  absl::StatusOr<ClusterState> state_ = absl::UnavailableError("not yet");
  absl::StatusOr<std::vector<ClusterState::Model>> heard_ = Ready().models;
  std::unique_ptr<EpollLoop> loop_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(ClusterTest, WorkersAreToldWhereTheCoordinatorIs) {
  Start("model: m\nprefill: 2");
  ASSERT_TRUE(Wait("waiting for the coordinator at 127.0.0.1:"));
  EXPECT_TRUE(Wait("not yet"));
  Answer(ClusterState{
      .models = {{.name = "m", .ready = false}},
      .workers = {{.name = "prefill-2", .state = "loading"}, {.name = "x", .state = "ready"}}});
  ASSERT_TRUE(
      Wait("waiting for m, prefill-1 has not joined, prefill-2 loading, decode-1 has not joined"));
  ClusterState unpaired = Ready();
  unpaired.pairs[1].verified = false;
  Answer(unpaired);
  ASSERT_TRUE(Wait("waiting for prefill-2 to reach a decode worker"));
  Answer(Ready());
  ASSERT_TRUE(Wait("all ready"));
  const std::vector<Endpoint> endpoints = Endpoints();
  ASSERT_EQ(endpoints.size(), 4u);
  EXPECT_EQ(endpoints[0].name, "coordinator");
  EXPECT_THAT(Event("prefill-2 | prefill"), HasSubstr("--coordinator " + endpoints[0].grpc + " "));
  EXPECT_EQ(endpoints[3].role, Role::kDecode);
  EXPECT_GT(endpoints[3].pid, 0);
  ASSERT_TRUE(Stop());
  // The gateway inside stops taking before its workers go.
  ASSERT_EQ(Ends().size(), 4u);
  EXPECT_EQ(Ends()[0], "coordinator");
}

TEST_F(ClusterTest, StoreNodesAreWaitedForAndEndAfterWorkers) {
  const std::string disk = std::filesystem::path(program_).parent_path() / "a/disk";
  ClusterState joined = Ready();
  joined.workers.push_back({.name = "kvstore-1", .state = "ready"});  // No store node.
  Answer(joined);
  Start(absl::StrCat("model: m\ngateway: 1\nkvstore: {disk: ", disk, "}"));
  ASSERT_TRUE(Wait("waiting for kvstore-1 has not joined"));
  EXPECT_EQ(Event("all ready"), "");
  joined.stores = {{.name = "kvstore-1", .state = "ready"}};
  Answer(joined);
  ASSERT_TRUE(Wait("all ready"));
  const std::string secret = disk + "/secret";
  EXPECT_THAT(Event("kvstore-1 | kvstore"), HasSubstr("--secret-file " + secret));
  EXPECT_THAT(Event("decode-1 | decode"), HasSubstr("--secret-file " + secret));
  EXPECT_TRUE(std::filesystem::exists(secret));
  // It is started again like a worker.
  const std::vector<Endpoint> endpoints = Endpoints();
  const auto node = std::find_if(endpoints.begin(), endpoints.end(), [](const Endpoint& endpoint) {
    return endpoint.role == Role::kStore;
  });
  ASSERT_NE(node, endpoints.end());
  ::kill(node->pid, SIGKILL);
  EXPECT_TRUE(Wait("kvstore-1 is up again on"));
  EXPECT_TRUE(Wait("the cluster is ready again"));
  ASSERT_TRUE(Stop());
  const std::vector<std::string> ends = Ends();
  ASSERT_EQ(ends.size(), 5u);
  EXPECT_EQ(ends[0], "gateway-1");
  EXPECT_EQ(ends[3], "kvstore-1");
  EXPECT_EQ(ends[4], "coordinator");
}

TEST_F(ClusterTest, ASecretWithoutADiskEndsWithTheRun) {
  ClusterState joined = Ready();
  joined.stores = {{.name = "kvstore-1", .state = "ready"}};
  Answer(joined);
  Start("model: m\nkvstore: 1");
  ASSERT_TRUE(Wait("all ready"));
  const std::string line = Event("kvstore-1 | kvstore");
  const std::string secret = line.substr(line.find("--secret-file ") + 14);
  EXPECT_TRUE(std::filesystem::exists(secret)) << line;
  ASSERT_TRUE(Stop());
  loop_->Run([&] { cluster_.reset(); });
  EXPECT_FALSE(std::filesystem::exists(secret));
}

TEST_F(ClusterTest, RestartsKeepTheirAddresses) {
  Start("model: m\ngateway: 1");
  Answer(Ready());
  ASSERT_TRUE(Wait("all ready"));
  ClusterState alone = Ready();
  alone.workers.clear();
  Answer(alone);
  const std::vector<Endpoint> before = Endpoints();
  for (const Endpoint& endpoint : before) ::kill(endpoint.pid, SIGKILL);
  for (const Endpoint& endpoint : before) ASSERT_TRUE(Wait(endpoint.name + " is up again on"));
  const std::vector<Endpoint> after = Endpoints();
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t i = 0; i < after.size(); ++i) {
    EXPECT_NE(after[i].pid, before[i].pid);
    const bool listens = after[i].role == Role::kCoordinator || after[i].role == Role::kGateway;
    EXPECT_TRUE(!listens || after[i].grpc == before[i].grpc) << after[i].name;
  }
  EXPECT_TRUE(Wait("all ready", 5));  // Once, and once for each.
  EXPECT_TRUE(Wait("waiting for prefill-1 has not joined, decode-1 has not joined"));
  Answer(Ready());
  EXPECT_TRUE(Wait("the cluster is ready again"));
  std::optional<Endpoint> front;
  loop_->Run([&] { front = cluster_->front(); });
  EXPECT_EQ(front->name, "gateway-1");
}

TEST_F(ClusterTest, GatewaysHearOfItAMomentLater) {
  Answer(Ready());
  Hear(absl::UnavailableError("not yet"));
  Start("model: m\ngateway: 2");
  ASSERT_TRUE(Wait("waiting for gateway-2: not yet"));
  EXPECT_EQ(Event("all ready"), "");
  Hear(std::vector<ClusterState::Model>{{.name = "m", .ready = false}});
  ASSERT_TRUE(Wait("waiting for gateway-2 to hear of m"));
  EXPECT_EQ(Event("all ready"), "");
  Hear(Ready().models);
  ASSERT_TRUE(Wait("all ready"));
  for (const Endpoint& endpoint : Endpoints()) {
    if (endpoint.role != Role::kGateway) continue;
    EXPECT_EQ(Event("asks the gateway " + endpoint.grpc), "asks the gateway " + endpoint.grpc);
  }
}

TEST_F(ClusterTest, AStartThatFailsIsTheWholeCluster) {
  Start("model: m\npolicy: round-robin");
  ASSERT_TRUE(Wait("failed: coordinator ended before it was ready: exit code 1"));
  EXPECT_THAT(Event("failed"), HasSubstr("\n  port is taken"));
  EXPECT_TRUE(Stop());
}

// Its program is gone when it starts again.
TEST_F(ClusterTest, AWorkerThatIsGivenUpLeavesTheOthers) {
  Start("model: m");
  Answer(Ready());
  ASSERT_TRUE(Wait("all ready"));
  std::filesystem::remove(program_);
  ::kill(Endpoints()[2].pid, SIGKILL);
  ASSERT_TRUE(Wait("decode-1 failed 8 times in a row and is given up"));
  EXPECT_EQ(Event("failed: "), "");
  ::kill(Endpoints()[0].pid, SIGKILL);
  EXPECT_TRUE(Wait("failed: coordinator failed 8 times in a row"));
}

TEST_F(ClusterTest, AnotherHostStartsItsOwn) {
  Answer(Ready());
  Start("model: m\nhosts: {a: 127.0.0.1, b: 127.0.0.2}\nports: {grpc: 70}\ndecode: {host: b}", 1);
  ASSERT_TRUE(Wait("all ready"));
  EXPECT_EQ(Event("asks"), "asks 127.0.0.1:70");
  const std::vector<Endpoint> endpoints = Endpoints();
  ASSERT_EQ(endpoints.size(), 1u);
  EXPECT_THAT(Event("decode-1 | "),
              AllOf(HasSubstr("--coordinator 127.0.0.1:70"), HasSubstr("--host 127.0.0.2")));
  std::optional<Endpoint> front;
  loop_->Run([&] { front = cluster_->front(); });
  EXPECT_FALSE(front.has_value());
}

TEST(LogPrinterTest, PrefixesAreOfOneWidth) {
  const LogPrinter plain(-1, {"up", "prefill-1"}, false);
  EXPECT_EQ(plain.Format("up", "x"), "up        | x\n");
  EXPECT_EQ(plain.Format("prefill-1", ""), "prefill-1 | \n");
  const LogPrinter colored(-1, {"up", "prefill-1"}, true);
  EXPECT_EQ(colored.Format("up", "x"), "\x1b[36mup        |\x1b[0m x\n");
  EXPECT_NE(colored.Format("prefill-1", "x").substr(0, 5), colored.Format("up", "x").substr(0, 5));
}

}  // namespace
}  // namespace penstock::launch
