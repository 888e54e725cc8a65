// SPDX-License-Identifier: Apache-2.0
#include "cli/store_codecs.h"

#include <algorithm>
#include <filesystem>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/kl_bounds.h"
#include "base/status.h"
#include "kvstore/quality_record.h"

namespace penstock::cli {
namespace {

using kvstore::CodecId;
using kvstore::Keeper;

absl::StatusOr<std::vector<kvstore::RecordedCodec>> Recorded(const StoreCodecFlags& flags,
                                                             const engine::LocalModel& model) {
  const std::string weights = model.namespace_fields().weights;
  const KvDtype dtype = model.options().memory.kv_dtype;
  const std::string path = flags.quality_record.empty()
                               ? QualityRecordPath(model.file().path(), weights, dtype)
                               : flags.quality_record;
  const absl::StatusOr<std::string> json = ReadFile(path, kvstore::kQualityRecordBytesMax);
  if (!json.ok()) {
    return absl::NotFoundError(
        absl::StrCat("copies with a loss need the model's quality record, which `penstock quality ",
                     model.file().path(), "` writes: ", json.status().message()));
  }
  ASSIGN_OR_RETURN(const kvstore::QualityRecord record, kvstore::ParseQualityRecord(*json));
  return kvstore::CodecsWithin(record, weights, dtype, kKl2Max);
}

// The codec that the flag names, if it takes this KV.
absl::StatusOr<CodecId> TakenCodec(const char* flag, const std::string& name, KvDtype dtype) {
  ASSIGN_OR_RETURN(const CodecId id, kvstore::ParseCodecId(name));
  const absl::Status takes = kvstore::CheckTakes(id, dtype);
  if (takes.ok()) return id;
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " with --kv-dtype ", ToAbsl(ToString(dtype)), ": ", takes.message()));
}

}  // namespace

std::string QualityRecordPath(const std::string& model_path, const std::string& weights,
                              KvDtype dtype) {
  const std::filesystem::path path(model_path);
  const std::filesystem::path file = path.has_filename() ? path : path.parent_path();
  return (file.parent_path() / kvstore::QualityRecordName(weights, dtype)).string();
}

void AddStoreCodecFlags(CLI::App& command, StoreCodecFlags& flags) {
  constexpr const char* kGroup = "KV store";
  command
      .add_option("--store-codec", flags.codec,
                  "What exact copies are made by; auto: by what is measured to get a block to its "
                  "readers soonest; none: only those of --store-lossy are kept")
      ->check(CLI::IsMember({"raw", "planes", "planes+zstd", "auto", "none"}))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--store-lossy", flags.lossy,
                  "Keeps a smaller copy of each block, too, for requests that accept one")
      ->check(CLI::IsMember(
          {"none", "int8", "k8v4", "kivi4", "kivi2", "ans-fine", "ans-medium", "ans-coarse"}))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option(
          "--max-kl", flags.max_kl,
          "Copies with a loss are used up to this mean KL divergence, as the model's quality "
          "record has it; 0: none are")
      ->check(CLI::Range(0.0, kKl2Max))
      ->group(kGroup);
  command
      .add_option("--quality-record", flags.quality_record,
                  "The record, as `penstock quality` writes it (default: beside the model)")
      ->group(kGroup);
}

absl::StatusOr<StoreCodecs> MakeStoreCodecs(const StoreCodecFlags& flags,
                                            const engine::LocalModel& model) {
  StoreCodecs codecs;
  const KvDtype dtype = model.options().memory.kv_dtype;
  for (const CodecId id : kvstore::AllCodecs()) {
    if (!kvstore::IsLossless(id) || !kvstore::CheckTakes(id, dtype).ok()) continue;
    codecs.fetched.push_back({.codec = id});
  }
  codecs.choose = flags.codec == "auto";
  if (codecs.choose) {
    codecs.kept.push_back({.codec = CodecId::kRaw});
  } else if (flags.codec != "none") {
    ASSIGN_OR_RETURN(const CodecId id, TakenCodec("--store-codec", flags.codec, dtype));
    codecs.kept.push_back({.codec = id});
  } else if (flags.lossy == "none") {
    return absl::InvalidArgumentError(
        "--store-codec none and --store-lossy none keep nothing; --no-store says so");
  }
  if (flags.lossy != "none")
    RETURN_IF_ERROR(TakenCodec("--store-lossy", flags.lossy, dtype).status());
  if (flags.max_kl > 0 || flags.lossy != "none") {
    ASSIGN_OR_RETURN(const std::vector<kvstore::RecordedCodec> recorded, Recorded(flags, model));
    for (const kvstore::RecordedCodec& codec : recorded) {
      if (codec.loss == LossClass::kExact || codec.mean_kl > flags.max_kl) continue;
      codecs.fetched.push_back({.codec = codec.codec, .loss = codec.loss});
    }
    if (flags.lossy != "none") {
      ASSIGN_OR_RETURN(const CodecId id, kvstore::ParseCodecId(flags.lossy));
      const auto found = std::ranges::find(recorded, id, &kvstore::RecordedCodec::codec);
      if (found == recorded.end()) {
        return absl::InvalidArgumentError(absl::StrCat("--store-lossy ", flags.lossy,
                                                       ": the model's quality record has none of a "
                                                       "mean KL up to ",
                                                       kKl2Max,
                                                       " by this program's version of it"));
      }
      if (found->mean_kl > flags.max_kl) {
        return absl::InvalidArgumentError(absl::StrCat("--store-lossy ", flags.lossy,
                                                       ": its recorded mean KL is ", found->mean_kl,
                                                       ", --max-kl is ", flags.max_kl));
      }
      codecs.kept.push_back({.codec = id, .loss = found->loss});
    }
  }
  return codecs;
}

}  // namespace penstock::cli
