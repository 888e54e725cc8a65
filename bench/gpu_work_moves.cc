// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/kv_spec.h"
#include "base/status.h"
#include "bench/gpu_work_parts.h"
#include "kernels/cuda_kernels.h"
#include "kernels/kv_encoding.h"
#include "kvstore/codecs/codec.h"

namespace penstock::bench {
namespace {

struct CopyWork : WorkBase {
  explicit CopyWork(CudaDevice& device) : streams{device.NewStream(), device.NewStream()} {
    wait = [this] {
      RETURN_IF_ERROR(streams[0]->Synchronize());
      return streams[1]->Synchronize();
    };
  }
  absl::StatusOr<std::byte*> TakeSide(CudaDevice& device, CudaStream& stream,
                                      const std::string& kind, std::size_t bytes) {
    if (kind == "device") return Take(device, stream, bytes);
    if (kind == "pageable") return pageable.emplace_back(bytes, std::byte{1}).data();
    ASSIGN_OR_RETURN(memory.emplace_back(), device.AllocateHost(bytes));
    return memory.back()->data();
  }
  std::vector<std::vector<std::byte>> pageable;
  std::unique_ptr<Stream> streams[2];
};

struct UnitsWork : WorkBase {
  explicit UnitsWork(CudaDevice& device)
      : stream(device.plugin(), device.gpu()), plugin(device.plugin()) {
    wait = [this] { return stream.Synchronize(); };
  }
  template <typename T>
  absl::StatusOr<const T*> Send(CudaDevice& device, const std::vector<T>& values) {
    ASSIGN_OR_RETURN(memory.emplace_back(), device.Allocate(values.size() * sizeof(T)));
    std::byte* const data = memory.back()->data();
    stream.Copy(data, reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T));
    RETURN_IF_ERROR(stream.Synchronize());
    return reinterpret_cast<const T*>(data);
  }
  CudaStream stream;
  const CudaPlugin& plugin;
  const kernels::CopyUnit* units = nullptr;  // Those of one call after those of another.
  const kernels::CopyRun* runs = nullptr;
  std::uint32_t* crcs = nullptr;
};

// The runs of a unit come from the end of its place to the begin.

struct CodedWork : WorkBase {
  kernels::KvEncoding encoding;
  PageLayout layout;
};

// What comes from a store: the frame of a block, as a device takes it.
absl::StatusOr<kernels::EncodedBlock> EncodedFor(const GpuCase& c, const PageLayout& layout,
                                                 const std::vector<std::byte>& slab) {
  const kvstore::Codec& codec = kvstore::CodecOf(c.codec);
  const LossClass loss = kvstore::IsLossless(c.codec) ? LossClass::kExact : LossClass::kKl2;
  std::vector<std::byte> frame(kvstore::FrameBytesMax(codec, kvstore::ShapeOf(layout), false));
  kvstore::CodecScratch scratch;
  ASSIGN_OR_RETURN(const std::size_t bytes,
                   kvstore::EncodeFrame(codec, {.key = {}, .loss = loss}, layout, slab.data(), {},
                                        scratch, frame));
  ASSIGN_OR_RETURN(const kvstore::Frame parsed,
                   kvstore::ParseFrame(std::span(frame).first(bytes), {}));
  return kvstore::EncodedOf(parsed.header, layout, scratch,
                            {parsed.payload.begin(), parsed.payload.end()});
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuWork>> MakeCopy(const GpuCase& c, CudaDevice& device,
                                                  CudaStream& stream) {
  auto work = std::make_unique<CopyWork>(device);
  struct Way {
    std::byte* to;
    const std::byte* from;
  };
  std::vector<Way> ways;
  const auto add = [&](const std::string& to, const std::string& from) -> absl::Status {
    ASSIGN_OR_RETURN(std::byte* const write, work->TakeSide(device, stream, to, c.bytes));
    ASSIGN_OR_RETURN(const std::byte* const read, work->TakeSide(device, stream, from, c.bytes));
    ways.push_back({write, read});
    return absl::OkStatus();
  };
  if (c.kernel == "copy") {
    RETURN_IF_ERROR(add(c.to, c.from));
  } else {
    RETURN_IF_ERROR(add("device", "pinned"));
    RETURN_IF_ERROR(add("pinned", "device"));
  }
  work->start = [w = work.get(), ways, bytes = c.bytes](std::int64_t) {
    for (std::size_t i = 0; i < ways.size(); ++i) {
      w->streams[i]->Copy(ways[i].to, ways[i].from, bytes);
    }
  };
  return work;
}

absl::StatusOr<std::unique_ptr<GpuWork>> MakeUnits(const GpuCase& c, CudaDevice& device,
                                                   std::size_t round_bytes) {
  auto work = std::make_unique<UnitsWork>(device);
  const auto per_call = static_cast<std::size_t>(c.units);
  const std::size_t copies = Copies(per_call * c.bytes, round_bytes);
  const std::size_t all_bytes = copies * per_call * c.bytes;
  ASSIGN_OR_RETURN(const std::byte* const from, work->Take(device, work->stream, all_bytes));
  std::byte* to = nullptr;
  if (!c.check_only) {
    ASSIGN_OR_RETURN(to, work->Take(device, work->stream, all_bytes));
  }
  const std::size_t runs_per_unit = c.bytes / c.run_bytes;
  std::vector<kernels::CopyUnit> units;
  std::vector<kernels::CopyRun> runs;
  for (std::size_t unit = 0; unit < copies * per_call; ++unit) {
    units.push_back(
        {static_cast<std::uint32_t>(runs.size()), static_cast<std::uint32_t>(runs_per_unit)});
    for (std::size_t run = 0; run < runs_per_unit; ++run) {
      runs.push_back({from + (unit + 1) * c.bytes - (run + 1) * c.run_bytes,
                      c.check_only ? nullptr : to + unit * c.bytes + run * c.run_bytes,
                      static_cast<std::uint32_t>(c.run_bytes)});
    }
  }
  ASSIGN_OR_RETURN(work->units, work->Send(device, units));
  ASSIGN_OR_RETURN(work->runs, work->Send(device, runs));
  RETURN_IF_ERROR(work->Take(device, work->stream, per_call, work->crcs));
  work->start = [w = work.get(), count = c.units, copies](std::int64_t call) {
    const auto first = call % static_cast<std::int64_t>(copies) * count;
    w->stream.Expect(w->plugin.kernels->copy_units(w->units + first, count, w->runs, w->crcs,
                                                   w->stream.handle()),
                     "copy_units");
  };
  return work;
}

absl::StatusOr<std::unique_ptr<GpuWork>> MakeCoded(const GpuCase& c, CudaDevice& device,
                                                   CudaStream& stream, kernels::Ops& ops,
                                                   std::size_t round_bytes) {
  auto work = std::make_unique<CodedWork>();
  work->encoding = *kvstore::EncodingOf(c.codec);
  ASSIGN_OR_RETURN(work->layout, PageLayout::Make({.cache_layers = c.layers,
                                                   .kv_heads = c.kv_heads,
                                                   .k_dim = c.head_dim,
                                                   .v_dim = c.head_dim,
                                                   .dtype = c.kv_dtype},
                                                  kBlockTokens, kBlockTokens));
  const std::size_t slab_bytes = work->layout.slab_bytes();
  const std::size_t copies = Copies(slab_bytes, round_bytes);
  ASSIGN_OR_RETURN(std::byte* const slabs, work->Take(device, stream, copies * slab_bytes));
  if (c.kernel == "encode_kv") {
    ASSIGN_OR_RETURN(
        std::byte* const out,
        work->Take(device, stream, kernels::EncodedBlockBytes(work->encoding, work->layout)));
    work->start = [w = work.get(), &ops, slabs, slab_bytes, out, copies](std::int64_t call) {
      const auto i = static_cast<std::size_t>(call) % copies;
      ops.EncodeBlock(w->encoding, w->layout, slabs + i * slab_bytes, out);
    };
    return work;
  }
  std::vector<std::byte> slab(slab_bytes);
  stream.Copy(slab.data(), slabs, slab_bytes);
  RETURN_IF_ERROR(stream.Synchronize());
  ASSIGN_OR_RETURN(const kernels::EncodedBlock encoded, EncodedFor(c, work->layout, slab));
  const std::size_t bytes = encoded.bytes.size(), apart = (bytes + 255) / 256 * 256;
  ASSIGN_OR_RETURN(std::byte* const in, work->Take(device, stream, copies * apart));
  for (std::size_t i = 0; i < copies; ++i) {
    stream.Copy(in + i * apart, encoded.bytes.data(), bytes);
  }
  RETURN_IF_ERROR(stream.Synchronize());
  work->start = [=, w = work.get(), &ops](std::int64_t call) {
    const auto i = static_cast<std::size_t>(call) % copies;
    ops.DecodeBlock(w->encoding, w->layout, {in + i * apart, bytes}, slabs + i * slab_bytes,
                    ops.stream());
  };
  return work;
}

}  // namespace penstock::bench
