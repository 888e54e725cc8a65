// SPDX-License-Identifier: Apache-2.0
#include "engine/block_export.h"

#include <map>
#include <utility>

#include "base/check.h"

namespace penstock::engine {

class BlockExport::Shared final : public KvPool::Observer,
                                  public std::enable_shared_from_this<Shared> {
 public:
  Shared(Loop& loop, EngineThread& thread, Events events)
      : loop_(loop), thread_(thread), events_(std::move(events)) {}

  // ---- On the engine's thread.
  void Begin(Engine& engine) {
    pool_ = &engine.pool();
    CHECK(pool_->host_visible() || pool_->staged());
    pool_->AddObserver(*this);
  }
  void End() {
    if (pool_ == nullptr) return;
    pool_->RemoveObserver(*this);
    pool_->WaitForCopy(pool_->last_copy());
    for (const auto& [key, slab] : held_) LetGo(key.first, slab);
    held_.clear();
    while (!encoding_.empty()) Encoded(encoding_.begin()->first);
    pool_ = nullptr;
  }
  void Hold(const std::vector<Block>& blocks, const std::function<void(std::vector<Held>)>& held) {
    if (pool_ == nullptr) return Tell(std::vector<Held>(blocks.size()), held, 0);
    std::vector<Held> all;
    std::vector<std::vector<SlabRef>> unseen(static_cast<std::size_t>(pool_->groups()));
    Encoding encoding;
    for (const Block& block : blocks) {
      Held& one = all.emplace_back();
      // Not what is mapped, which another process has and may change.
      if (!pool_->ContainsOwn(block.group, block.sealed.key)) continue;
      const SlabRef slab = *pool_->Find(block.group, block.sealed.key);
      if (block.encoding.has_value()) {
        one.encoded = pool_->Encode(block.group, slab, *block.encoding);
      }
      if (one.encoded != nullptr) {
        encoding.emplace_back(block.group, slab);
        continue;
      }
      one.slab = pool_->Address(block.group, slab);
      held_.emplace(KeyOf(block), slab);
      if (pool_->Show(block.group, slab)) {
        unseen[static_cast<std::size_t>(block.group)].push_back(slab);
      }
    }
    for (std::int32_t g = 0; g < pool_->groups(); ++g) {
      pool_->ToHost(g, unseen[static_cast<std::size_t>(g)]);
    }
    std::uint64_t turn = 0;
    if (!encoding.empty()) {
      turn = next_encoding_++;
      encoding_.emplace(turn, std::move(encoding));
    }
    pool_->AfterCopies([self = shared_from_this(), held, all = std::move(all), turn] {
      self->Tell(all, held, turn);
    });
  }
  void Release(const std::vector<Block>& blocks) {
    if (pool_ == nullptr) return;  // All has been let go of.
    // From the last to the first, as sequences do: of a chain the tail goes before the head.
    for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
      const auto it = held_.find(KeyOf(*block));
      CHECK(it != held_.end());
      LetGo(block->group, it->second);
      held_.erase(it);
    }
  }

  // ---- On the loop.
  void Close() { open_ = false; }

 private:
  using Key = std::pair<std::int32_t, BlockKey>;
  using Encoding = std::vector<std::pair<std::int32_t, SlabRef>>;  // By group.
  static Key KeyOf(const Block& block) { return {block.group, block.sealed.key}; }

  // Any thread. What was encoded in that turn, unless it is 0, need not stay any more.
  void Tell(std::vector<Held> all, const std::function<void(std::vector<Held>)>& held,
            std::uint64_t turn) {
    loop_.Post([self = shared_from_this(), held, all = std::move(all), turn]() mutable {
      if (!self->open_) return;
      if (turn > 0) self->thread_.Post([self, turn](Engine&) { self->Encoded(turn); });
      held(std::move(all));
    });
  }
  // The slabs of that turn have been encoded.
  void Encoded(std::uint64_t turn) {
    const auto it = encoding_.find(turn);
    if (it == encoding_.end()) return;  // At the end.
    // In the order of Release.
    for (auto one = it->second.rbegin(); one != it->second.rend(); ++one) {
      pool_->Release(one->first, one->second);
    }
    encoding_.erase(it);
  }
  void LetGo(std::int32_t group, SlabRef slab) {
    pool_->Hide(group, slab);
    pool_->Release(group, slab);
  }

  void OnSealed(std::int32_t group, const KvPool::SealedBlock& block) override {
    sealed_.push_back({group, block});
    if (sealed_.size() > 1) return;
    // Between steps: behind all that this one seals.
    thread_.Post([self = shared_from_this()](Engine&) {
      self->loop_.Post([self, blocks = std::exchange(self->sealed_, {})]() mutable {
        if (self->open_) self->events_.on_sealed(std::move(blocks));
      });
    });
  }
  void OnEvicted(std::int32_t group, const KvPool::SealedBlock& block, SlabRef slab) override {
    const auto bytes = [&]() -> const std::byte* {
      if (!pool_->staged()) return pool_->Address(group, slab);
      leaving_.resize(pool_->slab_bytes(group));
      pool_->Save(group, slab, leaving_.data());
      return leaving_.data();
    };
    const auto encoded = [&](const kernels::KvEncoding& encoding) {
      return pool_->EncodeNow(group, slab, encoding);
    };
    events_.on_leaving({group, block, {}}, {bytes, encoded});
  }

  Loop& loop_;
  EngineThread& thread_;
  const Events events_;
  bool open_ = true;  // On the loop alone.
  // On the engine's thread alone.
  KvPool* pool_ = nullptr;
  std::vector<Block> sealed_;
  std::multimap<Key, SlabRef> held_;
  std::map<std::uint64_t, Encoding> encoding_;  // Slabs that the device reads, by turn.
  std::uint64_t next_encoding_ = 1;
  std::vector<std::byte> leaving_;  // A copy of what leaves device memory.
};

BlockExport::BlockExport(Loop& loop, EngineThread& thread, Events events)
    : thread_(thread), shared_(std::make_shared<Shared>(loop, thread, std::move(events))) {
  thread_.Post([shared = shared_](Engine& engine) { shared->Begin(engine); });
}

BlockExport::~BlockExport() {
  shared_->Close();
  // The pool outlives its observer.
  thread_.Run([this](Engine&) { shared_->End(); });
}

void BlockExport::Hold(std::vector<Block> blocks, std::function<void(std::vector<Held>)> held) {
  thread_.Post([shared = shared_, blocks = std::move(blocks), held = std::move(held)](Engine&) {
    shared->Hold(blocks, held);
  });
}

void BlockExport::Release(std::vector<Block> blocks) {
  thread_.Post(
      [shared = shared_, blocks = std::move(blocks)](Engine&) { shared->Release(blocks); });
}

}  // namespace penstock::engine
