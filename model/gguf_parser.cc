// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/gguf.h"
#include "model/gguf_values.h"

namespace penstock::model {
namespace {

using gguf_internal::kGgufTypes;
using gguf_internal::Load;
using gguf_internal::Printable;
using gguf_internal::ScalarBytes;

struct GgmlType {
  std::uint32_t id;
  kernels::WeightFormat format;
};
using kernels::WeightFormat;
constexpr std::array<GgmlType, 13> kGgmlTypes = {{{0, WeightFormat::kF32},
                                                  {1, WeightFormat::kF16},
                                                  {30, WeightFormat::kBF16},
                                                  {2, WeightFormat::kQ4_0},
                                                  {3, WeightFormat::kQ4_1},
                                                  {6, WeightFormat::kQ5_0},
                                                  {7, WeightFormat::kQ5_1},
                                                  {8, WeightFormat::kQ8_0},
                                                  {10, WeightFormat::kQ2_K},
                                                  {11, WeightFormat::kQ3_K},
                                                  {12, WeightFormat::kQ4_K},
                                                  {13, WeightFormat::kQ5_K},
                                                  {14, WeightFormat::kQ6_K}}};

// What formats that we do not read are called, for the error.
std::string_view GgmlTypeName(std::uint32_t id) {
  constexpr std::array<std::string_view, 41> kNames = {
      "f32",   "f16",        "q4_0",       "q4_1",       "q4_2",     "q4_3",     "q5_0",
      "q5_1",  "q8_0",       "q8_1",       "q2_k",       "q3_k",     "q4_k",     "q5_k",
      "q6_k",  "q8_k",       "iq2_xxs",    "iq2_xs",     "iq3_xxs",  "iq1_s",    "iq4_nl",
      "iq3_s", "iq2_s",      "iq4_xs",     "i8",         "i16",      "i32",      "i64",
      "f64",   "iq1_m",      "bf16",       "q4_0_4_4",   "q4_0_4_8", "q4_0_8_8", "tq1_0",
      "tq2_0", "iq4_nl_4_4", "iq4_nl_4_8", "iq4_nl_8_8", "mxfp4",    "nvfp4"};
  return id < kNames.size() ? kNames[id] : std::string_view("unknown");
}

}  // namespace

// Walks the bytes once. Every read goes through Take, so none leaves the file.
class Gguf::Parser {
 public:
  Parser(std::span<const std::byte> bytes, Gguf* out) : bytes_(bytes), out_(*out) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(const std::span<const std::byte> magic, Take(4, "magic"));
    if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
      return absl::InvalidArgumentError("not a GGUF file: it does not begin with \"GGUF\"");
    }
    ASSIGN_OR_RETURN(out_.version_, Read<std::uint32_t>("version"));
    if (out_.version_ != 2 && out_.version_ != 3) {
      return absl::InvalidArgumentError(
          absl::StrCat("GGUF version must be 2 or 3 (little-endian), got ", out_.version_));
    }
    // The smallest tensor takes 8 + 1 + 4 + 8 + 4 + 8 bytes, the smallest metadata 8 + 1 + 4 + 1.
    ASSIGN_OR_RETURN(const std::uint64_t tensors, ReadCount("tensor count", kTensorsMax, 33));
    ASSIGN_OR_RETURN(const std::uint64_t metadata, ReadCount("metadata count", kMetadataMax, 14));
    for (std::uint64_t i = 0; i < metadata; ++i) RETURN_IF_ERROR(ReadMetadata());
    RETURN_IF_ERROR(ReadAlignment());
    std::vector<std::uint64_t> offsets;
    for (std::uint64_t i = 0; i < tensors; ++i) RETURN_IF_ERROR(ReadTensorInfo(&offsets));
    return PlaceTensors(offsets);
  }

 private:
  std::uint64_t left() const { return bytes_.size() - at_; }

  absl::StatusOr<std::span<const std::byte>> Take(std::uint64_t n, std::string_view field) {
    if (n > left()) {
      return absl::DataLossError(absl::StrCat("GGUF is truncated: ", ToAbsl(field), " at byte ",
                                              at_, " needs ", n, " bytes, ", left(), " are left"));
    }
    const std::span<const std::byte> taken = bytes_.subspan(at_, n);
    at_ += n;
    return taken;
  }

  template <typename T>
  absl::StatusOr<T> Read(std::string_view field) {
    ASSIGN_OR_RETURN(const std::span<const std::byte> taken, Take(sizeof(T), field));
    return Load<T>(taken.data());
  }

  absl::StatusOr<std::uint64_t> ReadCount(std::string_view field, std::uint64_t most,
                                          std::uint64_t bytes_each) {
    ASSIGN_OR_RETURN(const std::uint64_t count, Read<std::uint64_t>(field));
    if (count > most) {
      return absl::InvalidArgumentError(
          absl::StrCat("GGUF ", ToAbsl(field), " must be at most ", most, ", got ", count));
    }
    if (count > left() / bytes_each) {
      return absl::DataLossError(absl::StrCat("GGUF is truncated: ", ToAbsl(field), " is ", count,
                                              ", but only ", left(), " bytes are left"));
    }
    return count;
  }

  absl::StatusOr<std::string_view> ReadString(std::string_view field, std::uint64_t bytes_max) {
    ASSIGN_OR_RETURN(const std::uint64_t n, Read<std::uint64_t>(field));
    if (n > bytes_max) {
      return absl::InvalidArgumentError(absl::StrCat("GGUF ", ToAbsl(field), " at byte ", at_,
                                                     " must be at most ", bytes_max,
                                                     " bytes long, got ", n));
    }
    ASSIGN_OR_RETURN(const std::span<const std::byte> taken, Take(n, field));
    return std::string_view(reinterpret_cast<const char*>(taken.data()), taken.size());
  }

  absl::StatusOr<GgufType> ReadType(std::string_view key) {
    ASSIGN_OR_RETURN(const std::uint32_t type, Read<std::uint32_t>("metadata type"));
    if (type >= kGgufTypes) {
      return absl::InvalidArgumentError(absl::StrCat("metadata ", Printable(key), " has type ",
                                                     type, ", the largest known is ",
                                                     kGgufTypes - 1));
    }
    return static_cast<GgufType>(type);
  }

  // Steps over `count` values of `type`.
  absl::Status Skip(std::string_view key, GgufType type, std::uint64_t count, int depth) {
    if (const std::uint64_t each = ScalarBytes(type); each != 0) {
      if (count > left() / each) {
        return absl::DataLossError(absl::StrCat("GGUF is truncated: metadata ", Printable(key),
                                                " has ", count, " values, but only ", left(),
                                                " bytes are left"));
      }
      return Take(count * each, key).status();
    }
    // Every turn takes at least eight bytes, so a false count ends with the file.
    for (std::uint64_t i = 0; i < count; ++i) {
      if (type == GgufType::kString) {
        RETURN_IF_ERROR(ReadString(key, std::numeric_limits<std::uint64_t>::max()).status());
        continue;
      }
      if (depth >= kArrayDepthMax) {
        return absl::InvalidArgumentError(absl::StrCat(
            "metadata ", Printable(key), " nests arrays deeper than ", kArrayDepthMax));
      }
      ASSIGN_OR_RETURN(const GgufType element, ReadType(key));
      ASSIGN_OR_RETURN(const std::uint64_t n, Read<std::uint64_t>(key));
      RETURN_IF_ERROR(Skip(key, element, n, depth + 1));
    }
    return absl::OkStatus();
  }

  absl::Status ReadMetadata() {
    ASSIGN_OR_RETURN(const std::string_view key, ReadString("metadata key", kKeyBytesMax));
    GgufValue value;
    ASSIGN_OR_RETURN(value.type, ReadType(key));
    if (value.type == GgufType::kArray) {
      ASSIGN_OR_RETURN(value.element, ReadType(key));
      ASSIGN_OR_RETURN(value.count, Read<std::uint64_t>(key));
    }
    const std::size_t begin = at_;
    RETURN_IF_ERROR(value.type == GgufType::kArray ? Skip(key, value.element, value.count, 1)
                                                   : Skip(key, value.type, 1, 0));
    value.bytes = bytes_.subspan(begin, at_ - begin);
    if (!out_.metadata_.try_emplace(std::string(key), value).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("metadata ", Printable(key), " is given twice"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    ASSIGN_OR_RETURN(const std::int32_t alignment, out_.GetInt("general.alignment", 32));
    if (alignment < 1 || static_cast<std::uint64_t>(alignment) > kAlignmentMax ||
        (alignment & (alignment - 1)) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("metadata general.alignment must be a power of two up to ", kAlignmentMax,
                       ", got ", alignment));
    }
    alignment_ = static_cast<std::uint64_t>(alignment);
    return absl::OkStatus();
  }

  absl::Status ReadTensorInfo(std::vector<std::uint64_t>* offsets) {
    ASSIGN_OR_RETURN(const std::string_view name, ReadString("tensor name", kTensorNameBytesMax));
    Tensor tensor;
    tensor.name = std::string(name);
    if (!names_.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Printable(name), " is given twice"));
    }
    ASSIGN_OR_RETURN(const std::uint32_t dimensions, Read<std::uint32_t>("tensor dimensions"));
    if (dimensions < 1 || dimensions > 4) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Printable(name), " must have 1 to 4 dimensions, got ", dimensions));
    }
    tensor.shape.resize(dimensions);
    std::uint64_t elements = 1;
    for (std::uint32_t i = 0; i < dimensions; ++i) {
      ASSIGN_OR_RETURN(const std::uint64_t size, Read<std::uint64_t>("tensor shape"));
      // 2^48 weights are more than any file holds; the limit keeps products inside 64 bits.
      constexpr std::uint64_t kElementsMax = std::uint64_t{1} << 48;
      if (size < 1 || size > kElementsMax / elements) {
        return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(name), ": dimension ",
                                                       i, " is ", size, ", must be from 1 to ",
                                                       kElementsMax / elements));
      }
      elements *= size;
      tensor.shape[dimensions - 1 - i] =
          static_cast<std::int64_t>(size);  // The file: fastest first.
    }
    ASSIGN_OR_RETURN(const std::uint32_t type, Read<std::uint32_t>("tensor type"));
    const auto* known = std::find_if(kGgmlTypes.begin(), kGgmlTypes.end(),
                                     [type](const GgmlType& t) { return t.id == type; });
    if (known == kGgmlTypes.end()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(name), " has type ", type,
                                                     " (", ToAbsl(GgmlTypeName(type)),
                                                     "), which is not supported"));
    }
    tensor.format = known->format;
    const kernels::WeightFormatInfo& info = kernels::Info(tensor.format);
    if (tensor.shape.back() % info.block != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Printable(name), ": rows of ", tensor.shape.back(),
          " weights do not divide into blocks of ", info.block, " (", ToAbsl(info.name), ")"));
    }
    ASSIGN_OR_RETURN(const std::uint64_t offset, Read<std::uint64_t>("tensor offset"));
    if (offset % alignment_ != 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(name), ": offset ",
                                                     offset, " is not a multiple of the alignment ",
                                                     alignment_));
    }
    offsets->push_back(offset);
    out_.tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status PlaceTensors(const std::vector<std::uint64_t>& offsets) {
    const std::uint64_t begin =
        std::min<std::uint64_t>((at_ + alignment_ - 1) / alignment_ * alignment_, bytes_.size());
    const std::span<const std::byte> data = bytes_.subspan(begin);
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      Tensor& tensor = out_.tensors_[i];
      const std::int64_t cols = tensor.shape.back();
      std::int64_t rows = 1;
      for (std::size_t d = 0; d + 1 < tensor.shape.size(); ++d) rows *= tensor.shape[d];
      const std::uint64_t size = kernels::BytesOf(tensor.format, rows, cols);
      if (offsets[i] > data.size() || size > data.size() - offsets[i]) {
        return absl::DataLossError(
            absl::StrCat("GGUF is truncated: tensor ", Printable(tensor.name), " takes ", size,
                         " bytes at offset ", offsets[i], ", the data has ", data.size()));
      }
      tensor.bytes = data.subspan(offsets[i], size);
    }
    return CheckOverlap();
  }

  absl::Status CheckOverlap() const {
    std::vector<const Tensor*> order;
    for (const Tensor& t : out_.tensors_) order.push_back(&t);
    std::sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) {
      return std::less<>()(a->bytes.data(), b->bytes.data());
    });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1]->bytes.data() + order[i - 1]->bytes.size() > order[i]->bytes.data()) {
        return absl::InvalidArgumentError(absl::StrCat("tensors ", Printable(order[i - 1]->name),
                                                       " and ", Printable(order[i]->name),
                                                       " overlap"));
      }
    }
    return absl::OkStatus();
  }

  const std::span<const std::byte> bytes_;
  Gguf& out_;
  std::size_t at_ = 0;
  std::uint64_t alignment_ = 32;
  absl::flat_hash_set<std::string> names_;
};

absl::StatusOr<Gguf> Gguf::Parse(std::span<const std::byte> bytes) {
  Gguf gguf;
  RETURN_IF_ERROR(Parser(bytes, &gguf).Run());
  return gguf;
}

}  // namespace penstock::model
