// SPDX-License-Identifier: Apache-2.0
// The GGUF container (versions 2 and 3, little-endian): metadata and tensors, checked against the
// bytes they are in. What the keys mean is model/gguf_model.h's business.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
//
// Plain values that view the bytes given; nothing is copied, so memory is bounded by a small
// multiple of the header. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tensor.h"

namespace penstock::model {

enum class GgufType : std::uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType element = GgufType::kU8;  // Of an array.
  std::uint64_t count = 1;           // Of an array's elements.
  std::span<const std::byte> bytes;  // The value, or all elements, as they stand in the file.
};

class Gguf {
 public:
  static constexpr std::uint64_t kMetadataMax = 1 << 16;
  static constexpr std::uint64_t kTensorsMax = 1 << 17;
  static constexpr std::uint64_t kKeyBytesMax = 65535;
  static constexpr std::uint64_t kTensorNameBytesMax = 256;
  static constexpr std::uint64_t kAlignmentMax = 1 << 20;
  static constexpr int kArrayDepthMax = 4;

  // `bytes`: the whole file; it must outlive this and every tensor. DATA_LOSS where the bytes end
  // too early, INVALID_ARGUMENT for all else, both naming the field, its value and the limit.
  static absl::StatusOr<Gguf> Parse(std::span<const std::byte> bytes);

  std::uint32_t version() const { return version_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  // In file order, names unique.
  std::vector<Tensor> TakeTensors() { return std::move(tensors_); }

  const GgufValue* Find(std::string_view key) const;  // Null where there is none.

  // The value of `key`. Without it: `fallback`, or INVALID_ARGUMENT when there is none. Integers
  // may be stored in any integer type, floats in both.
  absl::StatusOr<std::int32_t> GetInt(std::string_view key,
                                      std::optional<std::int32_t> fallback = {}) const;
  absl::StatusOr<float> GetFloat(std::string_view key, std::optional<float> fallback = {}) const;
  absl::StatusOr<bool> GetBool(std::string_view key, std::optional<bool> fallback = {}) const;
  absl::StatusOr<std::string> GetString(std::string_view key,
                                        std::optional<std::string> fallback = {}) const;
  // Arrays; empty where the key is missing.
  absl::StatusOr<std::vector<std::int64_t>> GetInts(std::string_view key) const;  // Booleans too.
  absl::StatusOr<std::vector<float>> GetFloats(std::string_view key) const;
  absl::StatusOr<std::vector<std::string>> GetStrings(std::string_view key) const;

 private:
  class Parser;

  std::uint32_t version_ = 0;
  absl::flat_hash_map<std::string, GgufValue> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace penstock::model
