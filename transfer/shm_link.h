// SPDX-License-Identifier: Apache-2.0
// A link between two processes of one host. Messages go over a Unix socket; the peer's segments
// come over it once, as descriptors, and are mapped read-only: a read is then a copy of this
// process's own, which the peer takes no part in.
//
// Nothing that a peer sends can make a load fault: a segment is mapped only if it is a memfd whose
// size is sealed against shrinking, and no read goes outside.
#pragma once

#include <memory>

#include "base/epoll_loop.h"
#include "base/unique_fd.h"
#include "transfer/link.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

// `socket`: connected, AF_UNIX, SOCK_SEQPACKET, non-blocking; both sides know each other. The
// segments in `own` that have a shared_fd are those that the peer can read. `loop` and `own`
// outlive the link.
std::unique_ptr<Link> MakeShmLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own);

}  // namespace penstock::transfer
