// SPDX-License-Identifier: Apache-2.0
// The other process of endpoint_test and transfer_bench: serves a segment until its input ends.
//
//   endpoint_peer NAME FOLDER KINDS BYTES [HOST]      KINDS: as "shm,tcp"
//
// Prints its address and the segment's number on one line. Byte i of the segment is PeerByte(i). A
// message is answered by itself.
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "base/epoll_loop.h"
#include "device/cpu_device.h"
#include "transfer/endpoint.h"
#include "transfer/endpoint_testing.h"
#ifdef PENSTOCK_NCCL_STANDIN
#include "transfer/nccl_testing.h"
#endif

namespace penstock::transfer {
namespace {

int Serve(const std::string& name, const std::string& folder, const std::string& kinds,
          std::size_t bytes, const std::string& host) {
  Endpoint::Options options = PeerOptions(name, folder, kinds, host);
  const std::unique_ptr<Device> device = CpuDevice::Make({}).value();
  std::unique_ptr<DeviceMemory> memory = device->Allocate(bytes, Sharing::kPeers).value();
#ifdef PENSTOCK_NCCL_STANDIN
  NcclTestGpu gpu;
  if (kinds.find("nccl") != std::string::npos) {
    gpu = MakeNcclTestGpu(1, {});
    options.nccl = {gpu.comms.get()};
    memory = gpu.device->AllocateHost(bytes).value();
  }
#endif
  for (std::size_t i = 0; i < bytes; ++i) memory->data()[i] = PeerByte(i);
  const auto loop = EpollLoop::Make("peer").value();
  std::map<Channel*, std::unique_ptr<Channel>> channels;
  std::unique_ptr<Endpoint> endpoint;
  bool failed = false;
  loop->Run([&] {
    auto made = Endpoint::Make(
        *loop, options,
        [&](std::unique_ptr<Channel> channel) {
          Channel* const raw = channel.get();
          channels[raw] = std::move(channel);
          raw->Start({.on_message = [raw](auto message) { (void)raw->Send(message); },
                      .on_closed = [&channels, raw](auto&) { channels.erase(raw); }});
        },
        [](const absl::Status&) {});
    if (!made.ok()) {
      std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
      failed = true;
      return;
    }
    endpoint = *std::move(made);
    const SegmentId segment = endpoint->Register(*memory);
    std::printf("%s %u\n", endpoint->address().c_str(), static_cast<unsigned>(segment));
    std::fflush(stdout);
  });
  char c;
  while (!failed && ::read(STDIN_FILENO, &c, 1) > 0) {
  }
  loop->Run([&] {
    channels.clear();
    endpoint.reset();
  });
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace penstock::transfer

int main(int argc, char** argv) {
  std::size_t bytes = 0;
  if (argc == 5 || argc == 6) std::from_chars(argv[4], argv[4] + std::strlen(argv[4]), bytes);
  if (bytes == 0) return 2;
  return penstock::transfer::Serve(argv[1], argv[2], argv[3], bytes,
                                   argc == 6 ? argv[5] : "127.0.0.1");
}
