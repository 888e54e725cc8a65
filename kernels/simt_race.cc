// SPDX-License-Identifier: Apache-2.0
#include "kernels/simt_race.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>

#include "kernels/simt_observer.h"

namespace penstock::simt {
namespace {

constexpr unsigned kLanes = 32;
constexpr std::uint32_t kPending = UINT32_MAX;  // The epoch of a copy that was not waited for.
constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kPagesMax = 256;  // 55 MB of cells.
constexpr unsigned kBankBlocksMax = 4;  // Of each launch; the others do the same.

// One access to a byte, by whom and when.
struct Touch {
  std::uint32_t block = 0;  // Counted over all launches from 1; 0: none.
  std::uint32_t epoch = 0;  // Barriers of the block before it.
  std::uint32_t where = 0;
  std::uint16_t thread = 0;
  std::uint16_t clock = 0;  // Barriers of its lane since the last of the block.
};

// The last write, and the last reads of two threads since.
struct Cell {
  Touch write;
  std::array<Touch, 2> reads;
  bool atomic = false;  // The write.
};
using Page = std::array<Cell, kPageBytes>;

// A line: known, or the address of an instruction.
struct Where {
  const char* file;
  std::uintptr_t line_or_address;
  bool operator==(const Where&) const = default;
};
struct WhereHash {
  std::size_t operator()(const Where& w) const {
    return reinterpret_cast<std::uintptr_t>(w.file) * 31 + w.line_or_address;
  }
};

// "file:line" of each. Those that are instructions of this program cost one run of addr2line.
std::vector<std::string> Names(const std::vector<Where>& wheres) {
  std::vector<std::string> names(wheres.size(), "?");
  std::vector<std::size_t> asked;
  std::string command;
  for (std::size_t i = 0; i < wheres.size(); ++i) {
    const std::uintptr_t number = wheres[i].line_or_address;
    Dl_info info{};
    if (wheres[i].file != nullptr) {
      names[i] = std::string(wheres[i].file) + ":" + std::to_string(number);
    } else if (dladdr(reinterpret_cast<void*>(number), &info) != 0) {
      if (asked.empty()) command = std::string("addr2line -e '") + info.dli_fname + "'";
      char address[32];  // A return address: one less is in the call.
      std::snprintf(address, sizeof address, " %#zx",
                    number - reinterpret_cast<std::uintptr_t>(info.dli_fbase) - 1);
      command += address;
      asked.push_back(i);
    }
  }
  std::FILE* const pipe = asked.empty() ? nullptr : popen(command.c_str(), "r");
  if (pipe == nullptr) return names;
  char line[500];
  for (const std::size_t i : asked) {
    if (std::fgets(line, sizeof line, pipe) == nullptr) break;
    // "file:line", or "file:line (discriminator n)".
    names[i] = std::string(line, std::strcspn(line, " \n"));
  }
  pclose(pipe);
  return names;
}

// What lane `lane` of a request asked for.
struct Asked {
  std::uintptr_t address;
  std::uint16_t bytes;
  std::uint16_t lane;
};

class Checker {
 public:
  void LaunchBegins(const void* stacks, std::size_t bytes, bool early);
  void ThreadWaited() { waited_[static_cast<std::size_t>(thread_)] = true; }
  void Synchronize() { synchronized_block_ = block_; }
  std::string LaunchEnds();
  void BlockBegins(unsigned threads);
  void BlockEnds();
  void ThreadRuns(int thread) { thread_ = thread; }
  void BlockBarrier();
  void WarpBarrier(unsigned warp, unsigned mask);
  void SharedMemory(const void* p, std::size_t bytes);
  void Access(std::uintptr_t address, std::size_t bytes, AccessKind kind, const Where& where);
  void CopyBegins(const void* shared, const void* global, Site at);
  void CopyEnds(const void* shared);
  void Forbid(std::uintptr_t begin, std::size_t bytes) { forbidden_[begin] = begin + bytes; }
  void Allow(std::uintptr_t begin) { forbidden_.erase(begin); }
  std::vector<BankUse> TakeBankUse();
  bool watching() const { return thread_ >= 0; }

 private:
  std::uint16_t& Clock(int thread, unsigned lane) {
    return clocks_[static_cast<std::size_t>(thread) * kLanes + lane];
  }
  Cell& CellOf(std::uintptr_t address);
  Touch Now(std::uint32_t where);
  bool Ordered(const Touch& before);
  bool IsShared(std::uintptr_t address) const;
  bool IsForbidden(std::uintptr_t address, std::size_t bytes) const;
  std::uint32_t Intern(const Where& where);
  void Report(const char* what, const Touch& before, const Touch& now, std::uintptr_t address);
  void CountBanks();

  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  std::uintptr_t last_page_ = 0;
  Page* last_ = nullptr;
  std::uintptr_t stacks_begin_ = 0;
  std::uintptr_t stacks_end_ = 0;
  std::uint32_t block_ = 0;
  std::uint32_t launch_first_block_ = 0;
  std::uint32_t synchronized_block_ = 0;  // The last one before Synchronize.
  bool early_ = false;
  std::vector<bool> waited_;  // [thread]
  std::uint32_t epoch_ = 0;
  int thread_ = -1;
  std::vector<std::uint16_t> clocks_;  // [thread][lane]: what the thread knows of its warp's lanes.
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> shared_;
  std::map<std::uintptr_t, std::uintptr_t> forbidden_;  // Begin, end.
  std::vector<Where> wheres_;
  std::unordered_map<Where, std::uint32_t, WhereHash> where_ids_;
  std::uint64_t races_ = 0;
  std::string first_race_;
  // Of the block: each warp's requests, by line and by how often each lane has come there.
  std::map<std::tuple<std::uint32_t, unsigned, std::uint32_t>, std::vector<Asked>> requests_;
  std::unordered_map<std::uint64_t, std::uint32_t> visits_;
  std::map<std::uint32_t, BankUse> banks_;
};

void Checker::LaunchBegins(const void* stacks, std::size_t bytes, bool early) {
  early_ = early;
  stacks_begin_ = reinterpret_cast<std::uintptr_t>(stacks);
  stacks_end_ = stacks_begin_ + bytes;
  launch_first_block_ = block_ + 1;
  races_ = 0;
  first_race_.clear();
}

std::string Checker::LaunchEnds() {
  shared_.clear();
  // Most launches of a test touch other memory; what they touched says nothing of the next launch.
  if (pages_.size() > kPagesMax) {
    pages_.clear();
    last_ = nullptr;
  }
  if (races_ == 0) return "";
  return std::to_string(races_) + " races or accesses out of bounds, the first: " + first_race_;
}

void Checker::BlockBegins(unsigned threads) {
  ++block_;
  epoch_ = 0;
  waited_.assign(threads, !early_);
  clocks_.assign(std::size_t{threads} * kLanes, 0);
  for (unsigned thread = 0; thread < threads; ++thread) {
    Clock(static_cast<int>(thread), thread % kLanes) = 1;
  }
}

void Checker::BlockEnds() {
  thread_ = -1;
  CountBanks();
}

void Checker::BlockBarrier() {
  ++epoch_;
  std::fill(clocks_.begin(), clocks_.end(), std::uint16_t{0});
  for (std::size_t thread = 0; thread < clocks_.size() / kLanes; ++thread) {
    Clock(static_cast<int>(thread), static_cast<unsigned>(thread % kLanes)) = 1;
  }
}

void Checker::WarpBarrier(unsigned warp, unsigned mask) {
  std::array<std::uint16_t, kLanes> joined{};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const int thread = static_cast<int>(warp * kLanes + lane);
    ++Clock(thread, lane);
    for (unsigned k = 0; k < kLanes; ++k) joined[k] = std::max(joined[k], Clock(thread, k));
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const int thread = static_cast<int>(warp * kLanes + lane);
    for (unsigned k = 0; k < kLanes; ++k) Clock(thread, k) = joined[k];
  }
}

void Checker::SharedMemory(const void* p, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  const std::pair<std::uintptr_t, std::uintptr_t> range{begin, begin + bytes};
  if (std::find(shared_.begin(), shared_.end(), range) == shared_.end()) shared_.push_back(range);
  // Every block begins with memory of its own.
  for (std::size_t i = 0; i < bytes; ++i) CellOf(begin + i) = {};
}

Cell& Checker::CellOf(std::uintptr_t address) {
  const std::uintptr_t page = address / kPageBytes;
  if (last_ == nullptr || page != last_page_) {
    std::unique_ptr<Page>& found = pages_[page];
    if (found == nullptr) found = std::make_unique<Page>();
    last_ = found.get();
    last_page_ = page;
  }
  return (*last_)[address % kPageBytes];
}

Touch Checker::Now(std::uint32_t where) {
  const unsigned lane = static_cast<unsigned>(thread_) % kLanes;
  return {block_, epoch_, where, static_cast<std::uint16_t>(thread_), Clock(thread_, lane)};
}

bool Checker::Ordered(const Touch& before) {
  if (before.block < launch_first_block_) {
    return before.block <= synchronized_block_ || waited_[static_cast<std::size_t>(thread_)];
  }
  if (before.epoch == kPending || before.block != block_) return false;
  if (before.thread == thread_ || before.epoch < epoch_) return true;
  if (before.thread / kLanes != static_cast<unsigned>(thread_) / kLanes) return false;
  return before.clock < Clock(thread_, before.thread % kLanes);
}

bool Checker::IsShared(std::uintptr_t address) const {
  return std::any_of(shared_.begin(), shared_.end(), [address](const auto& range) {
    return address >= range.first && address < range.second;
  });
}

bool Checker::IsForbidden(std::uintptr_t address, std::size_t bytes) const {
  auto range = forbidden_.lower_bound(address + bytes);  // The first that begins behind.
  return range != forbidden_.begin() && (--range)->second > address;
}

std::uint32_t Checker::Intern(const Where& where) {
  const auto [found, added] =
      where_ids_.try_emplace(where, static_cast<std::uint32_t>(wheres_.size()));
  if (added) wheres_.push_back(where);
  return found->second;
}

void Checker::Report(const char* what, const Touch& before, const Touch& now,
                     std::uintptr_t address) {
  if (races_++ != 0) return;
  char text[300];
  std::snprintf(text, sizeof text, "%s of %s memory by thread %u%s; thread %d at ", what,
                IsShared(address) ? "shared" : "global", before.thread,
                before.block < launch_first_block_ ? " of an earlier launch"
                : before.block != now.block        ? " of another block"
                : before.epoch == kPending         ? " (a copy not waited for)"
                                                   : "",
                thread_);
  const std::vector<std::string> names = Names({wheres_[now.where], wheres_[before.where]});
  first_race_ = text + names[0] + ", the other at " + names[1];
}

void Checker::Access(std::uintptr_t address, std::size_t bytes, AccessKind kind,
                     const Where& where) {
  if (address >= stacks_begin_ && address < stacks_end_) return;
  const bool write = kind != AccessKind::kRead;
  const bool atomic = kind == AccessKind::kAtomic;
  const Touch now = Now(Intern(where));
  if (IsForbidden(address, bytes)) {
    if (races_++ == 0) first_race_ = "access behind the end of a buffer at " + Names({where})[0];
    return;
  }
  bool raced = false;
  for (std::size_t i = 0; i < bytes; ++i) {
    Cell& cell = CellOf(address + i);
    if (!raced && !(atomic && cell.atomic) && !Ordered(cell.write)) {
      Report(write ? "write after write" : "read after write", cell.write, now, address);
      raced = true;
    }
    if (!write) {
      if (cell.reads[0].thread != now.thread || cell.reads[0].block != now.block) {
        cell.reads[1] = cell.reads[0];
      }
      cell.reads[0] = now;
      continue;
    }
    for (const Touch& read : cell.reads) {
      if (!raced && !Ordered(read)) {
        Report("write after read", read, now, address);
        raced = true;
      }
    }
    cell.write = now;
    cell.atomic = atomic;
    cell.reads = {};
  }
  if (block_ - launch_first_block_ < kBankBlocksMax && IsShared(address)) {
    const std::uint32_t visit = visits_[std::uint64_t{now.where} << 16 | now.thread]++;
    requests_[{now.where, now.thread / kLanes, visit}].push_back(
        {address, static_cast<std::uint16_t>(bytes), static_cast<std::uint16_t>(thread_ % 32)});
  }
}

void Checker::CopyBegins(const void* shared, const void* global, Site at) {
  const Where where{at.file, static_cast<std::uintptr_t>(at.line)};
  if (global != nullptr)
    Access(reinterpret_cast<std::uintptr_t>(global), 16, AccessKind::kRead, where);
  const auto to = reinterpret_cast<std::uintptr_t>(shared);
  Access(to, 16, AccessKind::kWrite, where);
  for (std::uintptr_t i = 0; i < 16; ++i) CellOf(to + i).write.epoch = kPending;
}

void Checker::CopyEnds(const void* shared) {
  for (std::uintptr_t i = 0; i < 16; ++i) {
    Touch& write = CellOf(reinterpret_cast<std::uintptr_t>(shared) + i).write;
    if (write.thread == thread_ && write.epoch == kPending) write = Now(write.where);
  }
}

// Rounds of the banks: as many as the fullest bank has words to give. Accesses of 8 bytes are served
// by half warps, of 16 by quarters.
void Checker::CountBanks() {
  for (const auto& [key, lanes] : requests_) {
    BankUse& use = banks_[std::get<0>(key)];
    ++use.requests;
    const unsigned parts = lanes[0].bytes >= 16 ? 4 : lanes[0].bytes >= 8 ? 2 : 1;
    for (unsigned part = 0; part < parts; ++part) {
      std::array<std::vector<std::uintptr_t>, kLanes> words;
      for (const Asked& asked : lanes) {
        if (asked.lane * parts / kLanes != part) continue;
        const std::uintptr_t last = (asked.address + asked.bytes - 1) / 4;
        for (std::uintptr_t word = asked.address / 4; word <= last; ++word) {
          auto& bank = words[word % kLanes];
          if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        }
      }
      std::size_t rounds = 0;
      for (const auto& bank : words) rounds = std::max(rounds, bank.size());
      use.rounds += rounds;
      use.rounds_min += rounds == 0 ? 0 : 1;
    }
  }
  requests_.clear();
  visits_.clear();
}

std::vector<BankUse> Checker::TakeBankUse() {
  std::map<std::string, BankUse> by_name;  // A line may be several instructions.
  const std::vector<std::string> names = Names(wheres_);
  for (const auto& [where, use] : banks_) {
    BankUse& sum = by_name[names[where]];
    sum.requests += use.requests;
    sum.rounds += use.rounds;
    sum.rounds_min += use.rounds_min;
  }
  banks_.clear();
  std::vector<BankUse> uses;
  for (auto& [name, use] : by_name) {
    use.where = name;
    uses.push_back(use);
  }
  std::stable_sort(uses.begin(), uses.end(),
                   [](const BankUse& a, const BankUse& b) { return a.Ways() > b.Ways(); });
  return uses;
}

thread_local Checker t_checker;

class Watcher final : public Observer {
 public:
  Watcher() { SetObserver(this); }
  void LaunchBegins(const void* stacks, std::size_t bytes, bool early) override {
    t_checker.LaunchBegins(stacks, bytes, early);
  }
  void ThreadWaited() override { t_checker.ThreadWaited(); }
  void Synchronize() override { t_checker.Synchronize(); }
  void Forbid(const void* p, std::size_t bytes) override {
    t_checker.Forbid(reinterpret_cast<std::uintptr_t>(p), bytes);
  }
  void Allow(const void* p) override { t_checker.Allow(reinterpret_cast<std::uintptr_t>(p)); }
  std::string LaunchEnds() override { return t_checker.LaunchEnds(); }
  void BlockBegins(unsigned threads) override { t_checker.BlockBegins(threads); }
  void BlockEnds() override { t_checker.BlockEnds(); }
  void ThreadRuns(int thread) override { t_checker.ThreadRuns(thread); }
  void BlockBarrier() override { t_checker.BlockBarrier(); }
  void WarpBarrier(unsigned warp, unsigned mask) override { t_checker.WarpBarrier(warp, mask); }
  void SharedMemory(const void* p, std::size_t bytes) override { t_checker.SharedMemory(p, bytes); }
  void Access(const void* p, std::size_t bytes, AccessKind kind, Site at) override {
    t_checker.Access(reinterpret_cast<std::uintptr_t>(p), bytes, kind,
                     {at.file, static_cast<std::uintptr_t>(at.line)});
  }
  void CopyBegins(const void* shared, const void* global, Site at) override {
    t_checker.CopyBegins(shared, global, at);
  }
  void CopyEnds(const void* shared) override { t_checker.CopyEnds(shared); }
};
Watcher g_watcher;

void Hook(const volatile void* p, std::size_t bytes, AccessKind kind, const void* address) {
  if (!t_checker.watching()) return;
  t_checker.Access(reinterpret_cast<std::uintptr_t>(p), bytes, kind,
                   {nullptr, reinterpret_cast<std::uintptr_t>(address)});
}

}  // namespace

std::vector<BankUse> TakeBankUse() { return t_checker.TakeBankUse(); }

}  // namespace penstock::simt

// What compilers call. Kernels have no atomics but those of gpu.h, and no virtual calls.
#define PENSTOCK_HOOK(name, bytes, kind)                                                           \
  extern "C" void name(void* p) {                                                                  \
    penstock::simt::Hook(p, bytes, penstock::simt::AccessKind::kind, __builtin_return_address(0)); \
  }
#define PENSTOCK_HOOKS(bytes)                                 \
  PENSTOCK_HOOK(__tsan_read##bytes, bytes, kRead)             \
  PENSTOCK_HOOK(__tsan_write##bytes, bytes, kWrite)           \
  PENSTOCK_HOOK(__tsan_unaligned_read##bytes, bytes, kRead)   \
  PENSTOCK_HOOK(__tsan_unaligned_write##bytes, bytes, kWrite) \
  PENSTOCK_HOOK(__tsan_volatile_read##bytes, bytes, kRead)    \
  PENSTOCK_HOOK(__tsan_volatile_write##bytes, bytes, kWrite)
PENSTOCK_HOOKS(1)
PENSTOCK_HOOKS(2)
PENSTOCK_HOOKS(4)
PENSTOCK_HOOKS(8)
PENSTOCK_HOOKS(16)
extern "C" void __tsan_read_range(void* p, std::size_t bytes) {
  penstock::simt::Hook(p, bytes, penstock::simt::AccessKind::kRead, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, std::size_t bytes) {
  penstock::simt::Hook(p, bytes, penstock::simt::AccessKind::kWrite, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
