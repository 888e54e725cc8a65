// SPDX-License-Identifier: Apache-2.0
// Tables of batches for GPU kernels against what they were made from, and the ring that takes them
// there, over the stand-in for cudart.
#include "kernels/cuda_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cuda_standin.h"

namespace penstock::kernels {
namespace {

class CudaTablesTest : public testing::Test {
 protected:
  CudaTablesTest() {
    cuda_standin::Reset({});
    device_ = CudaDevice::Make(*penstock_cuda_plugin(), {.threads = 1}).value();
    stream_ = std::make_unique<CudaStream>(device_->plugin(), device_->gpu());
  }
  ~CudaTablesTest() override {
    stream_.reset();
    device_.reset();
    EXPECT_EQ(cuda_standin::Now().device_bytes, 0);
  }

  template <typename T>
  std::vector<T> Read(const T* from, std::size_t n) {
    std::vector<T> values(n);
    stream_->Copy(reinterpret_cast<std::byte*>(values.data()),
                  reinterpret_cast<const std::byte*>(from), n * sizeof(T));
    EXPECT_TRUE(stream_->Synchronize().ok());
    return values;
  }

  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<CudaStream> stream_;
};

struct RandomBatch {
  explicit RandomBatch(std::uint32_t seed) : random(seed) {
    const std::int32_t block_tokens = 16 << Draw(3);
    layout = *PageLayout::Make({.window_tokens = Draw(2) * (1 + Draw(600)),
                                .cache_layers = 2,
                                .kv_heads = 1 + Draw(3),
                                .k_dim = 8 * (1 + Draw(8)),
                                .v_dim = 8 * (1 + Draw(8)),
                                .dtype = Draw(2) == 0 ? KvDtype::kF16 : KvDtype::kF32},
                               block_tokens, block_tokens >> Draw(3));
    slabs.resize(static_cast<std::size_t>(1 + Draw(6)));
    std::int32_t row = 0;
    for (std::vector<SlabRef>& own : slabs) {
      SequenceRows s;
      s.row_begin = row;
      s.rows = 1 + Draw(40);
      s.position = Draw(900);
      const std::int32_t window = layout.group.window_tokens;
      const std::int32_t first_seen = window > 0 ? std::max(s.position - window + 1, 0) : 0;
      s.first_block = first_seen / block_tokens;
      const std::int32_t end = (s.position + s.rows - 1) / block_tokens + 1;
      for (std::int32_t b = s.first_block; b < end; ++b) {
        SlabRef ref;
        ref.index = static_cast<std::uint32_t>(Draw(1 << 20)) & 0xffffffu;
        ref.pool = static_cast<std::uint32_t>(Draw(2)) & 0xffu;
        own.push_back(ref);
      }
      s.slabs = own;
      row += s.rows;
      sequences.push_back(s);
    }
  }
  std::int32_t Draw(std::uint32_t below) { return static_cast<std::int32_t>(random() % below); }
  KvBatch Batch() {
    return {.layout = &layout,
            .pools = {.base = base, .stride_bytes = stride_bytes},
            .sequences = sequences};
  }

  std::mt19937 random;
  PageLayout layout;
  std::byte memory[2];
  std::vector<std::byte*> base = {memory, memory + 1};
  std::vector<std::size_t> stride_bytes = {8192, 4096};
  std::vector<std::vector<SlabRef>> slabs;
  std::vector<SequenceRows> sequences;
};

TEST_F(CudaTablesTest, SayWhatTheBatchSays) {
  const auto uploads = CudaUploads::Make(*device_, *stream_, 16 << 10).value();
  for (std::uint32_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    RandomBatch made(seed);
    const KvBatch batch = made.Batch();
    const CudaKv kv = UploadTables(batch, *uploads);
    const PageLayout& layout = made.layout;
    EXPECT_EQ(kv.block_tokens, layout.block_tokens);
    EXPECT_EQ(kv.page_tokens, layout.page_tokens);
    EXPECT_EQ(kv.page_bytes, static_cast<std::int64_t>(layout.page_bytes()));
    EXPECT_EQ(kv.k_bytes, static_cast<std::int64_t>(layout.k_bytes()));
    EXPECT_EQ(kv.window_tokens, layout.group.window_tokens);
    const std::size_t count = batch.sequences.size();
    ASSERT_EQ(kv.sequence_count, static_cast<std::int32_t>(count));
    EXPECT_EQ(Read(kv.pool_base, 2), made.base);
    EXPECT_EQ(Read(kv.pool_stride_bytes, 2), (std::vector<std::uint64_t>{8192, 4096}));
    const std::vector<CudaSequence> sequences = Read(kv.sequences, count);
    const std::vector<CudaRow> rows = Read(kv.rows, static_cast<std::size_t>(kv.row_count));
    std::size_t row = 0;
    std::int32_t rows_max = 0, partitions_max = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const SequenceRows& s = batch.sequences[i];
      EXPECT_EQ(sequences[i].row_begin, s.row_begin);
      EXPECT_EQ(sequences[i].rows, s.rows);
      EXPECT_EQ(sequences[i].position, s.position);
      EXPECT_EQ(sequences[i].first_block, s.first_block);
      const std::vector<std::uint32_t> slabs =
          Read(kv.slabs + sequences[i].slabs_begin, s.slabs.size());
      for (std::size_t b = 0; b < s.slabs.size(); ++b) {
        EXPECT_EQ(slabs[b] & 255, std::uint32_t{s.slabs[b].pool});
        EXPECT_EQ(slabs[b] >> 8, std::uint32_t{s.slabs[b].index});
      }
      rows_max = std::max(rows_max, s.rows);
      for (std::int32_t r = 0; r < s.rows; ++r, ++row) {
        EXPECT_EQ(rows[row].row, s.row_begin + r);
        EXPECT_EQ(rows[row].sequence, static_cast<std::int32_t>(i));
        EXPECT_EQ(rows[row].position, s.position + r);
        std::int32_t partitions = 0;  // One by one.
        for (std::int32_t p = 0; p <= s.position + r; ++p) {
          const bool seen = kv.window_tokens == 0 || p > s.position + r - kv.window_tokens;
          const bool first_of_its = p % 256 == 0 || p == s.position + r - kv.window_tokens + 1;
          partitions += seen && first_of_its;
        }
        partitions_max = std::max(partitions_max, partitions);
      }
    }
    EXPECT_EQ(row, static_cast<std::size_t>(kv.row_count));
    EXPECT_EQ(kv.rows_max, rows_max);
    EXPECT_EQ(kv.partitions_max, partitions_max);
  }
  EXPECT_GT(uploads->round(), 2u);  // The ring went round.
}

TEST_F(CudaTablesTest, TheRingWaitsBeforeItGoesRoundAndGrows) {
  const auto uploads = CudaUploads::Make(*device_, *stream_, 1024).value();
  const std::uint64_t first = uploads->round();
  const std::int64_t waited = cuda_standin::Now().synchronizes;
  std::vector<CudaUploads::Place> places;
  for (int i = 0; i < 16; ++i) {
    places.push_back(uploads->Reserve(64));
    std::memset(places.back().host, i, 64);
    uploads->Send(places.back());
  }
  EXPECT_EQ(uploads->round(), first);
  EXPECT_EQ(cuda_standin::Now().synchronizes, waited);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(Read(places[static_cast<std::size_t>(i)].device, 64),
              std::vector<std::byte>(64, static_cast<std::byte>(i)));
  }
  const CudaUploads::Place again = uploads->Reserve(1);
  EXPECT_EQ(uploads->round(), first + 1);
  EXPECT_EQ(again.host, places[0].host);
  // 960 bytes are left; 8 pieces may take 512 more than they say.
  uploads->MakeRoom(400);
  EXPECT_EQ(uploads->round(), first + 1);
  uploads->MakeRoom(500);
  EXPECT_EQ(uploads->round(), first + 2);
  const CudaUploads::Place large = uploads->Reserve(5000);
  EXPECT_EQ(uploads->round(), first + 3);
  std::memset(large.host, 9, 5000);
  uploads->Send(large);
  EXPECT_EQ(Read(large.device, 5000), std::vector<std::byte>(5000, std::byte{9}));
}

TEST_F(CudaTablesTest, StepsThatAreAlikeHaveTheSamePlaces) {
  const auto uploads = CudaUploads::Make(*device_, *stream_, 1024).value();
  (void)uploads->Reserve(300);
  std::vector<CudaUploads::Place> before;
  for (const std::size_t more : {0, 3, 20}) {
    uploads->BeginStep();
    const std::vector<CudaUploads::Place> places = {
        uploads->Reserve(10), uploads->Reserve(100 + more), uploads->Reserve(40)};
    if (before.empty()) before = places;
    const std::int64_t copies = cuda_standin::Now().copies;
    for (std::size_t i = 0; i < places.size(); ++i) {
      EXPECT_EQ(places[i].device, before[i].device);
      std::memset(places[i].host, static_cast<int>(more + i), places[i].bytes);
      uploads->Send(places[i]);
    }
    EXPECT_EQ(cuda_standin::Now().copies, copies);
    EXPECT_TRUE(uploads->step_is_whole());
    uploads->EndStep(/*send=*/true);
    EXPECT_EQ(cuda_standin::Now().copies, copies + 1);
    for (std::size_t i = 0; i < places.size(); ++i) {
      EXPECT_EQ(Read(places[i].device, places[i].bytes),
                std::vector<std::byte>(places[i].bytes, static_cast<std::byte>(more + i)));
    }
    EXPECT_EQ(uploads->Reserve(10).bytes, 10u);  // Of no step.
  }
  uploads->BeginStep();
  (void)uploads->Reserve(600);
  EXPECT_TRUE(uploads->step_is_whole());
  (void)uploads->Reserve(600);
  EXPECT_FALSE(uploads->step_is_whole());
  uploads->EndStep(/*send=*/false);
  // There is room for the next one.
  uploads->BeginStep();
  (void)uploads->Reserve(600);
  (void)uploads->Reserve(600);
  EXPECT_TRUE(uploads->step_is_whole());
  uploads->EndStep(/*send=*/false);
}

TEST_F(CudaTablesTest, ScratchGrowsAndStays) {
  CudaScratch scratch(*device_, *stream_);
  std::byte* const place = scratch.AtLeast(100);
  EXPECT_EQ(scratch.AtLeast(std::size_t{1} << 20), place);  // What it begins with.
  EXPECT_NE(scratch.AtLeast(std::size_t{3} << 20), nullptr);
  EXPECT_DEATH(scratch.AtLeast(std::size_t{2} << 30),
               "cannot allocate 2147483648 bytes on the GPU: .* of 1073741824 are free");
}

}  // namespace
}  // namespace penstock::kernels
