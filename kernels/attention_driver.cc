// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_driver.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/attention_targets.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {
namespace {

// Below this many rows, widening a partition costs more than it saves.
constexpr std::int32_t kTiledRowsMin = 12;
constexpr std::int32_t kSubTileRows = 4 * kTileRows;  // Their scores fill half of an L1 cache.
constexpr std::int32_t kValueKeys = 64;  // Keys times kValueDims floats: a third of an L1 cache.
// How far the direct kernels read ahead of themselves at most: what memory answers in one latency,
// and once more, which they spend again (RowsAhead) before the next partition or part begins.
constexpr std::int32_t kAheadBytes = 8192;
constexpr std::int32_t kAheadRowsMin = 8;
constexpr std::int32_t kAheadRowsMax = 64;

// Stands for the keys of a group that no row sees, so that no kernel reads what was never written.
alignas(64) constexpr std::byte kZeroRow[1024 * sizeof(float)] = {};

std::int32_t RoundUp(std::int32_t n, std::int32_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

bool UsesDirect(std::int32_t tokens, std::int32_t heads) {
  return heads <= kDirectRowsMax && std::int64_t{tokens} * heads < kTiledRowsMin;
}

// The state {m, l, o} of one row, l = 0 before its first partition.
struct RowState {
  float* m;
  float* l;
  float* o;
};

// Where the states of a task's rows lie.
struct StateRows {
  float* m;
  float* l;
  std::int64_t ml_stride;  // Of a row.
  float* o;
  std::int64_t o_token_stride;
  std::int64_t o_head_stride;
  std::int32_t heads;

  RowState operator[](std::int32_t row) const {
    return {m + row * ml_stride, l + row * ml_stride,
            o + (row / heads) * o_token_stride + (row % heads) * o_head_stride};
  }
};

// The scratch of one call, each part aligned to 64 bytes.
struct Buffers {
  const std::byte** rows;  // [2 * kPartitionTokens + kAheadRowsMax]
  float* scales;           // [2 * kPartitionTokens], of K rows and V rows
  float* m;                // [tokens * heads]
  float* l;                // [tokens * heads]
  float* q;                // [kSubTileRows, k_dim], scaled
  float* scores;           // [kSubTileRows, kPartitionTokens]
  float* o;                // [kSubTileRows, v_stride]
  float* k;                // [kPartitionTokens * k_dim], tiled only
  float* v;                // Slices, as attention_driver.h has them, tiled only
  std::int32_t v_stride;
};

class Carver {
 public:
  // Null to count only.
  explicit Carver(std::byte* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}
  template <typename T>
  T* Take(std::int64_t count) {
    T* const taken = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (sizeof(T) * static_cast<std::size_t>(count) + 63) / 64 * 64;
    return taken;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  const std::uintptr_t base_;
  std::size_t bytes_ = 0;
};

Buffers Carve(std::int32_t tokens, std::int32_t heads, std::int32_t k_dim, std::int32_t v_dim,
              Carver& carver) {
  Buffers b;
  b.v_stride = RoundUp(v_dim, 16);
  b.rows = carver.Take<const std::byte*>(2 * kPartitionTokens + kAheadRowsMax);
  b.scales = carver.Take<float>(2 * kPartitionTokens);
  b.m = carver.Take<float>(std::int64_t{tokens} * heads);
  b.l = carver.Take<float>(std::int64_t{tokens} * heads);
  b.q = carver.Take<float>(std::int64_t{kSubTileRows} * k_dim);
  b.scores = carver.Take<float>(std::int64_t{kSubTileRows} * kPartitionTokens);
  b.o = carver.Take<float>(std::int64_t{kSubTileRows} * b.v_stride);
  const bool tiled = !UsesDirect(tokens, heads);
  b.k = carver.Take<float>(tiled ? std::int64_t{kPartitionTokens} * k_dim : 0);
  b.v = carver.Take<float>(tiled ? std::int64_t{kPartitionTokens} * RoundUp(v_dim, kValueDims) : 0);
  return b;
}

enum class Part { kKeys, kValues };

// Calls with(position, page, row in it, rows) for what positions [begin, end) have of each page.
template <typename With>
void ForPages(const AttentionTask& task, std::int32_t begin, std::int32_t end, With with) {
  for (std::int32_t position = begin; position < end;) {
    const std::int32_t index = position - task.first_page_position;
    const auto in_page = static_cast<std::size_t>(index % task.page_tokens);
    const std::int32_t rows = std::min(end - position, task.page_tokens - index % task.page_tokens);
    with(position, task.pages[static_cast<std::size_t>(index / task.page_tokens)], in_page, rows);
    position += rows;
  }
}

// Addresses of the K or V rows of positions [begin, end), which `seen` need not cover: others get
// the zero row. Returns the end of what it wrote.
const std::byte** ListRows(const AttentionTask& task, Part part, std::int32_t begin,
                           std::int32_t end, KeyRange seen, const std::byte** out) {
  const PageLayout page = PageOf(task);
  const std::size_t row_bytes = part == Part::kKeys ? page.k_row_bytes() : page.v_row_bytes();
  const std::size_t offset = part == Part::kKeys ? 0 : page.v_offset();
  const KeyRange real = {std::clamp(seen.begin, begin, end), std::clamp(seen.end, begin, end)};
  out = std::fill_n(out, real.begin - begin, kZeroRow);
  ForPages(task, real.begin, real.end,
           [&](std::int32_t, const std::byte* at, std::size_t in_page, std::int32_t rows) {
             at += offset + row_bytes * in_page;
             for (std::int32_t i = 0; i < rows; ++i, at += row_bytes) *out++ = at;
           });
  return std::fill_n(out, end - real.end, kZeroRow);
}

// Their scales, widened; 0 for others. To be called with int8 alone.
void ListScales(const AttentionTask& task, Part part, std::int32_t begin, std::int32_t end,
                KeyRange seen, float* out) {
  const PageLayout page = PageOf(task);
  const std::size_t offset = part == Part::kKeys ? page.k_scales_offset() : page.v_scales_offset();
  std::fill(out, out + (seen.begin - begin), 0.0f);
  ForPages(task, seen.begin, seen.end,
           [&](std::int32_t position, const std::byte* at, std::size_t in_page, std::int32_t rows) {
             WidenRow(KvDtype::kF16, at + offset + ScaleBytes(task.dtype) * in_page, nullptr, rows,
                      out + (position - begin));
           });
  std::fill(out + (seen.end - begin), out + (end - begin), 0.0f);
}

// Reads the scales of the pages of `seen` ahead.
void FetchScales(const AttentionTask& task, KeyRange seen) {
  const PageLayout page = PageOf(task);
  ForPages(task, seen.begin, seen.end,
           [&](std::int32_t, const std::byte* at, std::size_t, std::int32_t) {
             for (std::size_t i = page.k_scales_offset(); i < page.page_bytes(); i += 64) {
               __builtin_prefetch(at + i);
             }
           });
}

void ScaleRow(const AttentionKernels& kernels, const AttentionTask& task, std::int32_t row,
              float* to) {
  kernels.scale(task.q + (row / task.heads) * task.q_token_stride +
                    std::int64_t{row % task.heads} * task.k_dim,
                task.k_dim, task.scale * kAttentionLog2E, to);
}

void MergeInto(const AttentionKernels& kernels, float m, float l, const float* o,
               std::int32_t v_dim, RowState state) {
  if (*state.l == 0) {
    *state.m = m;
    *state.l = l;
    std::copy(o, o + v_dim, state.o);
  } else {
    kernels.merge(m, l, o, v_dim, state.m, state.l, state.o);
  }
}

// How far the K or V rows of one part are read ahead.
struct Lead {
  std::int32_t rows;  // At the part's beginning; a power of two.
  std::int32_t row_bytes;

  // A whole partition spends half of the lead.
  int shift() const {
    return std::countr_zero(static_cast<std::uint32_t>(2 * kPartitionTokens / rows));
  }
  std::int32_t RowsAfter(std::int32_t keys) const { return rows - (keys >> shift()); }
  void Fetch(const std::byte* const* list, std::int32_t begin, std::int32_t end) const {
    for (std::int32_t i = begin; i < end; ++i) {
      for (std::int32_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(list[i] + at);
    }
  }
};

Lead LeadOf(KvDtype dtype, std::int32_t dim) {
  const auto row_bytes = static_cast<std::int32_t>(BytesPerElement(dtype)) * dim;
  const std::int32_t rows = std::clamp(kAheadBytes / row_bytes, kAheadRowsMin, kAheadRowsMax);
  return {static_cast<std::int32_t>(std::bit_floor(static_cast<std::uint32_t>(rows))), row_bytes};
}

// One token in one partition.
void RunDirect(const AttentionKernels& kernels, const AttentionTask& task, std::int32_t token,
               std::int32_t partition, const Buffers& b, const StateRows& states) {
  const KeyRange seen = VisibleKeysIn(task, token, partition);
  if (seen.begin >= seen.end) return;
  const std::int32_t begin = seen.begin / 16 * 16;
  const std::int32_t end = RoundUp(seen.end, 16);
  const std::int32_t first = partition * kPartitionTokens;
  const std::int32_t next = first + kPartitionTokens;
  const std::byte** const value_rows = ListRows(task, Part::kKeys, begin, end, seen, b.rows);
  const std::byte** const next_rows =
      ListRows(task, Part::kValues, seen.begin, seen.end, seen, value_rows);
  ListRows(task, Part::kKeys, next, next + kAheadRowsMax, VisibleKeys(task, token), next_rows);

  const Lead k_lead = LeadOf(task.dtype, task.k_dim);
  const Lead v_lead = LeadOf(task.dtype, task.v_dim);
  const bool scaled = task.dtype == KvDtype::kInt8;
  float* const value_scales = b.scales + kPartitionTokens;
  if (scaled)
    FetchScales(task, seen);  // Which the partition before has asked for, if there was one.
  k_lead.Fetch(b.rows, 0, k_lead.rows);
  if (scaled) FetchScales(task, VisibleKeysIn(task, token, partition + 1));
  for (std::int32_t head = 0; head < task.heads; ++head) {
    ScaleRow(kernels, task, token * task.heads + head, b.q + std::int64_t{head} * task.k_dim);
  }
  if (scaled) {
    ListScales(task, Part::kKeys, begin, end, seen, b.scales);
    ListScales(task, Part::kValues, seen.begin, seen.end, seen, value_scales);
  }
  kernels.scores({task.dtype, b.rows, b.scales}, end - begin, task.k_dim, task.heads, b.q,
                 {b.rows + k_lead.rows, k_lead.shift()}, b.scores + (begin - first));
  float m[kDirectRowsMax];
  float l[kDirectRowsMax];
  std::int32_t fetched = k_lead.RowsAfter(end - begin);
  for (std::int32_t head = 0; head < task.heads; ++head) {
    // In equal shares, so that each has come when the next goes out.
    const std::int32_t until = fetched + (v_lead.rows - fetched) / (task.heads - head);
    v_lead.Fetch(value_rows, fetched, until);
    fetched = std::max(fetched, until);
    kernels.softmax(b.scores + head * kPartitionTokens, seen.begin - first, seen.end - first,
                    &m[head], &l[head]);
  }
  std::fill(b.o, b.o + std::int64_t{task.heads} * b.v_stride, 0.0f);
  kernels.values({task.dtype, value_rows, value_scales}, seen.end - seen.begin, task.v_dim,
                 task.heads, b.scores + (seen.begin - first),
                 {value_rows + v_lead.rows, v_lead.shift()}, b.o, b.v_stride);
  for (std::int32_t head = 0; head < task.heads; ++head) {
    MergeInto(kernels, m[head], l[head], b.o + std::int64_t{head} * b.v_stride, task.v_dim,
              states[token * task.heads + head]);
  }
}

// Up to kSubTileRows rows of one partition whose K and V are packed. Positions are relative to the
// partition.
struct SubTile {
  std::int32_t row;  // First row of the task.
  std::int32_t rows;
  KeyRange seen[kSubTileRows];  // By each row; both ends ascend.
};

void ScoreSubTile(const AttentionKernels& kernels, const AttentionTask& task, const SubTile& tile,
                  const Buffers& b) {
  const std::int32_t begin = tile.seen[0].begin / kKeyBlock;
  const std::int32_t end = (tile.seen[tile.rows - 1].end + kKeyBlock - 1) / kKeyBlock;
  for (std::int32_t block = begin; block < end; ++block) {
    const float* const k = b.k + std::int64_t{block} * kKeyBlock * task.k_dim;
    for (std::int32_t r = 0; r < tile.rows; r += kTileRows) {
      const std::int32_t rows = std::min(kTileRows, tile.rows - r);
      if (tile.seen[r + rows - 1].end <= block * kKeyBlock ||
          tile.seen[r].begin >= (block + 1) * kKeyBlock) {
        continue;
      }
      kernels.score_tile(k, task.k_dim, rows, b.q + std::int64_t{r} * task.k_dim,
                         b.scores + r * kPartitionTokens + block * kKeyBlock);
    }
  }
}

// One group of up to kTileRows rows over keys [begin, end): together where all see them, before
// and after that each row alone, for what it sees.
void ValueRows(const AttentionKernels& kernels, const SubTile& tile, std::int32_t r,
               std::int32_t rows, std::int32_t begin, std::int32_t end, std::int32_t dim,
               std::int32_t dims, const Buffers& b) {
  const auto run = [&](std::int32_t row, std::int32_t count, std::int32_t from, std::int32_t to) {
    from = std::max(from, begin);
    to = std::min(to, end);
    if (from >= to) return;
    kernels.value_tile(b.v + ValueOffset(dim) + std::int64_t{from} * kValueDims, to - from, dims,
                       count, b.scores + row * kPartitionTokens + from,
                       b.o + std::int64_t{row} * b.v_stride + dim, b.v_stride);
  };
  const KeyRange shared = {tile.seen[r + rows - 1].begin, tile.seen[r].end};
  if (shared.begin >= shared.end) {
    for (std::int32_t i = r; i < r + rows; ++i) run(i, 1, tile.seen[i].begin, tile.seen[i].end);
    return;
  }
  for (std::int32_t i = r; i < r + rows; ++i) run(i, 1, tile.seen[i].begin, shared.begin);
  run(r, rows, shared.begin, shared.end);
  for (std::int32_t i = r; i < r + rows; ++i) run(i, 1, shared.end, tile.seen[i].end);
}

void RunSubTile(const AttentionKernels& kernels, const AttentionTask& task, const SubTile& tile,
                const Buffers& b, const StateRows& states) {
  for (std::int32_t r = 0; r < tile.rows; ++r) {
    ScaleRow(kernels, task, tile.row + r, b.q + std::int64_t{r} * task.k_dim);
  }
  ScoreSubTile(kernels, task, tile, b);
  float m[kSubTileRows];
  float l[kSubTileRows];
  for (std::int32_t r = 0; r < tile.rows; ++r) {
    kernels.softmax(b.scores + r * kPartitionTokens, tile.seen[r].begin, tile.seen[r].end, &m[r],
                    &l[r]);
  }
  std::fill(b.o, b.o + std::int64_t{tile.rows} * b.v_stride, 0.0f);
  const std::int32_t end = tile.seen[tile.rows - 1].end;
  for (std::int32_t dim = 0; dim < b.v_stride; dim += kValueDims) {
    const std::int32_t dims = std::min(kValueDims, b.v_stride - dim);
    for (std::int32_t key = tile.seen[0].begin; key < end; key += kValueKeys) {
      for (std::int32_t r = 0; r < tile.rows; r += kTileRows) {
        ValueRows(kernels, tile, r, std::min(kTileRows, tile.rows - r), key,
                  std::min(key + kValueKeys, end), dim, dims, b);
      }
    }
  }
  for (std::int32_t r = 0; r < tile.rows; ++r) {
    MergeInto(kernels, m[r], l[r], b.o + std::int64_t{r} * b.v_stride, task.v_dim,
              states[tile.row + r]);
  }
}

// All tokens in one partition.
void RunTiled(const AttentionKernels& kernels, const AttentionTask& task, std::int32_t partition,
              const Buffers& b, const StateRows& states) {
  const std::int32_t first = partition * kPartitionTokens;
  const auto sees = [&](std::int32_t token) {
    const KeyRange keys = VisibleKeysIn(task, token, partition);
    return keys.begin < keys.end;
  };
  std::int32_t token_begin = 0;
  std::int32_t token_end = task.tokens;
  while (token_begin < token_end && !sees(token_begin)) ++token_begin;
  while (token_begin < token_end && !sees(token_end - 1)) --token_end;
  if (token_begin == token_end) return;

  const KeyRange seen = {VisibleKeysIn(task, token_begin, partition).begin,
                         VisibleKeysIn(task, token_end - 1, partition).end};
  const std::int32_t begin = seen.begin / kKeyBlock * kKeyBlock;
  const std::int32_t end = RoundUp(seen.end, kKeyBlock);
  const bool scaled = task.dtype == KvDtype::kInt8;
  ListRows(task, Part::kKeys, begin, end, seen, b.rows);
  if (scaled) ListScales(task, Part::kKeys, begin, end, seen, b.scales);
  kernels.pack_keys({task.dtype, b.rows, b.scales}, end - begin, task.k_dim,
                    b.k + std::int64_t{begin - first} * task.k_dim);
  ListRows(task, Part::kValues, seen.begin, seen.end, seen, b.rows);
  if (scaled) ListScales(task, Part::kValues, seen.begin, seen.end, seen, b.scales);
  kernels.pack_values({task.dtype, b.rows, b.scales}, seen.end - seen.begin, task.v_dim,
                      b.v + std::int64_t{seen.begin - first} * kValueDims);

  const std::int32_t row_end = token_end * task.heads;
  for (std::int32_t row = token_begin * task.heads; row < row_end; row += kSubTileRows) {
    SubTile tile;
    tile.row = row;
    tile.rows = std::min(kSubTileRows, row_end - row);
    for (std::int32_t r = 0; r < tile.rows; ++r) {
      const KeyRange keys = VisibleKeysIn(task, (row + r) / task.heads, partition);
      tile.seen[r] = {keys.begin - first, keys.end - first};
    }
    RunSubTile(kernels, task, tile, b, states);
  }
}

void RunPartition(const AttentionKernels& kernels, const AttentionTask& task,
                  std::int32_t partition, const Buffers& b, const StateRows& states) {
  if (!UsesDirect(task.tokens, task.heads)) {
    RunTiled(kernels, task, partition, b, states);
    return;
  }
  for (std::int32_t token = 0; token < task.tokens; ++token) {
    RunDirect(kernels, task, token, partition, b, states);
  }
}

// The states of the task's output rows, o in place.
StateRows OutputStates(const AttentionTask& task, float* m, float* l) {
  return {m, l, 1, task.out, task.out_token_stride, task.v_dim, task.heads};
}

}  // namespace

std::size_t DriverScratchBytes(std::int32_t tokens_max, std::int32_t heads, std::int32_t k_dim,
                               std::int32_t v_dim) {
  Carver carver(nullptr);
  Carve(tokens_max, heads, k_dim, v_dim, carver);
  return carver.bytes();
}

void AttendWith(const AttentionKernels& kernels, const AttentionTask& task,
                std::span<std::byte> scratch) {
  if (task.tokens == 0) return;
  Carver carver(scratch.data());
  const Buffers b = Carve(task.tokens, task.heads, task.k_dim, task.v_dim, carver);
  const StateRows states = OutputStates(task, b.m, b.l);
  const std::int32_t rows = task.tokens * task.heads;
  std::fill(b.l, b.l + rows, 0.0f);
  const std::int32_t partition_end = (task.position + task.tokens - 1) / kPartitionTokens + 1;
  for (std::int32_t partition = VisibleKeys(task, 0).begin / kPartitionTokens;
       partition < partition_end; ++partition) {
    RunPartition(kernels, task, partition, b, states);
  }
  for (std::int32_t row = 0; row < rows; ++row) {
    const RowState state = states[row];
    kernels.divide(state.o, task.v_dim, *state.l);
  }
}

void AttendPartitionWith(const AttentionKernels& kernels, const AttentionTask& task,
                         std::int32_t partition, float* state, std::span<std::byte> scratch) {
  Carver carver(scratch.data());
  const Buffers b = Carve(task.tokens, task.heads, task.k_dim, task.v_dim, carver);
  const std::int64_t stride = 2 + task.v_dim;
  for (std::int64_t row = 0; row < std::int64_t{task.tokens} * task.heads; ++row) {
    state[row * stride] = -std::numeric_limits<float>::infinity();
    state[row * stride + 1] = 0;
  }
  const StateRows states = {state,  state + 1, stride, state + 2, stride * task.heads,
                            stride, task.heads};
  RunPartition(kernels, task, partition, b, states);
}

void MergePartitionsWith(const AttentionKernels& kernels, const AttentionTask& task,
                         const float* states, std::int32_t partitions) {
  const std::int64_t stride = 2 + task.v_dim;
  const std::int32_t rows = task.tokens * task.heads;
  for (std::int32_t row = 0; row < rows; ++row) {
    float m = -std::numeric_limits<float>::infinity();
    float l = 0;
    StateRows outputs = OutputStates(task, &m, &l);
    outputs.ml_stride = 0;  // One row at a time.
    const RowState state = outputs[row];
    for (std::int32_t partition = 0; partition < partitions; ++partition) {
      const float* const next = states + (std::int64_t{partition} * rows + row) * stride;
      if (next[1] == 0) continue;
      MergeInto(kernels, next[0], next[1], next + 2, task.v_dim, state);
    }
    kernels.divide(state.o, task.v_dim, l);
  }
}

}  // namespace penstock::kernels
