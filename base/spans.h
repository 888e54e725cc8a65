// SPDX-License-Identifier: Apache-2.0
// Where the time of requests goes, on by default: a span is a named stretch of time of one attempt
// in this process, with what it moved. A process keeps its last ones in a ring; who wants them asks
// over penstock.v1.Trace (rpc/trace_service.h), and `penstock trace` puts those of all processes
// together.
//
//   Trace(spans, {.name = SpanName::kReserve, .request_id = id, .begin = asked, .end = now});
//
// A null ring is tracing switched off: one branch. Nothing here reads a clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>

#include "base/time.h"

namespace penstock {

// Who sees what. The end of one is the begin of the next where they are written in one line.
enum class SpanName : std::uint8_t {
  // Gateway.
  kRequest,     // Arrival to the end of the client's stream; `text` is its traceparent.
  kTokenize,    // Text to `tokens`.
  kHash,        // Tokens to chains; `blocks`.
  kRoute,       // Coordinator asked -> plan told. `peer` is the decode worker.
  kFirstToken,  // Plan told -> first token relayed.
  kStream,      // First token -> last token relayed; `tokens` of all answers.
  // Coordinator.
  kQueue,    // Admitted, or lost -> planned.
  kReserve,  // Decode worker asked -> memory granted.
  kStart,    // Prefill worker asked -> order taken.
  // Prefill worker, or the decode worker where it computes the prompt.
  kStoreWait,  // Store node asked -> its first copy is in host memory. `peer` is the node, `text`
               // tier and codec, and "mapped" where some of it is used where it lies.
  kFetch,      // First copy told -> the last is in place and verified; `bytes` as they travel.
  kUnpack,     // Of that time, decoding frames; from its begin, for as long.
  // A worker's keeper, of no request.
  kEncode,  // A block's frame is made; `peer` is the node, `text` the codec, `bytes` the frame's.
  kChooseCodec,  // A block is measured by every lossless codec; `text`: the choice and its seconds.
  // A store node, of no request. `text` is tier and codec.
  kPromote,   // Copy asked for -> it is in host memory, or why not.
  kDiskRead,  // A copy's read asked of the disk -> there and checked, whatever it is read for.
  // Whoever moves bytes that no running request waits for.
  kTurn,  // Asked the link `peer` for a turn -> it may move; `text` is its class (transfer/link_queue.h).
  // Prefill worker.
  kConnect,      // Order and prompt are there -> a channel to the decode worker is open.
  kPrefillWait,  // Given to the engine -> the first pass over it begins.
  kPrefill,      // One pass over `tokens` of the prompt.
  kSend,  // Layer of a chunk computed -> checksummed and told. `bytes` that the peer may read.
  // Decode worker.
  kAllocate,  // Engine asked for memory -> granted; `tokens` reused.
  kWait,      // A layer of blocks told -> its read asked for: others are read before.
  kWire,      // Read asked for -> in place and verified; one pass does wire, land and checksum.
  // Parts of kWire over kind nccl, by CUDA events but for kReady; of several slots from the begin of
  // the first, for the sum of their times.
  kPack,       // The peer's GPU gathers blocks into its ring; ends as it offers them.
  kReady,      // Offered -> both sides post the move.
  kMove,       // NCCL moves them from ring to ring.
  kLand,       // This GPU puts them in place and computes their checksums.
  kFirstStep,  // All verified, and the gateway's call is there -> first token.
  kDecode,     // First token -> last token; `tokens` of all answers.
};
inline constexpr std::size_t kSpanNames = static_cast<std::size_t>(SpanName::kDecode) + 1;

// "wire"; for ever the same, since others read them.
std::string_view ToString(SpanName name);
// The part that records it: "gateway", "coordinator", "prefill", "decode", "worker" (of either kind), "store"
// or "link" (of whoever uses it).
std::string_view RoleOf(SpanName name);
std::optional<SpanName> ParseSpanName(std::string_view text);

// Texts longer than kSpanTextBytes are cut off when kept.
inline constexpr std::size_t kSpanTextBytes = 64;

struct Span {
  SpanName name = SpanName::kRequest;
  std::string_view request_id = {};
  std::uint32_t attempt = 0;  // 0: before the first.
  MonoTime begin = {};
  MonoTime end = {};
  std::uint64_t bytes = 0;
  std::uint32_t tokens = 0;
  std::uint32_t blocks = 0;
  std::int16_t layer = -1;          // Of the KV group; -1: none.
  std::int16_t group = -1;          // Likewise.
  std::string_view peer = {};       // The other worker's name.
  std::string_view transport = {};  // "shm", "tcp", ...; at most 8 bytes are kept.
  std::string_view text = {};
};

// Any thread. A lock is held while a span or a few are copied, and for nothing else.
class SpanRing {
 public:
  // 256 bytes of address space for each span, of which only what was used takes memory: 16 MiB when
  // the default is full.
  explicit SpanRing(std::size_t spans_max = 65536);

  // Forgets the oldest when full.
  void Record(const Span& span);

  // Calls `visit` with each span kept whose number is at least `cursor`, oldest first, and returns
  // the cursor for those to come. Spans are numbered from 0 as they are recorded; those that were
  // forgotten are passed over. Stops after `most`. The span's texts live until `visit` returns,
  // which may take its time: nobody waits for it.
  std::uint64_t Read(
      std::uint64_t cursor, std::size_t most,
      const std::function<void(std::uint64_t number, const Span& span)>& visit) const;

  std::uint64_t recorded() const;
  std::uint64_t forgotten() const;  // Of those recorded: overwritten by now.
  std::size_t spans_max() const { return spans_max_; }

 private:
  struct Slot;
  struct SlotsDeleter {
    void operator()(Slot* slots) const;
  };

  // Copies up to slots.size() from `cursor` on; advances it to the number of the first copied.
  std::size_t Copy(std::uint64_t* cursor, std::span<Slot> slots) const;

  const std::size_t spans_max_;
  // Not Abseil's, into which the thread sanitizer cannot see. Guards all below.
  mutable std::mutex mutex_;
  std::uint64_t recorded_ = 0;
  std::unique_ptr<Slot[], SlotsDeleter> slots_;  // Number n is in slots_[n % spans_max].
};

inline void Trace(SpanRing* ring, const Span& span) {
  if (ring != nullptr) ring->Record(span);
}

// Whether spans of `request_id` belong to `wanted`: it itself, or one of its answers going on alone
// ("ID.0", "ID.1", ...).
bool IsOfRequest(std::string_view request_id, std::string_view wanted);

}  // namespace penstock
