// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_encoding_cuda.h"
#include "kernels/kv_pages_cuda.h"
#include "kernels/kv_units_cuda.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 16;  // Of one row with kInt8Rows.
constexpr int kGroup = 32;  // kKvGroupValues of kernels/kv_codec_quant.h.
constexpr float kMost = 65504;

struct DecodeLaunch {
  CudaKvBlock block;
  std::int32_t page_shift = 0;  // log2(page_tokens)
  const std::byte* in = nullptr;
  std::byte* slab = nullptr;
};
struct EncodeLaunch {
  CudaKvBlock block;
  std::int32_t page_shift = 0;  // log2(page_tokens)
  const std::byte* slab = nullptr;
  std::byte* out = nullptr;
};

// The least F16 that is not below x, and the largest that is not above; |x| is up to 65,504.
GPU_DEVICE std::uint16_t RoundUpToF16(float x) {
  const std::uint16_t nearest = gpu::ToF16Saturated(x);
  return gpu::FromF16(nearest) >= x ? nearest : static_cast<std::uint16_t>(nearest + 1);
}
GPU_DEVICE std::uint16_t RoundDownToF16(float x) {
  const std::uint16_t nearest = gpu::ToF16Saturated(x);
  if (gpu::FromF16(nearest) <= x) return nearest;
  return static_cast<std::uint16_t>((nearest & 0x8000u) != 0 ? nearest + 1 : nearest - 1);
}
GPU_DEVICE float InverseOfF16(std::uint16_t scale) {
  const float x = gpu::FromF16(scale);
  return x > 0 ? gpu::Divide(1, x) : 0.0f;
}
GPU_DEVICE float Magnitude(float x) {
  return gpu::FloatFromBits(gpu::BitsFromFloat(x) & 0x7fffffffu);
}

// Keys or values of one head and layer, by a block of threads.
template <KvDtype dtype>
class EncodeUnit {
  using Elements = KvElements<dtype>;

 public:
  GPU_DEVICE EncodeUnit(const EncodeLaunch& a, int layer, int head, const CudaKvPart& part,
                        std::int64_t in_page)
      : a_(a), part_(part) {
    const std::int64_t pages = a.block.block_tokens >> a.page_shift;
    const std::int64_t unit = std::int64_t{layer} * a.block.kv_heads + head;
    from_ = a.slab + unit * pages * a.block.page_bytes + in_page;
    std::byte* const to = a.out + layer * a.block.layer_bytes;
    codes_ = to + part.codes_at + head * part.codes_bytes;
    ranges_ = to + part.ranges_at + head * part.ranges_bytes;
  }

  // Whether this thread met what cannot be taken.
  GPU_DEVICE bool Run() {
    if (part_.way.kind == KvQuantWay::kInt8Rows) return Rows();
    const bool bad = part_.way.kind == KvQuantWay::kGroups ? GroupRanges() : ChannelRanges();
    gpu::SyncThreads();
    Codes();
    return bad;
  }

 private:
  GPU_DEVICE static int Thread() { return static_cast<int>(threadIdx.x); }
  GPU_DEVICE int Groups() const { return (part_.dim + kGroup - 1) / kGroup; }
  GPU_DEVICE std::byte* Minima() const { return ranges_ + part_.ranges_bytes / 2; }
  // Elements from `i` on of a token.
  GPU_DEVICE const std::byte* At(int row, int i) const {
    const std::int64_t page = row >> a_.page_shift;
    const std::int64_t index = std::int64_t{row & (a_.block.page_tokens - 1)} * part_.dim + i;
    return from_ + page * a_.block.page_bytes + index * Elements::kBytes;
  }
  GPU_DEVICE float Value(int row, int i) const {
    const std::byte* const p = At(row, i);
    if constexpr (dtype == KvDtype::kF32) {
      return gpu::Load<float>(p);
    } else if constexpr (dtype == KvDtype::kF16) {
      return gpu::FromF16(gpu::Load<std::uint16_t>(p));
    } else {
      return gpu::FloatFromBits(std::uint32_t{gpu::Load<std::uint16_t>(p)} << 16);
    }
  }

  // kLanes threads per token.
  GPU_DEVICE bool Rows() const {
    const int lane = Thread() % kLanes;
    bool bad = false;
    for (int base = 0; base < a_.block.block_tokens; base += kThreads / kLanes) {
      const int row = base + Thread() / kLanes;  // All lanes of a warp come round together.
      const int dim = row < a_.block.block_tokens ? part_.dim : 0;
      float max = 0;
      for (int i = 8 * lane; i < dim; i += 8 * kLanes) {
        float x[8];
        Elements::Load(At(row, i)).Widen(1, x);
        GPU_UNROLL(8) for (int e = 0; e < 8; ++e) {
          bad = bad || !(Magnitude(x[e]) <= kMost);
          max = Magnitude(x[e]) > max ? Magnitude(x[e]) : max;
        }
      }
      for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        const float other = gpu::ShflXor(max, distance);
        max = other > max ? other : max;
      }
      const std::uint16_t scale = RoundUpToF16(gpu::Divide(max, 127));
      const float inverse = InverseOfF16(scale);
      if (lane == 0 && dim > 0) gpu::Store(ranges_ + 2 * row, scale);
      for (int i = 8 * lane; i < dim; i += 8 * kLanes) {
        float x[8];
        Elements::Load(At(row, i)).Widen(1, x);
        std::uint32_t words[2] = {0, 0};
        GPU_UNROLL(8) for (int e = 0; e < 8; ++e) {
          const auto level = static_cast<std::uint32_t>(gpu::RoundToInt(x[e] * inverse)) & 255;
          words[e / 4] |= level << (8 * (e % 4));
        }
        gpu::Store(codes_ + std::int64_t{row} * dim + i, uint2{words[0], words[1]});
      }
    }
    return bad;
  }

  struct Range {
    float min;
    float max;
    bool bad = false;

    GPU_DEVICE void Take(float x) {
      bad = bad || !(Magnitude(x) <= kMost);
      min = x < min ? x : min;
      max = x > max ? x : max;
    }
  };
  GPU_DEVICE static Range NoRange() {
    return {gpu::FloatFromBits(0x7f800000u), gpu::FloatFromBits(0xff800000u)};
  }
  GPU_DEVICE void StoreRange(std::int64_t index, const Range& range) const {
    const std::uint16_t minimum = RoundDownToF16(range.min + 0.0f);
    const float steps = part_.way.bits == 4 ? 15 : 3;
    const float width = (range.max - gpu::FromF16(minimum)) + 0.0f;
    gpu::Store(ranges_ + 2 * index, RoundUpToF16(gpu::Divide(width, steps)));
    gpu::Store(Minima() + 2 * index, minimum);
  }

  // A thread per group of values of a token.
  GPU_DEVICE bool GroupRanges() const {
    const int groups = Groups();
    bool bad = false;
    for (int index = Thread(); index < a_.block.block_tokens * groups; index += kThreads) {
      const int row = index / groups;
      const int begin = (index - row * groups) * kGroup;
      const int end = begin + kGroup < part_.dim ? begin + kGroup : part_.dim;
      Range range = NoRange();
      for (int i = begin; i < end; i += 8) {
        float x[8];
        Elements::Load(At(row, i)).Widen(1, x);
        GPU_UNROLL(8) for (int e = 0; e < 8; ++e) range.Take(x[e]);
      }
      StoreRange(index, range);
      bad = bad || range.bad;
    }
    return bad;
  }
  // A thread per column.
  GPU_DEVICE bool ChannelRanges() const {
    bool bad = false;
    for (int i = Thread(); i < part_.dim; i += kThreads) {
      Range range = NoRange();
      GPU_UNROLL(8)
      for (int row = 0; row < a_.block.block_tokens; ++row) range.Take(Value(row, i));
      StoreRange(i, range);
      bad = bad || range.bad;
    }
    return bad;
  }

  // A thread per byte, once all ranges are there.
  GPU_DEVICE void Codes() const {
    const int bits = part_.way.bits;
    const int row_bytes = part_.dim * bits / 8;
    const int group_bytes = kGroup * bits / 8;
    for (int index = Thread(); index < a_.block.block_tokens * row_bytes; index += kThreads) {
      const int row = index / row_bytes;
      const int in_row = index - row * row_bytes;
      const int group = in_row / group_bytes;
      const int begin = group * kGroup;
      const int values = begin + kGroup < part_.dim ? kGroup : part_.dim - begin;
      const int apart = values * bits / 8;
      std::uint32_t byte = 0;
      for (int shift = 0, i = begin + in_row % group_bytes; shift < 8; shift += bits, i += apart) {
        const bool channels = part_.way.kind == KvQuantWay::kChannels;
        const std::int64_t range = channels ? i : std::int64_t{row} * Groups() + group;
        const float inverse = InverseOfF16(gpu::Load<std::uint16_t>(ranges_ + 2 * range));
        const float minimum = gpu::FromF16(gpu::Load<std::uint16_t>(Minima() + 2 * range));
        const int code = gpu::RoundToInt((Value(row, i) - minimum) * inverse);
        byte |= static_cast<std::uint32_t>(code) << shift;
      }
      gpu::Store(codes_ + index, static_cast<std::uint8_t>(byte));
    }
  }

  const EncodeLaunch& a_;
  const CudaKvPart& part_;
  const std::byte* from_ = nullptr;
  std::byte* codes_ = nullptr;
  std::byte* ranges_ = nullptr;
};

// One block per (K or V of a head, cache layer).
template <KvDtype dtype>
GPU_KERNEL(kThreads, 1)
EncodeKernel(const EncodeLaunch a) {
  GPU_SHARED(std::uint32_t, bad_lanes, kThreads / gpu::kWarp);
  const auto unit = static_cast<int>(blockIdx.x);
  const auto layer = static_cast<int>(blockIdx.y);
  const bool is_k = unit % 2 == 0;
  EncodeUnit<dtype> encode(a, layer, unit / 2, is_k ? a.block.keys : a.block.values,
                           is_k ? 0 : a.block.k_bytes);
  const std::uint32_t bad = gpu::Ballot(encode.Run());
  if (threadIdx.x % gpu::kWarp == 0) bad_lanes[threadIdx.x / gpu::kWarp] = bad;
  gpu::SyncThreads();
  if (threadIdx.x != 0) return;
  std::uint32_t any = 0;
  for (std::uint32_t i = 0; i < kThreads / gpu::kWarp; ++i) any |= bad_lanes[i];
  std::byte* const faults = a.out + a.block.cache_layers * a.block.layer_bytes;
  gpu::Store(faults + layer * 2 * a.block.kv_heads + unit,
             static_cast<std::uint8_t>(any != 0 ? 1 : 0));
}

// What EncodeUnit made, by a block of threads: keys or values of one head and layer.
template <KvDtype dtype>
class DecodeUnit {
 public:
  GPU_DEVICE DecodeUnit(const DecodeLaunch& a, int layer, int head, const CudaKvPart& part,
                        std::int64_t in_page)
      : a_(a), part_(part) {
    const std::int64_t pages = a.block.block_tokens >> a.page_shift;
    const std::int64_t unit = std::int64_t{layer} * a.block.kv_heads + head;
    to_ = a.slab + unit * pages * a.block.page_bytes + in_page;
    const std::byte* const from = a.in + layer * a.block.layer_bytes;
    codes_ = from + part.codes_at + head * part.codes_bytes;
    ranges_ = from + part.ranges_at + head * part.ranges_bytes;
  }

  GPU_DEVICE void Run() const {
    if (part_.way.kind == KvQuantWay::kInt8Rows) return Rows();
    Codes();
  }

 private:
  GPU_DEVICE static int Thread() { return static_cast<int>(threadIdx.x); }
  GPU_DEVICE std::byte* At(int row, int i) const {
    const std::int64_t page = row >> a_.page_shift;
    const std::int64_t index = std::int64_t{row & (a_.block.page_tokens - 1)} * part_.dim + i;
    return to_ + page * a_.block.page_bytes + index * KvElements<dtype>::kBytes;
  }
  GPU_DEVICE static std::uint16_t Narrow(float x) {
    return dtype == KvDtype::kF16 ? gpu::ToF16Saturated(x) : ToBF16Cuda(x);
  }
  GPU_DEVICE static std::uint32_t Narrow2(float low, float high) {
    return Narrow(low) | std::uint32_t{Narrow(high)} << 16;
  }

  // A thread per 8 values of a token.
  GPU_DEVICE void Rows() const {
    const int eights = part_.dim / 8;
    for (int index = Thread(); index < a_.block.block_tokens * eights; index += kThreads) {
      const int row = index / eights;
      const float scale = gpu::FromF16(gpu::Load<std::uint16_t>(ranges_ + 2 * row));
      float x[8];
      KvElements<KvDtype::kInt8>::Load(codes_ + std::int64_t{8} * index).Widen(scale, x);
      std::byte* const to = At(row, 8 * (index - row * eights));
      if constexpr (dtype == KvDtype::kF32) {
        gpu::Store(to, float4{x[0], x[1], x[2], x[3]});
        gpu::Store(to + 16, float4{x[4], x[5], x[6], x[7]});
      } else {
        gpu::Store(to, uint4{Narrow2(x[0], x[1]), Narrow2(x[2], x[3]), Narrow2(x[4], x[5]),
                             Narrow2(x[6], x[7])});
      }
    }
  }

  // A thread per byte.
  GPU_DEVICE void Codes() const {
    const bool channels = part_.way.kind == KvQuantWay::kChannels;
    const int bits = part_.way.bits;
    const std::uint32_t mask = (1u << bits) - 1;
    const int row_bytes = part_.dim * bits / 8;
    const int group_bytes = kGroup * bits / 8;
    const int groups = (part_.dim + kGroup - 1) / kGroup;
    const std::byte* const minima = ranges_ + part_.ranges_bytes / 2;
    for (int index = Thread(); index < a_.block.block_tokens * row_bytes; index += kThreads) {
      const int row = index / row_bytes;
      const int in_row = index - row * row_bytes;
      const int group = in_row / group_bytes;
      const int begin = group * kGroup;
      const int values = begin + kGroup < part_.dim ? kGroup : part_.dim - begin;
      const int apart = values * bits / 8;
      const std::uint32_t byte = gpu::Load<std::uint8_t>(codes_ + index);
      for (int shift = 0, i = begin + in_row % group_bytes; shift < 8; shift += bits, i += apart) {
        const std::int64_t range = channels ? i : std::int64_t{row} * groups + group;
        const float scale = gpu::FromF16(gpu::Load<std::uint16_t>(ranges_ + 2 * range));
        const float minimum = gpu::FromF16(gpu::Load<std::uint16_t>(minima + 2 * range));
        const float x = gpu::Fma(static_cast<float>((byte >> shift) & mask), scale, minimum);
        if constexpr (dtype == KvDtype::kF32) {
          gpu::Store(At(row, i), x);
        } else {
          gpu::Store(At(row, i), Narrow(x));
        }
      }
    }
  }

  const DecodeLaunch& a_;
  const CudaKvPart& part_;
  std::byte* to_ = nullptr;
  const std::byte* codes_ = nullptr;
  const std::byte* ranges_ = nullptr;
};

// One block per (K or V of a head, cache layer).
template <KvDtype dtype>
GPU_KERNEL(kThreads, 1)
DecodeKernel(const DecodeLaunch a) {
  const auto unit = static_cast<int>(blockIdx.x);
  const bool is_k = unit % 2 == 0;
  DecodeUnit<dtype>(a, static_cast<int>(blockIdx.y), unit / 2, is_k ? a.block.keys : a.block.values,
                    is_k ? 0 : a.block.k_bytes)
      .Run();
}

}  // namespace

int EncodeKvCuda(const CudaKvBlock& block, const std::byte* slab, std::byte* out,
                 CudaStreamHandle stream) {
  const EncodeLaunch a = {block, std::countr_zero(static_cast<std::uint32_t>(block.page_tokens)),
                          slab, out};
  return LaunchOnUnits(
      a, [](auto dtype) { return EncodeKernel<decltype(dtype)::value>; }, kThreads, stream);
}

int DecodeKvCuda(const CudaKvBlock& block, const std::byte* in, std::byte* slab,
                 CudaStreamHandle stream) {
  const DecodeLaunch a = {block, std::countr_zero(static_cast<std::uint32_t>(block.page_tokens)),
                          in, slab};
  return LaunchOnUnits(
      a, [](auto dtype) { return DecodeKernel<decltype(dtype)::value>; }, kThreads, stream);
}

}  // namespace penstock::kernels
