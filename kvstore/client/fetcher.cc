// SPDX-License-Identifier: Apache-2.0
#include "kvstore/client/fetcher.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kvstore/client/fetch_reading.h"

namespace penstock::kvstore {
namespace {

using transfer::ByteRun;
using transfer::ReadId;

// Less is not worth asking for; a guess that is too low must not cut off what is as good as there.
constexpr Duration kWithinMin = std::chrono::milliseconds(5);
// Copies that a node hears of at a time: each message wakes it, which costs as much as a large part
// of reading a copy.
constexpr std::size_t kReleaseEvery = 16;

}  // namespace

struct Fetcher::Run {
  const Group* group = nullptr;
  const Source* source = nullptr;
  std::int32_t first_block = 0;
  std::int32_t end_block = 0;
  StoreLink* link = nullptr;  // Null before it is there, and once it is gone or not needed.
  std::uint64_t id = 0;
  MonoTime deadline;
  Loop::TimerId timer{};
  std::vector<std::unique_ptr<Reading>> copies;  // As they were found.
  std::size_t next_read = 0;
  std::size_t reading = 0;
  std::size_t verified = 0;  // Leading ones.
  std::int32_t there = 0;    // All that are verified.
  std::size_t released = 0;  // As the node was told.
  bool waiting = true;       // Something may come yet: the link, answers.
  absl::Status status;
  Span span;

  std::size_t wanted() const { return static_cast<std::size_t>(end_block - first_block); }
  bool reads_left() const { return next_read < std::min(copies.size(), wanted()); }
  bool over() const { return !waiting && reading == 0; }
};

struct Fetcher::Job {
  FetchId id{};
  Order order;
  Done done;
  std::int32_t end_block = 0;  // Of what is asked for.
  std::vector<std::unique_ptr<Run>> runs;
  bool ending = false;  // Finish was posted.

  // Of what is told as number `index`.
  std::size_t BlockOf(const Run& run, std::size_t index) const {
    return order.backwards ? static_cast<std::size_t>(run.end_block) - 1 - index
                           : static_cast<std::size_t>(run.first_block) + index;
  }
  std::byte* SlabOf(const Run& run, std::size_t index) const {
    return run.group->slabs[BlockOf(run, index) - static_cast<std::size_t>(run.group->first_block)];
  }
};

Fetcher::Fetcher(Loop& loop, StoreLinks& links, transfer::LinkTurns& turns, Options options)
    : loop_(loop),
      links_(links),
      turns_(turns),
      options_(std::move(options)),
      mapped_(loop, options_.mapped) {}

Fetcher::~Fetcher() {
  for (auto& [id, job] : fetches_) {
    for (const std::unique_ptr<Run>& run : job->runs) {
      loop_.CancelTimer(run->timer);
      if (run->link == nullptr) continue;
      run->link->Forget(run->id);
      for (const std::unique_ptr<Reading>& copy : run->copies) {
        if (copy->read.has_value()) run->link->Cancel(*copy->read);
      }
    }
  }
}

FetchId Fetcher::Fetch(Order order, Done done) {
  auto made = std::make_unique<Job>();
  Job& job = *made;
  job.id = FetchId{next_++};
  job.order = std::move(order);
  job.done = std::move(done);
  fetches_[job.id] = std::move(made);
  MonoTime deadline = loop_.Now();
  job.end_block = job.order.first_missing;
  for (const Source& source : job.order.sources) {
    deadline += std::max(source.within, kWithinMin);
    CHECK_LE(static_cast<std::size_t>(source.end_block), job.order.chains.size());
    if (source.end_block <= job.end_block) continue;  // All that it has is there.
    const bool begins = job.end_block == job.order.first_missing;
    if (!begins && source.first_block > job.end_block) break;  // A hole.
    const std::int32_t source_first = job.end_block;
    job.end_block = source.end_block;
    for (const Group& group : job.order.groups) {
      const std::int32_t first = std::max(source_first, group.first_block);
      if (first >= source.end_block) continue;
      auto run = std::make_unique<Run>();
      run->group = &group;
      run->source = &source;
      run->deadline = deadline;
      // What does not fit in a message is another's to find.
      constexpr auto kMost = static_cast<std::int32_t>(kChainsMax);
      run->first_block = job.order.backwards ? std::max(first, source.end_block - kMost) : first;
      run->end_block = std::min(source.end_block, run->first_block + kMost);
      run->span = {.store = source.store.peer.name, .group = group.group, .asked = loop_.Now()};
      job.runs.push_back(std::move(run));
    }
  }
  if (job.order.backwards) {
    for (const std::unique_ptr<Run>& run : job.runs) run->deadline = deadline;
  }
  const auto find = [this, id = job.id](std::size_t i) -> std::pair<Job*, Run*> {
    const auto it = fetches_.find(id);
    if (it == fetches_.end()) return {nullptr, nullptr};
    return {it->second.get(), it->second->runs[i].get()};
  };
  for (std::size_t i = 0; i < job.runs.size(); ++i) {
    Run& run = *job.runs[i];
    run.timer = loop_.At(run.deadline, [this, &job, &run] {
      Stop(job, run, absl::DeadlineExceededError("computing the rest is as fast"));
      EndIfOver(job);
    });
    links_.Get(run.source->store,
               [this, find, i, watch = life_.watch()](absl::StatusOr<StoreLink*> link) {
                 if (watch.over()) return;
                 const auto [found, of] = find(i);
                 if (found == nullptr) return;
                 Begin(*found, *of, link);
                 EndIfOver(*found);
               });
  }
  EndIfOver(job);
  return job.id;
}

void Fetcher::Want(FetchId id, std::int32_t first_block) {
  const auto it = fetches_.find(id);
  if (it == fetches_.end()) return;
  Job& job = *it->second;
  CHECK(job.order.backwards);
  for (const std::unique_ptr<Run>& run : job.runs) {
    if (first_block <= run->first_block) continue;
    run->first_block = std::min(first_block, run->end_block);
    if (run->copies.size() >= run->wanted()) run->waiting = false;
    if (run->link == nullptr) continue;
    for (std::size_t i = run->wanted(); i < run->copies.size(); ++i) {
      Reading& copy = *run->copies[i];
      if (copy.read.has_value()) {
        run->link->Cancel(*copy.read);
      } else if (copy.turn.held()) {
        copy.turn.End();
        --run->reading;
      }
    }
  }
  EndIfOver(job);
}

void Fetcher::Cancel(FetchId id) {
  const auto it = fetches_.find(id);
  if (it == fetches_.end()) return;
  Job& job = *it->second;
  for (const std::unique_ptr<Run>& run : job.runs) {
    Stop(job, *run, absl::CancelledError("not wanted any more"));
  }
  EndIfOver(job);
}

void Fetcher::Begin(Job& job, Run& run, absl::StatusOr<StoreLink*> link) {
  if (!run.waiting) return;  // Stopped meanwhile.
  if (!link.ok()) return Stop(job, run, link.status());
  run.link = *link;
  run.span.kind = run.link->channel()->kind();
  run.id = run.link->Expect(
      [this, &job, &run, watch = life_.watch()](const absl::StatusOr<StoreMessage>& answer) {
        if (watch.over()) return;
        OnAnswer(job, run, answer);
        EndIfOver(job);
      });
  const Duration within = std::max(Duration(), run.deadline - loop_.Now());
  const std::span<const Chain> chains =
      std::span(job.order.chains).subspan(static_cast<std::size_t>(run.first_block), run.wanted());
  const absl::Status sent = run.link->Send(FindMessage{
      .id = run.id,
      .within_ms = static_cast<std::uint32_t>(std::min<std::int64_t>(
          1 + std::chrono::duration_cast<std::chrono::milliseconds>(within).count(), 600000)),
      .space = CopySpaceOf(job.order.spaces, static_cast<std::uint32_t>(run.group->group),
                           run.source->loss),
      .chains = {chains.begin(), chains.end()},
      .backwards = job.order.backwards});
  if (!sent.ok()) Stop(job, run, sent);
}

void Fetcher::OnAnswer(Job& job, Run& run, const absl::StatusOr<StoreMessage>& answer) {
  if (!answer.ok()) {
    StoreLink* const link = std::exchange(run.link, nullptr);
    run.reading = 0;  // Nothing is read any more, and nobody tells.
    for (const std::unique_ptr<Reading>& copy : run.copies) copy->turn.End();
    if (link != nullptr) mapped_.OnAnswer(*link, run.id, answer);
    return Stop(job, run, answer.status());
  }
  if (const auto* found = std::get_if<FoundMessage>(&*answer)) {
    if (!run.waiting) return;
    if (const absl::Status status = OnFound(job, run, *found); !status.ok()) {
      return Stop(job, run, status);
    }
    if (run.copies.size() >= run.wanted()) run.waiting = false;
    return StartReads(job, run);
  }
  if (const auto* missing = std::get_if<MissingMessage>(&*answer)) {
    if (!run.waiting) return;
    // What was found before is still read.
    run.waiting = false;
    if (run.status.ok()) run.status = missing->status;
    loop_.CancelTimer(run.timer);
    return;
  }
  if (std::holds_alternative<LostMessage>(*answer)) {
    if (run.link != nullptr) mapped_.OnAnswer(*run.link, run.id, answer);
    return;
  }
  Stop(job, run, absl::InvalidArgumentError("an answer that is none to a find"));
}

absl::Status Fetcher::OnFound(Job& job, Run& run, const FoundMessage& found) {
  const std::size_t index = run.copies.size();
  if (found.index != index || index >= run.wanted()) {
    return absl::InvalidArgumentError(
        absl::StrCat("found copy ", found.index, ", asked was ", index, " of ", run.wanted()));
  }
  FrameExpected expected = {.key = BlockKey{job.order.spaces[run.source->loss],
                                            job.order.chains[job.BlockOf(run, index)]},
                            .shape = ShapeOf(run.group->layout)};
  if (!options_.secret.empty()) expected.secret = Secret(options_.secret);
  auto copy = std::make_unique<Reading>();
  ASSIGN_OR_RETURN(copy->header, ParseFrameHeader(found.header, expected));
  RETURN_IF_ERROR(CheckReads(copy->header));
  if (copy->header.group != run.group->group || copy->header.loss != run.source->loss) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a copy of group ", copy->header.group, ", loss ", ToAbsl(ToString(copy->header.loss)),
        "; asked was group ", run.group->group, ", ", ToAbsl(ToString(run.source->loss))));
  }
  copy->found = found;
  if (index == 0) run.span.first_found = loop_.Now();
  run.span.tier = std::max(run.span.tier, found.tier);
  run.span.codec = copy->header.codec;
  run.span.tier_wait =
      std::max<Duration>(run.span.tier_wait, std::chrono::microseconds(found.waited_us));
  run.copies.push_back(std::move(copy));
  return absl::OkStatus();
}

void Fetcher::StartReads(Job& job, Run& run) {
  while (run.link != nullptr && run.link->channel() != nullptr && run.reads_left() &&
         run.reading < options_.reads_max) {
    const std::size_t index = run.next_read++;
    Reading& copy = *run.copies[index];
    ++run.reading;
    copy.asked = loop_.Now();
    copy.turn = turns_.Ask(run.link->channel()->link_in(), transfer::MoveClass::kFetch,
                           copy.header.payload_bytes(), run.deadline,
                           [this, &job, &run, index](const absl::Status& status) {
                             if (status.ok()) return Read(job, run, index);
                             OnRead(job, run, index, status);
                             EndIfOver(job);
                           });
    if (copy.turn.begun()) Read(job, run, index);
  }
}

void Fetcher::Read(Job& job, Run& run, std::size_t index) {
  const PageLayout& layout = run.group->layout;
  Reading& copy = *run.copies[index];
  run.span.turn_wait = std::max<Duration>(run.span.turn_wait, loop_.Now() - copy.asked);
  if (run.link->channel() == nullptr) return;  // What was found on it ends with it.
  std::byte* const slab = job.SlabOf(run, index);
  const bool straight = GoesStraight(copy.header, layout);
  if (!straight) copy.payload.resize(copy.header.payload_bytes());
  copy.maps = job.order.map && straight && mapped_.Take(*run.link, copy.found);
  transfer::Channel::ReadRequest read = {.segment = copy.found.segment,
                                         .units = {},
                                         .crcs = copy.header.layer_crcs,
                                         .deadline = run.deadline};
  const std::int32_t layers = copy.header.shape.cache_layers;
  copy.runs.reserve(static_cast<std::size_t>(layers));
  std::size_t at = 0;
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    copy.runs.push_back({.bytes = static_cast<std::uint32_t>(copy.header.LayerBytes(layer))});
    std::byte* const to = copy.maps  ? nullptr
                          : straight ? slab + layout.PageOffset(layer, 0, 0)
                                     : copy.payload.data() + at;
    read.units.push_back(
        {.from = copy.found.offset + at, .to = to, .runs = {&copy.runs.back(), 1}});
    at += copy.runs.back().bytes;
  }
  copy.read = run.link->channel()->Read(
      std::move(read),
      [this, &job, &run, index, watch = life_.watch()](const absl::Status& status) {
        if (watch.over()) return;
        OnRead(job, run, index, status);
        EndIfOver(job);
      });
}

void Fetcher::OnRead(Job& job, Run& run, std::size_t index, const absl::Status& status) {
  Reading& copy = *run.copies[index];
  copy.read.reset();
  copy.turn.End();
  --run.reading;
  if (!status.ok() && index >= run.wanted()) {  // Others are wanted yet.
    if (std::exchange(copy.maps, false) && run.link != nullptr) mapped_.GiveBack(*run.link);
    return StartReads(job, run);
  }
  absl::Status good = status;
  const PageLayout& layout = run.group->layout;
  if (good.ok() && !GoesStraight(copy.header, layout)) {
    const MonoTime begun = loop_.Now();
    good = copy.TakeIn(layout, job.order.encoded, scratch_, job.SlabOf(run, index));
    run.span.decode += loop_.Now() - begun;
  }
  if (copy.maps && run.link != nullptr) {
    if (!good.ok()) {
      mapped_.GiveBack(*run.link);
    } else {
      // What was verified is what its generation stands for, if it still does.
      copy.mapped = mapped_.Make(*run.link, copy.found, copy.header.payload_bytes());
    }
  }
  if (good.ok() && copy.maps && copy.mapped == nullptr) {
    good = absl::UnavailableError("a copy is not mapped any more, or changed");
  }
  if (!good.ok()) return Stop(job, run, good);
  if (copy.maps) {
    ++run.span.blocks_mapped;
    run.span.bytes_mapped += copy.header.payload_bytes();
  }
  if (copy.encoded != nullptr) {
    ++run.span.blocks_encoded;
    run.span.bytes_encoded += copy.header.payload_bytes();
  }
  copy.verified = true;
  ++run.there;
  if (job.order.on_there != nullptr) {
    job.order.on_there(run.group->group, static_cast<std::int32_t>(job.BlockOf(run, index)),
                       run.source->loss, copy.mapped, copy.encoded);
  }
  if (job.order.backwards) copy.encoded = nullptr;
  run.span.bytes += copy.header.payload_bytes();
  run.span.block_bytes += layout.block_bytes();
  run.span.verified = loop_.Now();
  while (run.verified < run.copies.size() && run.copies[run.verified]->verified) ++run.verified;
  // Of the last ones of all EndIfOver tells it.
  const bool more = run.verified == run.copies.size() && run.verified < run.wanted();
  if (run.link != nullptr && (more || run.verified >= run.released + kReleaseEvery)) Settle(run);
  StartReads(job, run);
}

// Tells the node of what is verified: copied, or to be kept.
void Fetcher::Settle(Run& run) {
  const auto mapped = [&](std::size_t i) { return run.copies[i]->maps; };
  while (run.released < run.verified) {
    const std::size_t begin = run.released;
    while (run.released < run.verified && mapped(run.released) == mapped(begin)) ++run.released;
    const auto count = static_cast<std::uint32_t>(run.released);
    const StoreMessage message = mapped(begin) ? StoreMessage(KeepMessage{run.id, count})
                                               : StoreMessage(ReleaseMessage{run.id, count});
    // A node that does not hear of it lets go when the leases end.
    run.link->Send(message).IgnoreError();
  }
}

// Nothing more of it; reads under way end first.
void Fetcher::Stop(Job& job, Run& run, const absl::Status& why) {
  if (run.status.ok() && run.verified < run.wanted()) run.status = why;
  run.waiting = false;
  loop_.CancelTimer(run.timer);
  run.next_read = run.copies.size();
  if (run.link != nullptr) {
    for (const std::unique_ptr<Reading>& copy : run.copies) {
      if (copy->read.has_value()) {
        run.link->Cancel(*copy->read);
      } else if (copy->turn.held()) {
        copy->turn.End();
        --run.reading;
      }
    }
  }
  if (job.order.backwards) return;
  // What lies behind a hole is of no use.
  const std::int32_t hole = run.first_block + static_cast<std::int32_t>(run.verified);
  for (const std::unique_ptr<Run>& other : job.runs) {
    if (other.get() != &run && other->waiting && other->first_block >= hole) {
      Stop(job, *other, absl::CancelledError("a block before it did not come"));
    }
  }
}

void Fetcher::EndIfOver(Job& job) {
  if (job.ending) return;
  for (const std::unique_ptr<Run>& run : job.runs) {
    if (!run->over() || (run->link != nullptr && run->status.ok() && run->reads_left())) return;
  }
  job.ending = true;
  for (const std::unique_ptr<Run>& run : job.runs) {
    loop_.CancelTimer(run->timer);
    const bool maps = std::ranges::any_of(run->copies, [](const auto& copy) { return copy->maps; });
    if (run->link != nullptr && maps) Settle(*run);
  }
  loop_.Post(life_.Guard([this, &job] { Finish(job); }));
}

void Fetcher::Finish(Job& job) {
  const std::unique_ptr<Job> over = std::move(fetches_.at(job.id));
  fetches_.erase(over->id);
  const bool backwards = over->order.backwards;
  Outcome outcome;
  outcome.end_block = over->end_block;
  for (const std::unique_ptr<Run>& run : over->runs) {
    if (run->verified >= run->wanted() && run->end_block == run->source->end_block) continue;
    const std::int32_t good = backwards
                                  ? over->order.first_missing
                                  : run->first_block + static_cast<std::int32_t>(run->verified);
    if (good <= outcome.end_block) {
      outcome.end_block = good;
      outcome.status = run->status;
    }
  }
  for (const std::unique_ptr<Run>& run : over->runs) {
    // As Settle goes: others the node was not asked to keep. Of one that went backwards each is
    // good by itself; who has it sees whether it changed.
    for (std::size_t i = 0; i < run->verified; ++i) {
      const std::shared_ptr<const MappedBlock>& at = run->copies[i]->mapped;
      if (at == nullptr) continue;
      const auto block = static_cast<std::int32_t>(over->BlockOf(*run, i));
      outcome.mapped.push_back({run->group->group, block, at});
      if (backwards || block >= outcome.end_block || !at->Changed()) continue;
      outcome.end_block = block;  // Its node was lost meanwhile.
      outcome.status = absl::UnavailableError("a mapped block was lost");
    }
  }
  if (!backwards) {
    std::erase_if(outcome.mapped,
                  [&](const Mapped& mapped) { return mapped.block >= outcome.end_block; });
  }
  for (const std::unique_ptr<Run>& run : over->runs) {
    for (std::size_t i = 0; i < run->verified; ++i) {
      const auto block = static_cast<std::int32_t>(over->BlockOf(*run, i));
      if (run->copies[i]->encoded == nullptr || block >= outcome.end_block) continue;
      outcome.encoded.push_back({run->group->group, block, std::move(run->copies[i]->encoded)});
    }
  }
  for (const std::unique_ptr<Run>& run : over->runs) {
    run->span.blocks = run->there;
    if (run->span.blocks == 0) continue;
    const bool serves = backwards || run->verified > 0;
    if (serves && run->source->loss != LossClass::kExact && run->first_block < outcome.end_block) {
      outcome.lineage.Join({run->source->loss, run->first_block});
    }
    outcome.spans.push_back(std::move(run->span));
  }
  const transfer::Life::Watch watch = life_.watch();
  over->done(outcome);
  if (watch.over()) return;
  // Behind what `done` asks of the same node, which is in a hurry: one waking serves for both.
  for (const std::unique_ptr<Run>& run : over->runs) {
    if (run->link == nullptr) continue;
    run->link->Send(ReleaseMessage{run->id, UINT32_MAX}).IgnoreError();
    mapped_.TakeOver(*run->link, run->id);
  }
}

}  // namespace penstock::kvstore
