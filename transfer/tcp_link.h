// SPDX-License-Identifier: Apache-2.0
// A link over TCP. The owner of a segment sends straight from it, the reader's socket is read
// straight into its pages and the checksum is computed over what landed there. Many reads are under
// way at once, and served in order; messages go between their frames.
//
// Nothing that comes is believed: bytes land only where a read asked for them, and a peer that
// breaks the protocol is cut off.
#pragma once

#include <memory>
#include <string>

#include "base/epoll_loop.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "transfer/link.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

struct TcpOptions {
  std::string peer_address;  // For people.
  // A peer that sends nothing for so long, not even the ping that is due four times in it, is gone.
  Duration silence_max = std::chrono::seconds(10);
};

// `socket`: connected, a non-blocking stream; both sides know each other. `loop` and `own` outlive
// the link.
std::unique_ptr<Link> MakeTcpLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own,
                                  TcpOptions options);

}  // namespace penstock::transfer
