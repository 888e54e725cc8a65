// SPDX-License-Identifier: Apache-2.0
// Slabs of a pool in device memory, as the host and its peers see them: each group has host memory
// of the whole model's layout, which peers can map, and a slab is there while somebody has asked
// for it. Where the pool is on several devices, each one's layers and heads are copied to their
// places in the slab and from there; of heads that several have, the first one's are taken, and all
// get them.
//
// Life of a slab:   absent -> Show: there, of undefined contents -> filled by ToHost, or by who
//                   receives a block -> the last Hide: absent, its memory given back.
// So the host memory in use is that of the slabs that are on their way, at most as much as the
// pool has on all devices together.
//
// Copies are made beside the device's work (device/staged_copies.h), in the order in which they are
// asked for, both ways. Several devices copy side by side: there a slab is asked for the other way
// when it has been copied the one way.
//
// Owned by its pool, as which it is used: by the engine's loop alone, but for AfterCopies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "device/device.h"
#include "device/staged_copies.h"
#include "engine/group_shard.h"

namespace penstock::engine {

class HostSlabs {
 public:
  // RESOURCE_EXHAUSTED when memory cannot be pinned. The devices outlive the result.
  static absl::StatusOr<std::unique_ptr<HostSlabs>> Make(std::span<Device* const> devices);
  // The next group, of up to `slabs` slabs: `whole` as the host sees it, and on each device; the
  // latter outlives the result. RESOURCE_EXHAUSTED when there are no addresses.
  absl::Status AddGroup(const PageLayout& whole, std::span<const GroupShard> shards,
                        std::size_t slabs);
  // Copies to the host wait for what this stream was given before. Of one device.
  void set_writer(Stream& writer) { writer_ = &writer; }
  // On several devices copies to the host that are asked for from now on wait for this, on each of
  // them; null: what they copy is there.
  void set_stored(std::shared_ptr<const Event> stored) { stored_ = std::move(stored); }
  // What copies to the host that are asked for now wait for; null: for nothing.
  std::shared_ptr<const Event> Written() {
    return writer_ == nullptr ? stored_ : std::shared_ptr<const Event>(writer_->Record());
  }

  DeviceMemory& memory(std::int32_t group) { return *At(group).memory; }
  std::byte* Address(std::int32_t group, std::uint32_t slab) {
    return At(group).memory->data() + slab * At(group).layout.slab_bytes();
  }

  // True: nobody had asked for it before, so that its bytes are not there, nor on their way.
  bool Show(std::int32_t group, std::uint32_t slab) { return ++At(group).shown[slab] == 1; }
  // Once for each Show, when no copy of it is under way and nobody reads it any more.
  void Hide(std::int32_t group, std::uint32_t slab);

  // Copies shown slabs, of `cache_layer` alone where there is one, behind all that the writer was
  // given so far.
  void ToHost(std::int32_t group, std::span<const std::uint32_t> slabs,
              std::optional<std::int32_t> cache_layer);
  // Copies shown slabs, whole. The devices do nothing with them.
  void ToDevice(std::int32_t group, std::span<const std::uint32_t> slabs);
  // Copies other memory of the one device, behind all that the writer was given so far, then calls
  // `done` on the thread of the copies.
  void Bring(std::byte* to, const std::byte* from, std::size_t bytes, std::function<void()> done);
  // The reverse, to other memory of the one device, then `work` there, as StagedCopies says; nothing
  // else is copied meanwhile.
  void Send(std::byte* to, std::span<const std::byte> from, StagedCopies::Work work,
            std::function<void()> done);
  // Any thread. Calls `done`, on another one, when all that was asked for so far has been copied;
  // not once this is gone.
  void AfterCopies(std::function<void()> done);
  // Of the last copy asked for; 0 before the first one.
  std::uint64_t last_copy() const { return last_copy_; }
  bool Copied(std::uint64_t copy);  // On every device.
  // Until that copy has been made: the time of copying it and those before.
  void Wait(std::uint64_t copy);

 private:
  struct Group {
    PageLayout layout;
    std::span<const GroupShard> shards;
    std::unique_ptr<DeviceMemory> memory;
    absl::flat_hash_map<std::uint32_t, std::int32_t> shown;  // How often.
  };
  using Runs = std::vector<StagedCopies::Run>;
  HostSlabs() = default;
  Group& At(std::int32_t g) { return groups_[static_cast<std::size_t>(g)]; }
  // Runs of each device. Every batch goes to all, so that it has one number everywhere.
  std::uint64_t Post(StagedCopies::Way way, std::vector<Runs> runs, const StagedCopies::Done& done);

  std::vector<Group> groups_;
  Stream* writer_ = nullptr;
  std::shared_ptr<const Event> stored_;
  std::uint64_t last_copy_ = 0;
  std::mutex posting_;  // Held for a batch: all devices have them in one order.
  std::vector<std::unique_ptr<StagedCopies>> copies_;  // Of each device. Last: they use the memory.
};

}  // namespace penstock::engine
