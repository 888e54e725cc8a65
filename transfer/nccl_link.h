// SPDX-License-Identifier: Apache-2.0
// Kind nccl: links between two GPUs. Segments and the places of units are device memory (or pinned
// memory of the host). The server's GPU packs what was asked for into a slot of a staging ring,
// NCCL sends it to a slot at the reader's, whose GPU computes the checksums while it puts the bytes
// where they belong. So late bytes of NCCL's find a slot, and never a page.
//
// Both ends meet at a TCP socket of ours, which carries messages, questions and what nccl_frames.h
// says, and shows when the peer is gone. The communicator is made with the first read, and again
// with the next read after it was lost: then the reads under way end as UNAVAILABLE, the link stays
// open. Where one cannot be made, or moves
// nothing, rank 0 ends the link, so that its user takes another kind.
//
// What is trusted: NCCL's own sockets and wire are not hardened against strangers or a hostile
// peer, who can make it fail or hang, and change what lies in slots; checksums are what tells. Use
// kind nccl in a network where only the cluster's machines can reach them. Our own frames are
// checked like those of TCP.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "transfer/frame_socket.h"
#include "transfer/link.h"
#include "transfer/nccl_comms.h"
#include "transfer/nccl_in.h"
#include "transfer/nccl_out.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

struct NcclLinkOptions {
  std::string peer_address = {};                    // For people.
  Duration silence_max = std::chrono::seconds(10);  // As TcpOptions.
  bool first = false;  // Rank 0, which opens communicators; of the two ends one is.
};

// `socket`: connected, a non-blocking stream; both sides know each other, and that their releases
// of NCCL are equal. `loop`, `comms` and `own` outlive the link. UNAVAILABLE: the GPU is unhealthy.
absl::StatusOr<std::unique_ptr<Link>> MakeNcclLink(EpollLoop& loop, UniqueFd socket,
                                                   SegmentTable& own, NcclComms& comms,
                                                   NcclLinkOptions options);

}  // namespace penstock::transfer
