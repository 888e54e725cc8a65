// SPDX-License-Identifier: Apache-2.0
// One peer over one kind of connection: small messages both ways, and reads of the peer's memory.
//
// Bytes move only by reading: who owns the memory that is written pulls, so no peer can write a
// page, let alone one it could outlive. To send, tell the peer by a message where to read
// ("ready"), and keep those bytes unchanged until it says that it is done; whether it got what was
// meant is decided by CRC32C, which the reader computes as it copies and compares with the one it
// was told.
//
// Shared memory: the reader copies from a read-only mapping. Sockets and UCX: the reader asks, the
// peer's side sends from its segment. GPUs: both sides post, after the same question.
//
// A Link lives on its endpoint's loop: all calls and all events are on that thread. Nothing blocks.
// Deadlines, comparison of checksums and statistics are Channel's (channel.h), once for all kinds.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "base/time.h"

namespace penstock::transfer {

enum class Kind : std::uint8_t { kInproc, kShm, kTcp, kUcx, kNccl };
std::string_view ToString(Kind kind);  // "inproc", "shm", "tcp", "ucx", "nccl".

// Memory that an endpoint lets its peers read; numbered by the endpoint, never reused in its life.
enum class SegmentId : std::uint32_t {};

// A contiguous part of a unit, as offsets from the unit's places in the segment and at the reader.
struct ByteRun {
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  std::uint32_t bytes = 0;
  bool operator==(const ByteRun&) const = default;
};

// What one checksum covers: usually one layer of one block. The runs are read in order, ascending
// in `from`; the checksum is over their bytes in that order.
struct Unit {
  std::uint64_t from = 0;   // Offset in the segment.
  std::byte* to = nullptr;  // The reader's memory. Null: only the checksum is wanted, of links that
                            // can do that (checks_alone).
  std::span<const ByteRun> runs;  // Of the pair's plan, which outlives the read.
};

// "10.0.0.1" of "10.0.0.1:4000", "[::1]" of "[::1]:4000", whatever comes behind a blank.
std::string HostOf(std::string_view peer_address);

// Over which GPUs a read between workers on several goes: each side counts its own from 0. Of kind
// nccl; elsewhere there is one lane.
struct Lane {
  std::uint8_t from = 0;  // The peer's, whose memory is read; below kGpusMax, as the other.
  std::uint8_t to = 0;    // The reader's.
  auto operator<=>(const Lane&) const = default;
};
// Of all runs of all units.
std::uint64_t TotalBytes(std::span<const Unit> units);
// INVALID_ARGUMENT with both numbers unless every run lies inside a segment of that size.
absl::Status CheckInside(std::span<const Unit> units, std::uint64_t segment_bytes);

enum class ReadId : std::uint64_t {};

// Where the time of a read between GPUs went. Of a read in several slots each part begins where the
// first slot's does, and has the sum of their times.
struct ReadParts {
  struct Part {
    MonoTime begin{};
    Duration time{};
    void Add(MonoTime end, Duration more) {
      if (begin == MonoTime()) begin = end - more;
      time += more;
    }
  };
  Part pack;   // Gathered by the peer's GPU, by its CUDA events; ends as the offer comes.
  Part ready;  // Offered -> posted by both sides.
  Part move;   // By NCCL; by CUDA events, as the next.
  Part land;   // Put in place, with checksums, by this side's GPU.
};

// What happens on a link. Destroying the link from inside is allowed.
class LinkEvents {
 public:
  virtual ~LinkEvents() = default;
  virtual void OnMessage(std::span<const std::byte> message) = 0;
  // A read has ended, once for every Read; from now on no byte of its units is written. `crcs` has
  // one CRC32C per unit when `status` is OK. INVALID_ARGUMENT: outside the segment, with both
  // numbers, or more runs than one read may have. NOT_FOUND: no such segment, or it was withdrawn.
  // CANCELLED. UNAVAILABLE: the link broke.
  virtual void OnRead(ReadId id, const absl::Status& status,
                      std::span<const std::uint32_t> crcs) = 0;
  // The last event: the peer is gone (UNAVAILABLE) or broke the protocol (INVALID_ARGUMENT). Every
  // read has ended before.
  virtual void OnClosed(const absl::Status& status) = 0;
};

// A peer's segment as this process sees it; loads never fault as long as `owner` is there, also when
// the link, or the peer, is gone. What lies there may change at any time.
struct MappedMemory {
  std::span<const std::byte> bytes = {};
  std::shared_ptr<const void> owner = nullptr;  // Shared with the link. Null: nothing is mapped.
};

class Link {
 public:
  virtual ~Link() = default;  // Ends everything without events; no byte is written afterwards.
  // Once, before Send and Read. `events` outlives the link. No event comes before this, or from
  // inside it: what the peer sends meanwhile waits.
  virtual void Start(LinkEvents& events) = 0;
  virtual Kind kind() const = 0;
  // For people: "shm, 2 segments mapped" or "tcp 10.0.0.1:4000".
  virtual std::string Describe() const = 0;
  // The peer's, as its address says it; empty: this host's memory is all there is between.
  virtual std::string host() const { return {}; }

  // Queues a message of 1 to kMessageBytesMax bytes (CHECKed). RESOURCE_EXHAUSTED when
  // kQueueBytesMax wait to be sent: the peer does not read; shed, or close. UNAVAILABLE after
  // OnClosed.
  virtual absl::Status Send(std::span<const std::byte> message) = 0;
  // Starts a read; OnRead tells its end, never from inside this call. `units` and the memory they
  // name stay valid until then. `id` is new on this link. Without `checksums` the crcs of OnRead
  // mean nothing: for benchmarks, where computing them costs time of its own.
  virtual void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) = 0;
  // The same over one lane: the segment and the units are those GPUs' memory, or pinned. Not of
  // other kinds than nccl, but for the first lane (CHECKed).
  virtual void ReadOn(Lane lane, ReadId id, SegmentId segment, std::span<const Unit> units,
                      bool checksums);
  // Of the read whose end is being told, inside OnRead only: its parts, where this kind has some.
  virtual const ReadParts* parts() const { return nullptr; }
  // Ends a read as soon as no byte of it can be written any more, never from inside this call; it
  // may still end well. Unknown ones are ignored.
  virtual void Cancel(ReadId id) = 0;
  // Whether this kind maps what it reads.
  virtual bool maps() const { return false; }
  // Whether units may name no memory to read to; else all do (CHECKed).
  virtual bool checks_alone() const { return maps(); }
  // Of such a link, a segment of which a read has ended well, unless it was withdrawn since.
  virtual MappedMemory Mapped(SegmentId) const { return {}; }

  static constexpr std::size_t kMessageBytesMax = std::size_t{1} << 16;
  static constexpr std::size_t kQueueBytesMax = std::size_t{8} << 20;
};

}  // namespace penstock::transfer
