// SPDX-License-Identifier: Apache-2.0
#include "worker/prompt_imports.h"

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/virtual_loop.h"
#include "gtest/gtest.h"

namespace penstock::worker {
namespace {

using namespace std::chrono_literals;
using kvstore::Fetcher;

constexpr PromptImports::Key kPrompt = 7;

struct FakeMapped final : MappedBlock {
  std::span<const std::byte> memory() const override { return {}; }
  std::size_t offset() const override { return 0; }
  bool Changed() const override { return false; }
};

// Tells of imports as the test says.
class FakeImporter final : public BlockImporter {
 public:
  ImportId Import(ImportOrder order, ImportDone done) override {
    last_order = std::move(order);
    dones_[++imports] = std::move(done);
    return imports;
  }
  void Want(ImportId id, std::int32_t first_block) override {
    wanted.emplace_back(id, first_block);
  }
  Progress progress(ImportId) const override { return now; }
  void Cancel(ImportId id) override { cancelled.push_back(id); }

  void End(ImportId id, const Imported& imported = {}) { dones_.at(id)(imported); }

  ImportOrder last_order;
  ImportId imports = 0;
  Progress now;
  std::vector<std::pair<ImportId, std::int32_t>> wanted;
  std::vector<ImportId> cancelled;

 private:
  std::map<ImportId, ImportDone> dones_;
};

class PromptImportsTest : public testing::Test {
 protected:
  void SetUp() override { prompts_.set_importer(&importer_); }

  // Ten blocks, said to take so long.
  static BlockImporter::ImportOrder Blocks(Duration fetch, Duration compute) {
    return {
        .chains = std::vector<Chain>(10),
        .sources = {{.first_block = 0, .end_block = 10, .within = compute, .fetch_time = fetch}}};
  }
  PromptImports::Events Notes() {
    return {.compute = [this] { notes_ += "compute "; },
            .changed = [this] { notes_ += "changed "; },
            .done = [this](const BlockImporter::Imported&) { notes_ += "done "; }};
  }
  std::string Told() {
    loop_.RunUntilIdle();
    return std::exchange(notes_, {});
  }

  VirtualLoop loop_;
  FakeImporter importer_;
  PromptImports prompts_{loop_};
  std::string notes_;
};

// Ten blocks of a second each to compute, a tenth of that to fetch.
TEST_F(PromptImportsTest, AFastWayIsLetAlone) {
  prompts_.Begin(kPrompt, Blocks(1s, 10s), Notes());
  EXPECT_TRUE(importer_.last_order.backwards);
  EXPECT_TRUE(importer_.last_order.map);
  loop_.Advance(1900ms);
  EXPECT_EQ(Told(), "");
  importer_.End(1);
  EXPECT_EQ(Told(), "done compute ");
  EXPECT_EQ(prompts_.coming(kPrompt).end_block, 0);
  loop_.Advance(1min);
  EXPECT_EQ(Told(), "");
}

TEST_F(PromptImportsTest, OneThatIsLateIsComputedBeside) {
  prompts_.Begin(kPrompt, Blocks(1s, 10s), Notes());
  loop_.Advance(2s);
  EXPECT_EQ(Told(), "compute ");
  // Nothing came in two seconds: the way is as slow as that at least.
  EXPECT_EQ(prompts_.coming(kPrompt).end_block, 10);
  EXPECT_NEAR(prompts_.coming(kPrompt).share, 2.0 / 12, 1e-9);
  importer_.End(1);
  EXPECT_EQ(Told(), "done changed ");
  EXPECT_EQ(prompts_.coming(kPrompt).end_block, 0);
}

TEST_F(PromptImportsTest, BesideASlowOneItBeginsAtOnce) {
  prompts_.Begin(kPrompt, Blocks(5s, 10s), Notes());
  EXPECT_FALSE(importer_.last_order.map);
  EXPECT_EQ(notes_, "") << "from inside";
  EXPECT_EQ(Told(), "compute ");
  EXPECT_NEAR(prompts_.coming(kPrompt).share, 5.0 / 15, 1e-9);

  // A quarter came in one second: all of it takes four.
  loop_.Advance(1s);
  importer_.now = {.there = 5, .all = 20};
  prompts_.Reached(kPrompt, 3);
  EXPECT_EQ(Told(), "changed ");
  EXPECT_EQ(importer_.wanted,
            (std::vector<std::pair<BlockImporter::ImportId, std::int32_t>>{{1, 3}}));
  EXPECT_NEAR(prompts_.coming(kPrompt).share, 4.0 / 14, 1e-9);
}

TEST_F(PromptImportsTest, ImportFirstComputesNothingBeside) {
  prompts_.set_importer(&importer_, true);
  prompts_.Begin(kPrompt, Blocks(50s, 10s), Notes());
  EXPECT_FALSE(importer_.last_order.backwards);
  loop_.Advance(1h);
  EXPECT_EQ(Told(), "");
  importer_.End(1);
  EXPECT_EQ(Told(), "done compute ");
}

TEST_F(PromptImportsTest, WhereNothingComesAllIsComputed) {
  prompts_.Begin(kPrompt, {.chains = std::vector<Chain>(10)}, Notes());
  EXPECT_EQ(notes_, "") << "from inside";
  EXPECT_EQ(Told(), "done compute ");
  BlockImporter::ImportOrder beyond = Blocks(1s, 10s);
  beyond.chains.resize(9);
  prompts_.Begin(kPrompt + 1, beyond, Notes());
  EXPECT_EQ(Told(), "done compute ");
  prompts_.set_importer(nullptr);
  prompts_.Begin(kPrompt + 2, Blocks(1s, 10s), Notes());
  EXPECT_EQ(Told(), "done compute ");
  EXPECT_EQ(prompts_.coming(kPrompt + 2).end_block, 0);
  EXPECT_EQ(importer_.imports, 0u);
}

TEST_F(PromptImportsTest, NothingIsToldAfterTheEnd) {
  prompts_.Begin(kPrompt, Blocks(1s, 10s), Notes());
  prompts_.End(kPrompt);
  EXPECT_EQ(importer_.cancelled, std::vector<BlockImporter::ImportId>{1});
  loop_.Advance(1min);
  importer_.End(1);
  prompts_.Reached(kPrompt, 3);
  EXPECT_EQ(Told(), "");
  EXPECT_TRUE(importer_.wanted.empty());
}

TEST_F(PromptImportsTest, MappedBlocksAreHeldUntilTheEnd) {
  const auto block = std::make_shared<const FakeMapped>();
  prompts_.Begin(kPrompt, Blocks(1s, 10s), Notes());
  importer_.End(1, {.mapped = {block}});
  EXPECT_EQ(block.use_count(), 2);
  prompts_.End(kPrompt);
  EXPECT_EQ(block.use_count(), 1);
  EXPECT_TRUE(importer_.cancelled.empty()) << "it had ended";
}

TEST_F(PromptImportsTest, APromptMayEndFromInside) {
  PromptImports::Events events = Notes();
  events.compute = [this] { prompts_.End(kPrompt); };
  prompts_.Begin(kPrompt, Blocks(5s, 10s), events);
  loop_.RunUntilIdle();
  EXPECT_EQ(importer_.cancelled.size(), 1u);
  events = Notes();
  events.done = [this](const BlockImporter::Imported&) { prompts_.End(kPrompt + 1); };
  prompts_.Begin(kPrompt + 1, Blocks(1s, 10s), events);
  importer_.End(2);
  EXPECT_EQ(Told(), "");
}

}  // namespace
}  // namespace penstock::worker
