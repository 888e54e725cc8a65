// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu.h"
#include "kernels/kv_split_cuda.h"
#include "kernels/kv_units_cuda.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / static_cast<int>(gpu::kWarp);
constexpr int kChunk = 32;  // kKvChunkValues of kernels/kv_codec_planes.h: a value for each lane.
constexpr int kDimMax = 1024;  // Of PageLayout.
constexpr int kExponents = 256;

struct SplitLaunch {
  CudaKvSplit block;
  const std::byte* slab = nullptr;
  std::byte* out = nullptr;
};
struct JoinLaunch {
  CudaKvSplit block;
  const std::byte* in = nullptr;
  const KvJoinUnit* table = nullptr;
  std::byte* slab = nullptr;
};

// Of the dtype that units are taken apart as.
template <KvDtype dtype>
struct Half {
  static constexpr bool kIsF16 = dtype == KvDtype::kF16;
  static constexpr int kCodes = kIsF16 ? 7 : 15;
  static constexpr int kExponents = kIsF16 ? 32 : 256;
  static constexpr int kChunkBytes = kIsF16 ? 24 : 16;
  static constexpr int kBytes = dtype == KvDtype::kF32 ? 4 : 2;  // Of a value in the slab.

  GPU_DEVICE static std::uint32_t Exponent(std::uint32_t bits) {
    return kIsF16 ? bits >> 10 & 0x1fu : bits >> 7 & 0xffu;
  }
};

GPU_DEVICE int Lane() { return static_cast<int>(threadIdx.x % gpu::kWarp); }
GPU_DEVICE int Warp() { return static_cast<int>(threadIdx.x / gpu::kWarp); }

// K or V of one head and layer: [block_tokens, dim] in its pages.
struct Unit {
  std::int64_t page_bytes;
  std::int32_t index;  // In the block: layers, heads, K or V.
  std::int32_t dim;
  std::int32_t n;
  std::int32_t page_values;
  std::int64_t pages_at;   // In the slab.
  std::int64_t values_at;  // In its layer.

  GPU_DEVICE static Unit OfBlock(const CudaKvSplit& block) {
    const auto of_layer = static_cast<std::int32_t>(blockIdx.x);
    const auto layer = static_cast<std::int32_t>(blockIdx.y);
    const std::int32_t head = of_layer / 2;
    const bool is_k = of_layer % 2 == 0;
    const std::int64_t pages = block.block_tokens / block.page_tokens;
    Unit unit;
    unit.page_bytes = block.page_bytes;
    unit.index = layer * 2 * block.kv_heads + of_layer;
    unit.dim = is_k ? block.k_dim : block.v_dim;
    unit.n = block.block_tokens * unit.dim;
    unit.page_values = block.page_tokens * unit.dim;
    unit.pages_at = (std::int64_t{layer} * block.kv_heads + head) * pages * block.page_bytes +
                    (is_k ? 0 : block.k_bytes);
    unit.values_at = std::int64_t{head} * block.block_tokens * (block.k_dim + block.v_dim) +
                     (is_k ? 0 : std::int64_t{block.block_tokens} * block.k_dim);
    return unit;
  }
  // Of a value, in the slab.
  GPU_DEVICE std::int64_t At(int value, int value_bytes) const {
    const int page = value / page_values;
    return pages_at + page * page_bytes + std::int64_t{value - page * page_values} * value_bytes;
  }
};

// A lane's value in the chunks of a warp, one after another.
struct Place {
  std::int64_t page_at;  // In the slab.
  std::int32_t in_page;  // Values.
  std::int32_t column;

  GPU_DEVICE Place(const Unit& unit, int value)
      : page_at(unit.pages_at + value / unit.page_values * unit.page_bytes),
        in_page(value % unit.page_values),
        column(value % unit.dim) {}
  GPU_DEVICE void Next(const Unit& unit) {
    in_page += kChunk;
    while (in_page >= unit.page_values) {
      in_page -= unit.page_values;
      page_at += unit.page_bytes;
    }
    column += kChunk;
    while (column >= unit.dim) column -= unit.dim;
  }
};

// The chunks that a warp takes.
struct Chunks {
  int begin;
  int end;
  GPU_DEVICE explicit Chunks(const Unit& unit) {
    const int all = unit.n / kChunk;
    const int each = (all + kWarps - 1) / kWarps;
    begin = Warp() * each < all ? Warp() * each : all;
    end = begin + each < all ? begin + each : all;
  }
};

// Of the lanes before this one, how many are in `lanes`.
GPU_DEVICE int Before(std::uint32_t lanes) {
  return static_cast<int>(gpu::CountBits(lanes & ((1u << Lane()) - 1)));
}
GPU_DEVICE int SumOfWarps(const std::int32_t* counts, int warps) {
  int sum = 0;
  for (int i = 0; i < warps; ++i) sum += counts[i];
  return sum;
}

// ---- Taking apart.

template <KvDtype dtype>
class SplitUnitOf {
  using H = Half<dtype>;

 public:
  GPU_DEVICE SplitUnitOf(const SplitLaunch& a, const Unit& unit) : a_(a), unit_(unit) {
    const CudaKvSplit& block = a.block;
    std::byte* const to = a.out + unit.index / (2 * block.kv_heads) * block.layer_bytes;
    rest_ = to + unit.values_at;
    codes_ = to + block.values + unit.values_at / kChunk * H::kChunkBytes;
    halves_ = to + block.values + block.code_bytes + 2 * unit.values_at;
    count_ = a.out + block.counts_at + 4 * std::int64_t{unit.index};
    firsts_ = a.out + block.tails_at + unit.index / 2 * (block.k_tail_bytes + block.v_tail_bytes) +
              (unit.index % 2 == 0 ? 0 : block.k_tail_bytes);
  }

  // One of eight values, as ChooseFirst of kernels/kv_exponent_choice.h takes them. counts: zeros.
  GPU_DEVICE void CountSample(std::uint32_t* counts) const {
    for (int i = static_cast<int>(threadIdx.x); i < unit_.n / 8; i += kThreads) {
      const auto spread = static_cast<std::uint32_t>(i) * 0x9e3779b1u >> 29;
      const std::int64_t at = unit_.At(8 * i + static_cast<int>(spread), H::kBytes);
      std::uint32_t* const count = counts + H::Exponent(Upper(a_.slab + at));
      gpu::AtomicAdd(count, 1);
    }
  }
  // What ChooseFirst chooses, by one warp: how many of the sample it covers << 8 | the first. Of the
  // choices that reach the highest exponent there is, or less, the best; of equals the highest.
  GPU_DEVICE static std::uint32_t Choose(const std::uint32_t* counts) {
    int highest = 0;
    for (int e = Lane(); e < H::kExponents; e += static_cast<int>(gpu::kWarp)) {
      if (counts[e] != 0) highest = e;
    }
    highest = static_cast<int>(WarpMax(static_cast<std::uint32_t>(highest)));
    std::uint32_t best = 0;
    for (int first = Lane(); first == 0 || first <= highest - H::kCodes + 1;
         first += static_cast<int>(gpu::kWarp)) {
      std::uint32_t sum = 0;
      for (int e = first; e < first + H::kCodes; ++e) sum += counts[e];
      const std::uint32_t choice = sum << 8 | static_cast<std::uint32_t>(first);
      best = choice > best ? choice : best;
    }
    return WarpMax(best);
  }
  // ChooseFirsts, a thread per column.
  GPU_DEVICE void ChooseByColumn(std::uint8_t* by_column) const {
    for (int column = static_cast<int>(threadIdx.x); column < unit_.dim; column += kThreads) {
      std::uint32_t most = 0;
      for (int value = column; value < unit_.n; value += unit_.dim) {
        const std::uint32_t bits = Upper(a_.slab + unit_.At(value, H::kBytes)) & 0x7fffu;
        most = bits > most ? bits : most;
      }
      const int first = static_cast<int>(H::Exponent(most)) - H::kCodes + 1;
      by_column[column] = static_cast<std::uint8_t>(first > 0 ? first : 0);
    }
  }

  // Escapes in the warp's chunks. by_column: null: `first` for all.
  GPU_DEVICE int CountEscapes(std::uint32_t first, const std::uint8_t* by_column) const {
    int count = 0;
    const Chunks chunks(unit_);
    Place place(unit_, chunks.begin * kChunk + Lane());
    for (int chunk = chunks.begin; chunk < chunks.end; ++chunk, place.Next(unit_)) {
      const std::uint32_t exponent = H::Exponent(Upper(At(place)));
      const std::uint32_t from = by_column != nullptr ? by_column[place.column] : first;
      count += static_cast<int>(gpu::CountBits(gpu::Ballot(Code(exponent, from) == 0)));
    }
    return count;
  }
  // The warp's chunks, `escaped` escapes being those of warps before.
  GPU_DEVICE void Split(std::uint32_t first, const std::uint8_t* by_column, int escaped) const {
    const Chunks chunks(unit_);
    Place place(unit_, chunks.begin * kChunk + Lane());
    std::byte* const escapes = firsts_ + 1 + unit_.dim;
    for (int chunk = chunks.begin; chunk < chunks.end; ++chunk, place.Next(unit_)) {
      const std::byte* const at = At(place);
      const std::uint32_t bits = Upper(at);
      const std::uint32_t exponent = H::Exponent(bits);
      const std::uint32_t from = by_column != nullptr ? by_column[place.column] : first;
      const std::uint32_t code = Code(exponent, from);
      const std::uint32_t escaping = gpu::Ballot(code == 0);
      if (code == 0) {
        gpu::Store(escapes + escaped + Before(escaping), static_cast<std::uint8_t>(exponent));
      }
      escaped += static_cast<int>(gpu::CountBits(escaping));
      const std::uint32_t low = H::kIsF16 ? bits & 0xffu : (bits & 0x7fu) | (bits >> 8 & 0x80u);
      const int value = chunk * kChunk + Lane();
      gpu::Store(rest_ + value, static_cast<std::uint8_t>(low));
      if constexpr (dtype == KvDtype::kF32) {
        gpu::Store(halves_ + 2 * std::int64_t{value}, gpu::Load<std::uint16_t>(at));
      }
      Pack(H::kIsF16 ? code << 3 | (bits >> 8 & 3u) | (bits >> 13 & 4u) : code,
           codes_ + std::int64_t{chunk} * H::kChunkBytes);
    }
  }
  // By one thread, once Split is to follow or, with too many, not.
  GPU_DEVICE void StoreCount(std::uint32_t count) const { gpu::Store(count_, count); }
  GPU_DEVICE bool Fits(int escapes) const { return escapes <= unit_.n / 16; }
  GPU_DEVICE void StoreFirsts(std::uint32_t first, const std::uint8_t* by_column) const {
    if (threadIdx.x == 0) {
      gpu::Store(firsts_, static_cast<std::uint8_t>(by_column != nullptr ? 0xffu : first));
    }
    if (by_column == nullptr) return;
    for (int i = static_cast<int>(threadIdx.x); i < unit_.dim; i += kThreads) {
      gpu::Store(firsts_ + 1 + i, by_column[i]);
    }
  }

 private:
  GPU_DEVICE const std::byte* At(const Place& place) const {
    return a_.slab + place.page_at + std::int64_t{place.in_page} * H::kBytes;
  }
  GPU_DEVICE static std::uint32_t Upper(const std::byte* value) {
    return gpu::Load<std::uint16_t>(value + H::kBytes - 2);
  }
  GPU_DEVICE static std::uint32_t Code(std::uint32_t exponent, std::uint32_t first) {
    const std::uint32_t above = (exponent - first) & 0xffu;
    return above < static_cast<std::uint32_t>(H::kCodes) ? above + 1 : 0;
  }
  GPU_DEVICE static std::uint32_t WarpMax(std::uint32_t x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const std::uint32_t other = gpu::ShflXor(x, lanes);
      x = other > x ? other : x;
    }
    return x;
  }
  // Of each lane's value what stands for it, as the bytes of a chunk. All lanes of the warp.
  GPU_DEVICE static void Pack(std::uint32_t field, std::byte* chunk) {
    const int lane = Lane();
    if constexpr (H::kIsF16) {
      const std::uint32_t top = gpu::Pick(field, static_cast<std::uint32_t>(24 + lane % 8));
      const std::uint32_t byte = field | (top >> (lane / 8 * 2) & 3u) << 6;
      if (lane < 24) gpu::Store(chunk + lane, static_cast<std::uint8_t>(byte));
    } else {
      const std::uint32_t upper = gpu::Pick(field, static_cast<std::uint32_t>(lane + 16));
      if (lane < 16) gpu::Store(chunk + lane, static_cast<std::uint8_t>(field | upper << 4));
    }
  }

  const SplitLaunch& a_;
  const Unit& unit_;
  std::byte* rest_;
  std::byte* codes_;
  std::byte* halves_;
  std::byte* count_;
  std::byte* firsts_;
};

// One block per (K or V of a head, cache layer); a warp takes a run of its chunks. That there are many
// blocks at a time is worth more than loops that are unrolled.
template <KvDtype dtype>
GPU_KERNEL(kThreads, 8)
SplitKernel(const SplitLaunch a) {
  GPU_SHARED(std::uint32_t, counts, kExponents);
  GPU_SHARED(std::uint32_t, chosen, 1);
  GPU_SHARED(std::uint8_t, columns, kDimMax);
  GPU_SHARED(std::int32_t, escapes_of_warps, 2 * kWarps);  // By column, and with one first.
  const Unit unit = Unit::OfBlock(a.block);
  const SplitUnitOf<dtype> split(a, unit);
  for (int i = static_cast<int>(threadIdx.x); i < kExponents; i += kThreads) counts[i] = 0;
  gpu::SyncThreads();
  split.CountSample(counts);
  gpu::SyncThreads();
  if (Warp() == 0) {
    const std::uint32_t choice = split.Choose(counts);
    if (Lane() == 0) chosen[0] = choice;
  }
  gpu::SyncThreads();
  const std::uint32_t first = chosen[0] & 0xffu;
  // As far as the sample tells.
  const int expected = unit.n - 8 * static_cast<int>(chosen[0] >> 8);

  // As SplitUnit of kernels/kv_split.h goes about it.
  const std::uint8_t* by_column = nullptr;
  const std::int32_t* of_warps = escapes_of_warps;
  int escapes = 0;
  if (expected > unit.dim + unit.n / 64) {
    split.ChooseByColumn(columns);
    gpu::SyncThreads();
    const int own = split.CountEscapes(first, columns);
    if (Lane() == 0) escapes_of_warps[Warp()] = own;
    gpu::SyncThreads();
    escapes = SumOfWarps(of_warps, kWarps);
    if (escapes + unit.dim <= expected) by_column = columns;
  }
  if (by_column == nullptr) {
    of_warps = escapes_of_warps + kWarps;
    const int own = split.CountEscapes(first, nullptr);
    if (Lane() == 0) escapes_of_warps[kWarps + Warp()] = own;
    gpu::SyncThreads();
    escapes = SumOfWarps(of_warps, kWarps);
  }
  const bool fits = split.Fits(escapes);
  if (threadIdx.x == 0) {
    split.StoreCount(fits ? static_cast<std::uint32_t>(escapes) : kKvSplitNone);
  }
  if (!fits) return;
  split.StoreFirsts(first, by_column);
  split.Split(first, by_column, SumOfWarps(of_warps, Warp()));
}

// ---- Putting together.

template <KvDtype dtype>
class JoinUnitOf {
  using H = Half<dtype>;

 public:
  GPU_DEVICE JoinUnitOf(const JoinLaunch& a, const Unit& unit, const KvJoinUnit& from)
      : a_(a), unit_(unit), from_(from) {}

  GPU_DEVICE void CopyRaw() const {
    const Chunks chunks(unit_);
    Place place(unit_, chunks.begin * kChunk + Lane());
    for (int chunk = chunks.begin; chunk < chunks.end; ++chunk, place.Next(unit_)) {
      const std::byte* const x =
          a_.in + from_.rest + std::int64_t{chunk * kChunk + Lane()} * H::kBytes;
      const std::uint32_t lower = H::kBytes == 4 ? Two(x) : 0;
      Put(place, Two(x + H::kBytes - 2), lower);
    }
  }
  // Escapes in the warp's chunks.
  GPU_DEVICE int CountEscapes() const {
    int count = 0;
    const Chunks chunks(unit_);
    for (int chunk = chunks.begin; chunk < chunks.end; ++chunk) {
      count += static_cast<int>(gpu::CountBits(gpu::Ballot(CodeOf(Field(chunk)) == 0)));
    }
    return count;
  }
  // The warp's chunks, `escaped` escapes being those of warps before.
  GPU_DEVICE void Join(int escaped) const {
    const std::byte* const firsts = a_.in + from_.firsts;
    const bool by_column = from_.kind == KvJoinUnit::kByColumn;
    const std::uint32_t one = gpu::Load<std::uint8_t>(firsts);
    const Chunks chunks(unit_);
    Place place(unit_, chunks.begin * kChunk + Lane());
    for (int chunk = chunks.begin; chunk < chunks.end; ++chunk, place.Next(unit_)) {
      const int value = chunk * kChunk + Lane();
      const std::uint32_t field = Field(chunk);
      const std::uint32_t code = CodeOf(field);
      const std::uint32_t escaping = gpu::Ballot(code == 0);
      const std::uint32_t first =
          by_column ? gpu::Load<std::uint8_t>(firsts + 1 + place.column) : one;
      std::uint32_t exponent = first + code - 1;
      if (code == 0) exponent = Escape(escaped + Before(escaping));
      escaped += static_cast<int>(gpu::CountBits(escaping));
      const std::uint32_t low = gpu::Load<std::uint8_t>(a_.in + from_.rest + value);
      const std::uint32_t bits =
          H::kIsF16 ? (field & 4u) << 13 | (exponent & 0x1fu) << 10 | (field & 3u) << 8 | low
                    : (low & 0x80u) << 8 | (exponent & 0xffu) << 7 | (low & 0x7fu);
      std::uint32_t lower = 0;
      if constexpr (dtype == KvDtype::kF32) {
        lower = Two(a_.in + from_.halves + 2 * std::int64_t{value});
      }
      Put(place, bits, lower);
    }
  }

 private:
  // At any address.
  GPU_DEVICE static std::uint32_t Two(const std::byte* x) {
    return gpu::Load<std::uint8_t>(x) | std::uint32_t{gpu::Load<std::uint8_t>(x + 1)} << 8;
  }
  GPU_DEVICE static std::uint32_t CodeOf(std::uint32_t field) {
    return H::kIsF16 ? field >> 3 : field;
  }
  GPU_DEVICE std::uint32_t Escape(int index) const {
    if (index >= static_cast<int>(from_.escape_count)) return 0;
    return gpu::Load<std::uint8_t>(a_.in + from_.escapes + index);
  }
  // What stands for the lane's value of a chunk.
  GPU_DEVICE std::uint32_t Field(int chunk) const {
    const std::byte* const codes = a_.in + from_.codes + std::int64_t{chunk} * H::kChunkBytes;
    const int lane = Lane();
    if constexpr (H::kIsF16) {
      if (lane < 24) return gpu::Load<std::uint8_t>(codes + lane) & 63u;
      std::uint32_t field = 0;
      for (int plane = 0; plane < 3; ++plane) {
        const std::uint32_t byte = gpu::Load<std::uint8_t>(codes + 8 * plane + lane - 24);
        field |= byte >> 6 << (2 * plane);
      }
      return field;
    } else {
      const std::uint32_t byte = gpu::Load<std::uint8_t>(codes + lane % 16);
      return lane < 16 ? byte & 15u : byte >> 4;
    }
  }
  GPU_DEVICE void Put(const Place& place, std::uint32_t bits, std::uint32_t lower) const {
    std::byte* const to = a_.slab + place.page_at + std::int64_t{place.in_page} * H::kBytes;
    if constexpr (dtype == KvDtype::kF32) {
      gpu::Store(to, bits << 16 | lower);
    } else {
      gpu::Store(to, static_cast<std::uint16_t>(bits));
    }
  }

  const JoinLaunch& a_;
  const Unit& unit_;
  const KvJoinUnit& from_;
};

// As SplitKernel.
template <KvDtype dtype>
GPU_KERNEL(kThreads, 1)
JoinKernel(const JoinLaunch a) {
  GPU_SHARED(std::int32_t, escapes_of_warps, kWarps);
  const Unit unit = Unit::OfBlock(a.block);
  const KvJoinUnit from = gpu::Load<KvJoinUnit>(a.table + unit.index);
  const JoinUnitOf<dtype> join(a, unit, from);
  if (from.kind == KvJoinUnit::kRaw) return join.CopyRaw();
  const int own = join.CountEscapes();
  if (Lane() == 0) escapes_of_warps[Warp()] = own;
  gpu::SyncThreads();
  join.Join(SumOfWarps(escapes_of_warps, Warp()));
}

}  // namespace

int SplitKvCuda(const CudaKvSplit& block, const std::byte* slab, std::byte* out,
                CudaStreamHandle stream) {
  const SplitLaunch a = {block, slab, out};
  return LaunchOnUnits(
      a, [](auto dtype) { return SplitKernel<decltype(dtype)::value>; }, kThreads, stream);
}

int JoinKvCuda(const CudaKvSplit& block, const std::byte* in, std::size_t in_bytes, std::byte* slab,
               CudaStreamHandle stream) {
  const auto units =
      static_cast<std::size_t>(block.cache_layers) * 2 * static_cast<std::size_t>(block.kv_heads);
  if (in_bytes < units * sizeof(KvJoinUnit)) return cudaErrorInvalidValue;
  const auto* const table =
      reinterpret_cast<const KvJoinUnit*>(in + in_bytes - units * sizeof(KvJoinUnit));
  const JoinLaunch a = {block, in, table, slab};
  return LaunchOnUnits(
      a, [](auto dtype) { return JoinKernel<decltype(dtype)::value>; }, kThreads, stream);
}

}  // namespace penstock::kernels
