// SPDX-License-Identifier: Apache-2.0
// For tests of model files: writes small GGUF and safetensors files into memory, right or wrong.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::model::testing {

// Bytes put together by hand.
class Bytes {
 public:
  template <typename T>
  Bytes& Put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    data_.append(raw, sizeof(T));
    return *this;
  }
  Bytes& Raw(std::string_view raw) {
    data_.append(raw);
    return *this;
  }
  Bytes& String(std::string_view s) { return Put<std::uint64_t>(s.size()).Raw(s); }
  const std::string& data() const { return data_; }

 private:
  std::string data_;
};

inline std::span<const std::byte> AsBytes(std::string_view data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

// A GGUF file from its parts. Values are encoded at once, so a test can hold any mistake.
class GgufWriter {
 public:
  // `type`: the GGUF type; `value`: its bytes.
  GgufWriter& Meta(std::string_view key, std::uint32_t type, std::string_view value) {
    metadata_.String(key).Put(type).Raw(value);
    ++metadata_count_;
    return *this;
  }
  GgufWriter& U32(std::string_view key, std::uint32_t v) {
    return Meta(key, 4, Bytes().Put(v).data());
  }
  GgufWriter& F32(std::string_view key, float v) { return Meta(key, 6, Bytes().Put(v).data()); }
  GgufWriter& Bool(std::string_view key, bool v) {
    return Meta(key, 7, Bytes().Put<std::uint8_t>(v ? 1 : 0).data());
  }
  GgufWriter& Str(std::string_view key, std::string_view v) {
    return Meta(key, 8, Bytes().String(v).data());
  }
  GgufWriter& Strs(std::string_view key, const std::vector<std::string>& values) {
    Bytes b;
    b.Put<std::uint32_t>(8).Put<std::uint64_t>(values.size());
    for (const std::string& v : values) b.String(v);
    return Meta(key, 9, b.data());
  }
  template <typename T>
  GgufWriter& Array(std::string_view key, std::uint32_t element, const std::vector<T>& values) {
    Bytes b;
    b.Put(element).Put<std::uint64_t>(values.size());
    for (const T v : values) b.Put(v);
    return Meta(key, 9, b.data());
  }
  // `shape`: fastest first, as in the file. Offsets follow each other, padded to 32.
  GgufWriter& Tensor(std::string_view name, const std::vector<std::uint64_t>& shape,
                     std::uint32_t type, std::uint64_t bytes) {
    TensorAt(name, shape, type, next_offset_);
    next_offset_ = (next_offset_ + bytes + 31) / 32 * 32;
    return *this;
  }
  GgufWriter& TensorAt(std::string_view name, const std::vector<std::uint64_t>& shape,
                       std::uint32_t type, std::uint64_t offset) {
    tensors_.String(name).Put<std::uint32_t>(static_cast<std::uint32_t>(shape.size()));
    for (const std::uint64_t n : shape) tensors_.Put(n);
    tensors_.Put(type).Put(offset);
    ++tensor_count_;
    return *this;
  }
  // A float32 tensor.
  GgufWriter& F32Tensor(std::string_view name, const std::vector<std::uint64_t>& shape) {
    std::uint64_t n = 4;
    for (const std::uint64_t size : shape) n *= size;
    return Tensor(name, shape, 0, n);
  }

  std::string Write(std::uint32_t version = 3) const {
    Bytes out;
    out.Raw("GGUF").Put(version).Put(tensor_count_).Put(metadata_count_);
    std::string file = out.data() + metadata_.data() + tensors_.data();
    file.resize((file.size() + 31) / 32 * 32 + next_offset_);
    return file;
  }

 private:
  Bytes metadata_;
  Bytes tensors_;
  std::uint64_t metadata_count_ = 0;
  std::uint64_t tensor_count_ = 0;
  std::uint64_t next_offset_ = 0;
};

// A whole model of the family "llama" with two layers and a tokenizer of eight tokens.
struct TinyGguf {
  std::string family = "llama";
  std::uint32_t layers = 2;
  bool sentence_piece = false;
};
GgufWriter MakeTinyGguf(const TinyGguf& options = {});

// A safetensors file: the header's length, the header, `data_bytes` zeros.
inline std::string MakeSafetensors(std::string_view header, std::size_t data_bytes) {
  return Bytes().Put<std::uint64_t>(header.size()).Raw(header).data() +
         std::string(data_bytes, '\0');
}

}  // namespace penstock::model::testing
