// SPDX-License-Identifier: Apache-2.0
// Each row of the table in nccl_standin.h, through the table that the program sees.
#include "device/nccl_standin.h"

#include <gtest/gtest.h>
#include <nccl.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/time.h"
#include "device/cuda_device.h"
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"
#include "device/nccl_symbols.h"
#include "device/nccl_table.h"
#include "device/planted_faults_testing.h"

namespace penstock {
namespace {

const CudaPlugin& Plugin() {
  static const CudaPlugin plugin = {.version = kCudaPluginVersion,
                                    .plugin_bytes = sizeof(CudaPlugin),
                                    .runtime = kCudaRuntime,
                                    .kernels = nullptr,
                                    .nccl = LoadNccl};
  return plugin;
}
const NcclApi& Nccl() { return *LoadNccl()->api; }

// A communicator with a stream and device memory.
class Rank {
 public:
  Rank(CudaDevice& device, const NcclId& id, int rank, int ranks = 2)
      : stream(Plugin(), device.gpu()), memory(device.Allocate(kBytes).value()), rank_(rank) {
    begun = Nccl().comm_init(&comm, ranks, id, rank, 1, 4);
  }
  ~Rank() {
    if (comm != nullptr) {
      EXPECT_EQ(Nccl().comm_abort(comm), kNcclSuccess);
    }
    for (CudaEventHandle event : events_) (void)Plugin().runtime.event_destroy(event);
  }
  int State() {
    int state = 0;
    EXPECT_EQ(Nccl().comm_get_async_error(comm, &state), kNcclSuccess);
    return state;
  }
  // The state once it is another than in progress.
  int Settle() {
    const MonoTime end = SteadyClock().Now() + std::chrono::seconds(30);
    while (State() == kNcclInProgress && SteadyClock().Now() < end) std::this_thread::yield();
    return State();
  }
  std::byte* at(std::size_t offset) { return memory->data() + offset; }
  int Send(std::size_t offset, std::size_t bytes) {
    return Nccl().send(at(offset), bytes, 1 - rank_, comm, stream.handle());
  }
  int Receive(std::size_t offset, std::size_t bytes) {
    return Nccl().recv(at(offset), bytes, 1 - rank_, comm, stream.handle());
  }
  // A group that ends well, until it is on the stream; then an event behind it.
  CudaEventHandle Group(const std::function<void()>& calls) {
    EXPECT_EQ(Nccl().group_start(), kNcclSuccess);
    calls();
    EXPECT_EQ(Nccl().group_end(), kNcclInProgress);
    EXPECT_EQ(Settle(), kNcclSuccess);
    return Mark();
  }
  CudaEventHandle Mark() {
    CudaEventHandle event = nullptr;
    EXPECT_EQ(Plugin().runtime.event_create(&event), kCudaSuccess);
    EXPECT_EQ(Plugin().runtime.event_record(event, stream.handle()), kCudaSuccess);
    events_.push_back(event);
    return event;
  }
  static bool Done(CudaEventHandle event) {
    return Plugin().runtime.event_query(event) == kCudaSuccess;
  }
  static bool Await(CudaEventHandle event) {
    const MonoTime end = SteadyClock().Now() + std::chrono::seconds(30);
    while (!Done(event) && SteadyClock().Now() < end) std::this_thread::yield();
    return Done(event);
  }
  // On a stream of its own, as NCCL's may hang.
  void Fill(std::size_t offset, std::size_t bytes, int value) {
    CudaStream mine(Plugin(), 0);
    EXPECT_EQ(Plugin().runtime.memset_async(at(offset), value, bytes, mine.handle()), kCudaSuccess);
  }
  // The value of all those bytes; -1: they differ.
  int Value(std::size_t offset, std::size_t bytes) {
    std::vector<std::byte> host(bytes);
    CudaStream mine(Plugin(), 0);
    mine.Copy(host.data(), at(offset), bytes);
    EXPECT_TRUE(mine.Synchronize().ok());
    for (const std::byte b : host) {
      if (b != host[0]) return -1;
    }
    return static_cast<int>(host[0]);
  }

  static constexpr std::size_t kBytes = std::size_t{8} << 20;
  NcclCommHandle comm = nullptr;
  int begun = 0;
  CudaStream stream;
  std::unique_ptr<DeviceMemory> memory;

 private:
  const int rank_;
  std::vector<CudaEventHandle> events_;
};

class NcclStandinTest : public testing::Test {
 protected:
  void TearDown() override {
    nccl_standin::Set({});
    ranks_ = {};
    EXPECT_EQ(nccl_standin::Now().comms, 0);
    EXPECT_EQ(nccl_standin::Now().misuses, misuses_) << nccl_standin::Now().last_fault;
  }
  Rank& Join(std::size_t rank) {
    ranks_[rank] = std::make_unique<Rank>(*device_, id_, static_cast<int>(rank));
    return *ranks_[rank];
  }
  void Pair() {
    Rank& a = Join(0);
    Rank& b = Join(1);
    EXPECT_EQ(a.Settle(), kNcclSuccess);
    EXPECT_EQ(b.Settle(), kNcclSuccess);
  }
  static NcclId NewId() {
    NcclId id;
    EXPECT_EQ(Nccl().get_unique_id(&id), kNcclSuccess);
    return id;
  }

  std::unique_ptr<CudaDevice> device_ = CudaDevice::Make(Plugin(), {.threads = 1}).value();
  NcclId id_ = NewId();
  std::array<std::unique_ptr<Rank>, 2> ranks_;
  std::int64_t misuses_ = nccl_standin::Now().misuses;
};

TEST_F(NcclStandinTest, IsFoundAsTheLibraryIs) {
  EXPECT_EQ(LoadNccl()->version, NCCL_VERSION_CODE);
  EXPECT_EQ(LoadNccl()->header_version, NCCL_VERSION_CODE);
  EXPECT_STREQ(LoadNccl()->why_not, "");
}

TEST(NcclVersionTest, OlderOnesAndOtherMajorNumbersAreRefused) {
  EXPECT_EQ(WhyNotNcclVersion(NCCL_VERSION_CODE), "");
  EXPECT_EQ(WhyNotNcclVersion(NCCL_VERSION_CODE + 100), "");
  const std::string needed = NcclVersionText(NCCL_VERSION_CODE) + " or a later 2";
  EXPECT_EQ(WhyNotNcclVersion(22005), "NCCL is 2.20.5, the plug-in needs " + needed);
  EXPECT_EQ(WhyNotNcclVersion(30000), "NCCL is 3.0.0, the plug-in needs " + needed);
}

TEST_F(NcclStandinTest, MakesAPair) {
  Pair();
  Rank* const a = ranks_[0].get();
  Rank* const b = ranks_[1].get();
  EXPECT_EQ(a->begun, kNcclInProgress);
  EXPECT_EQ(nccl_standin::Now().comms, 2);
  b->Fill(0, 5000, 1);
  a->Fill(0, 5000, 7);
  const auto sent = a->Group([&] { EXPECT_EQ(a->Send(0, 5000), kNcclSuccess); });
  const auto got = b->Group([&] { EXPECT_EQ(b->Receive(0, 5000), kNcclSuccess); });
  EXPECT_TRUE(Rank::Await(sent));
  EXPECT_TRUE(Rank::Await(got));
  EXPECT_EQ(b->Value(0, 5000), 7);
}

TEST_F(NcclStandinTest, RefusesWhatItHasNot) {
  NcclCommHandle comm = nullptr;
  EXPECT_EQ(Nccl().comm_init(&comm, 1, id_, 0, 1, 4), ncclInvalidArgument);
  EXPECT_EQ(Nccl().comm_init(&comm, 65, id_, 0, 1, 4), ncclInvalidArgument);
  EXPECT_EQ(Nccl().comm_init(&comm, 2, id_, 2, 1, 4), ncclInvalidArgument);
  EXPECT_EQ(Nccl().comm_init(&comm, 2, NcclId{}, 0, 1, 4), ncclInvalidArgument);
  EXPECT_EQ(comm, nullptr);
}

TEST_F(NcclStandinTest, NotBeforeItIsReady) {
  Rank& a = Join(0);
  EXPECT_EQ(Nccl().group_start(), kNcclSuccess);
  EXPECT_EQ(a.Send(0, 10), ncclInvalidUsage);
  EXPECT_EQ(Nccl().group_end(), kNcclSuccess);
  ++misuses_;
}

TEST_F(NcclStandinTest, InitWaitsUntilAbort) {
  Rank& a = Join(0);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.State(), kNcclInProgress);
}

TEST_F(NcclStandinTest, InitEndsWithALateError) {
  nccl_standin::Set({.init_error = ncclSystemError});
  Rank& a = Join(0);
  EXPECT_EQ(a.State(), kNcclInProgress);
  Join(1);
  EXPECT_EQ(a.Settle(), ncclSystemError);
}

TEST_F(NcclStandinTest, GroupsReachTheirStreamLater) {
  Pair();
  Rank* const a = ranks_[0].get();
  Rank* const b = ranks_[1].get();
  EXPECT_EQ(Nccl().group_start(), kNcclSuccess);
  EXPECT_EQ(b->Receive(0, 100), kNcclSuccess);
  EXPECT_EQ(Nccl().group_end(), kNcclInProgress);
  const CudaEventHandle early = b->Mark();
  EXPECT_TRUE(Rank::Done(early)) << "there is nothing before it";
  EXPECT_EQ(b->Settle(), kNcclSuccess);
  const CudaEventHandle behind = b->Mark();
  EXPECT_FALSE(Rank::Done(behind));
  EXPECT_TRUE(Rank::Await(a->Group([&] { (void)a->Send(0, 100); })));
  EXPECT_TRUE(Rank::Await(behind));
}

TEST_F(NcclStandinTest, GroupsRunInOrder) {
  Pair();
  Rank* const a = ranks_[0].get();
  Rank* const b = ranks_[1].get();
  constexpr std::size_t kPart = 300000;
  for (std::size_t i = 0; i < 5; ++i) {
    a->Fill(i * kPart, kPart, static_cast<int>(i + 1));
    a->Group([&] { EXPECT_EQ(a->Send(i * kPart, kPart), kNcclSuccess); });
  }
  std::vector<CudaEventHandle> got;
  for (std::size_t i = 0; i < 5; ++i) {
    got.push_back(b->Group([&] { EXPECT_EQ(b->Receive(i * kPart, kPart), kNcclSuccess); }));
  }
  ASSERT_TRUE(Rank::Await(got[4]));
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_TRUE(Rank::Done(got[i]));
    EXPECT_EQ(b->Value(i * kPart, kPart), static_cast<int>(i + 1));
  }
}

TEST_F(NcclStandinTest, BothWaysInOneGroup) {
  Pair();
  Rank* const a = ranks_[0].get();
  Rank* const b = ranks_[1].get();
  constexpr std::size_t kPart = std::size_t{4} << 20;  // More than sockets hold.
  a->Fill(0, kPart, 3);
  b->Fill(0, kPart, 4);
  const auto done_a = a->Group([&] {
    EXPECT_EQ(a->Send(0, kPart), kNcclSuccess);
    EXPECT_EQ(a->Receive(kPart, kPart), kNcclSuccess);
  });
  const auto done_b = b->Group([&] {
    EXPECT_EQ(b->Send(0, kPart), kNcclSuccess);
    EXPECT_EQ(b->Receive(kPart, kPart), kNcclSuccess);
  });
  EXPECT_TRUE(Rank::Await(done_a));
  EXPECT_TRUE(Rank::Await(done_b));
  EXPECT_EQ(a->Value(kPart, kPart), 4);
  EXPECT_EQ(b->Value(kPart, kPart), 3);
}

TEST_F(NcclStandinTest, SendsWaitForReceives) {
  for (const bool rendezvous : {false, true}) {
    SCOPED_TRACE(rendezvous);
    nccl_standin::Set({.rendezvous = rendezvous});
    Pair();
    Rank* const a = ranks_[0].get();
    Rank* const b = ranks_[1].get();
    const auto sent = a->Group([&] { EXPECT_EQ(a->Send(0, 10), kNcclSuccess); });
    if (!rendezvous) {
      EXPECT_TRUE(Rank::Await(sent));
    }
    for (int i = 0; rendezvous && i < 100; ++i) EXPECT_FALSE(Rank::Done(sent));
    EXPECT_TRUE(Rank::Await(b->Group([&] { EXPECT_EQ(b->Receive(0, 10), kNcclSuccess); })));
    EXPECT_TRUE(Rank::Await(sent));
    ranks_ = {};
    id_ = NewId();
  }
}

// Two gathers in a row, the first in place; ranks come to them in any order.
TEST_F(NcclStandinTest, GathersAll) {
  for (const int ranks : {2, 3, 5}) {
    SCOPED_TRACE(ranks);
    std::vector<std::unique_ptr<Rank>> all;
    for (int r = 0; r < ranks; ++r) {
      all.push_back(std::make_unique<Rank>(*device_, id_, r, ranks));
    }
    constexpr std::size_t kPart = 300000, kOwn = std::size_t{4} << 20;
    for (int r = ranks - 1; r >= 0; --r) {
      Rank& rank = *all[static_cast<std::size_t>(r)];
      ASSERT_EQ(rank.Settle(), kNcclSuccess);
      const std::size_t own = static_cast<std::size_t>(r) * kPart;
      rank.Fill(own, kPart, 10 + r);
      rank.Fill(kOwn, 7, 20 + r);
      EXPECT_EQ(Nccl().all_gather(rank.at(own), rank.at(0), kPart, rank.comm, rank.stream.handle()),
                kNcclInProgress);
      EXPECT_EQ(rank.Settle(), kNcclSuccess);
      EXPECT_EQ(
          Nccl().all_gather(rank.at(kOwn), rank.at(kOwn + 100), 7, rank.comm, rank.stream.handle()),
          kNcclInProgress);
      EXPECT_EQ(rank.Settle(), kNcclSuccess);
      if (r > 0) {
        EXPECT_FALSE(Rank::Done(rank.Mark())) << "the first rank is not there";
      }
    }
    for (const auto& rank : all) {
      ASSERT_TRUE(Rank::Await(rank->Mark()));
      for (int r = 0; r < ranks; ++r) {
        const auto at = static_cast<std::size_t>(r);
        EXPECT_EQ(rank->Value(at * kPart, kPart), 10 + r);
        EXPECT_EQ(rank->Value(kOwn + 100 + at * 7, 7), 20 + r);
      }
    }
    all.clear();
    id_ = NewId();
  }
}

TEST_F(NcclStandinTest, SizesMustAgree) {
  Pair();
  Rank* const a = ranks_[0].get();
  Rank* const b = ranks_[1].get();
  a->Group([&] { EXPECT_EQ(a->Send(0, 100), kNcclSuccess); });
  const auto got = b->Group([&] { EXPECT_EQ(b->Receive(0, 99), kNcclSuccess); });
  const MonoTime end = SteadyClock().Now() + std::chrono::seconds(30);
  while (b->State() == kNcclSuccess && SteadyClock().Now() < end) std::this_thread::yield();
  EXPECT_EQ(b->State(), ncclInvalidUsage);
  EXPECT_EQ(nccl_standin::Now().last_fault, "a receive of 99 bytes meets a send of 100");
  EXPECT_FALSE(Rank::Done(got));
}

TEST_F(NcclStandinTest, BuffersAreOfTheDevice) {
  Pair();
  Rank* const a = ranks_[0].get();
  std::array<std::byte, 10> host = {};
  EXPECT_EQ(Nccl().group_start(), kNcclSuccess);
  EXPECT_EQ(Nccl().send(host.data(), host.size(), 1, a->comm, a->stream.handle()),
            ncclInvalidArgument);
  EXPECT_EQ(a->Send(Rank::kBytes, 5000), ncclInvalidArgument) << "behind the end";
  EXPECT_EQ(Nccl().group_end(), kNcclSuccess);
}

TEST_F(NcclStandinTest, GroupEndMayFail) {
  Pair();
  Rank* const a = ranks_[0].get();
  nccl_standin::Set({.group_end_error = ncclSystemError});
  EXPECT_EQ(Nccl().group_start(), kNcclSuccess);
  EXPECT_EQ(a->Send(0, 10), kNcclSuccess);
  EXPECT_EQ(Nccl().group_end(), ncclSystemError);
  EXPECT_EQ(a->State(), ncclSystemError);
}

TEST_F(NcclStandinTest, ErrorsOfOneRank) {
  const auto other = CudaDevice::Make(Plugin(), {.threads = 1}, 1).value();
  Join(0);
  ranks_[1] = std::make_unique<Rank>(*other, id_, 1);
  Rank *const a = ranks_[0].get(), *const b = ranks_[1].get();
  EXPECT_EQ(a->Settle(), kNcclSuccess);
  EXPECT_EQ(b->Settle(), kNcclSuccess);
  cuda_standin::Change({.synchronizes = 0, .lost_error = 214, .lost_gpu = 1});
  EXPECT_EQ(b->Send(0, 10), ncclUnhandledCudaError);
  const cuda_standin::PlantedFaults faults;
  faults.Plant("nccl1", ncclRemoteError);
  EXPECT_EQ(a->State(), kNcclSuccess);
  EXPECT_TRUE(faults.IsThere("nccl1"));
  EXPECT_EQ(b->State(), ncclRemoteError);
  EXPECT_FALSE(faults.IsThere("nccl1")) << "it was taken";
  EXPECT_EQ(b->State(), ncclRemoteError);
  EXPECT_EQ(a->State(), kNcclSuccess);
  ranks_ = {};
}

TEST_F(NcclStandinTest, DeathOfAPeer) {
  for (const bool silent : {false, true}) {
    SCOPED_TRACE(silent);
    nccl_standin::Set({.silent_death = silent});
    Pair();
    Rank* const b = ranks_[1].get();
    const auto got = b->Group([&] { EXPECT_EQ(b->Receive(0, 100), kNcclSuccess); });
    ranks_[0].reset();
    const MonoTime end = SteadyClock().Now() + std::chrono::seconds(silent ? 0 : 30);
    while (b->State() == kNcclSuccess && SteadyClock().Now() < end) std::this_thread::yield();
    EXPECT_EQ(b->State(), silent ? ncclSuccess : ncclRemoteError);
    EXPECT_FALSE(Rank::Done(got));
    ranks_ = {};
    id_ = NewId();
  }
}

TEST_F(NcclStandinTest, AbortEndsWork) {
  Pair();
  Rank* const b = ranks_[1].get();
  b->Fill(0, 1000, 1);
  const auto got = b->Group([&] { EXPECT_EQ(b->Receive(0, 1000), kNcclSuccess); });
  nccl_standin::Set({.abort_hangs = true});
  const std::int64_t aborts = nccl_standin::Now().aborts;
  std::jthread abort([b = b] { (void)Nccl().comm_abort(std::exchange(b->comm, nullptr)); });
  EXPECT_TRUE(Rank::Await(got)) << "work ends";
  EXPECT_EQ(nccl_standin::Now().aborts, aborts + 1);
  EXPECT_EQ(b->Value(0, 1000), 1);
  b->Fill(0, 1000, 2);  // Somebody who should have waited.
  nccl_standin::Set({});
  abort.join();
  EXPECT_EQ(b->Value(0, 1000), 0xDB);
}

TEST_F(NcclStandinTest, RegistersBuffers) {
  Pair();
  Rank* const a = ranks_[0].get();
  void* registration = nullptr;
  std::array<std::byte, 10> host = {};
  EXPECT_EQ(Nccl().comm_register(a->comm, host.data(), host.size(), &registration),
            ncclInvalidArgument);
  EXPECT_EQ(Nccl().comm_register(a->comm, a->at(0), Rank::kBytes, &registration), kNcclSuccess);
  EXPECT_EQ(nccl_standin::Now().registrations, 1);
  EXPECT_EQ(Nccl().comm_deregister(a->comm, registration), kNcclSuccess);
  EXPECT_EQ(nccl_standin::Now().registrations, 0);
}

}  // namespace
}  // namespace penstock
