// SPDX-License-Identifier: Apache-2.0
// Kind nccl: links between the GPUs of two workers, one or several of each. Segments and the places
// of units are device memory (or pinned memory of the host). The GPU that has them packs what was
// asked for into a slot of a staging ring, NCCL sends it to a slot of the GPU that wants them, which
// computes the checksums while it puts the bytes where they belong. So late bytes of NCCL's find a
// slot, and never a page.
//
// Both ends meet at one TCP socket of ours, which carries messages, questions and what nccl_frames.h
// says, and shows when the peer is gone. A lane (nccl_lane.h) is a pair of GPUs, one of each side:
// there is one for each pair that has a read, made with the first, with a communicator of its own.
// Where a communicator cannot be made, or moves nothing, the whole link ends, so that its user
// takes another kind for all of the two workers' GPUs.
//
// In ids of reads on the socket the upper 16 bits are the number of the lane, as in NcclFrame:
// rank 0's GPU in the upper eight of them.
//
// What is trusted: NCCL's own sockets and wire are not hardened against strangers or a hostile
// peer, who can make it fail or hang, and change what lies in slots; checksums are what tells. Use
// kind nccl in a network where only the cluster's machines can reach them. Our own frames are
// checked like those of TCP.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "transfer/link.h"
#include "transfer/nccl_comms.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

struct NcclLinkOptions {
  std::string peer_address = {};                    // For people.
  Duration silence_max = std::chrono::seconds(10);  // As TcpOptions.
  bool first = false;  // Rank 0, which opens communicators; of the two ends one is.
};

// `socket`: connected, a non-blocking stream; both sides know each other, and that their releases
// of NCCL are equal. `gpus`: of this side, as segments and lanes count them; one at least, and
// kGpusMax at most (CHECKed). `loop`, `gpus` and `own` outlive the link. UNAVAILABLE: a GPU is
// unhealthy.
absl::StatusOr<std::unique_ptr<Link>> MakeNcclLink(EpollLoop& loop, UniqueFd socket,
                                                   SegmentTable& own,
                                                   const std::vector<NcclComms*>& gpus,
                                                   NcclLinkOptions options);

}  // namespace penstock::transfer
