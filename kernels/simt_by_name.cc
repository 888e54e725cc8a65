// SPDX-License-Identifier: Apache-2.0
#include "kernels/simt_by_name.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/simt.h"

namespace penstock::simt {
namespace {

std::string Demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), &std::free);
  return status == 0 ? text.get() : "";
}

// "(A, B)" of "void F<C>(A, B)" and of "void (A, B)".
std::string Parameters(const std::string& function) {
  if (function.empty() || function.back() != ')') return "";
  int depth = 0;
  for (std::size_t at = function.size(); at-- > 0;) {
    depth += function[at] == ')' ? 1 : function[at] == '(' ? -1 : 0;
    if (depth == 0) return function.substr(at);
  }
  return "";
}

template <typename T>
std::span<const T> Table(const std::vector<char>& file, const Elf64_Shdr& section) {
  if (section.sh_offset > file.size() || section.sh_size > file.size() - section.sh_offset) {
    return {};
  }
  return {reinterpret_cast<const T*>(file.data() + section.sh_offset), section.sh_size / sizeof(T)};
}

// Addresses of all functions of this library, by their mangled names; null where two share one.
std::unordered_map<std::string, const void*> OwnFunctions() {
  Dl_info self = {};
  if (dladdr(reinterpret_cast<const void*>(&FindKernel), &self) == 0) return {};
  std::ifstream in(self.dli_fname, std::ios::binary);
  const std::vector<char> file{std::istreambuf_iterator<char>(in), {}};
  if (file.size() < sizeof(Elf64_Ehdr)) return {};
  const auto& header = *reinterpret_cast<const Elf64_Ehdr*>(file.data());
  Elf64_Shdr all = {};
  all.sh_offset = header.e_shoff;
  all.sh_size = header.e_shnum * sizeof(Elf64_Shdr);
  const std::span<const Elf64_Shdr> sections = Table<Elf64_Shdr>(file, all);
  const char* const base =
      header.e_type == ET_DYN ? static_cast<const char*>(self.dli_fbase) : nullptr;
  std::unordered_map<std::string, const void*> functions;
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) continue;
    const std::span<const char> names = Table<char>(file, sections[section.sh_link]);
    for (const Elf64_Sym& symbol : Table<Elf64_Sym>(file, section)) {
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF) continue;
      if (symbol.st_name >= names.size()) continue;
      const void* const at = base + symbol.st_value;
      const auto [known, first] = functions.try_emplace(names.data() + symbol.st_name, at);
      if (!first && known->second != at) known->second = nullptr;
    }
  }
  return functions;
}

// By what Parameters says of them; null where launchers disagree on what is passed.
struct Known {
  BindFn bind;
  std::size_t bytes;
};
std::unordered_map<std::string, Known>& Signatures() {
  static std::unordered_map<std::string, Known> signatures;  // Filled before main.
  return signatures;
}

}  // namespace

bool KnowSignature(const char* type, std::size_t bytes, BindFn bind) {
  const auto [known, first] =
      Signatures().try_emplace(Parameters(Demangled(type)), Known{bind, bytes});
  if (!first && known->second.bytes != bytes) known->second.bind = nullptr;
  return true;
}

std::string WithPlainNamespaces(std::string_view nvcc_name) {
  constexpr std::string_view kMark = "_GLOBAL__N_";
  std::string plain;
  for (std::size_t mark = 0; (mark = nvcc_name.find(kMark)) != std::string_view::npos;) {
    std::size_t digits = mark;
    while (digits > 0 && nvcc_name[digits - 1] >= '0' && nvcc_name[digits - 1] <= '9') --digits;
    const std::size_t bytes =
        std::strtoul(std::string(nvcc_name.substr(digits)).c_str(), nullptr, 10);
    plain.append(nvcc_name.substr(0, digits)).append("12_GLOBAL__N_1");
    nvcc_name.remove_prefix(std::min(mark + std::max(bytes, kMark.size()), nvcc_name.size()));
  }
  return plain.append(nvcc_name);
}

NamedKernel FindKernel(std::string_view nvcc_name) {
  static const auto* const functions =
      new std::unordered_map<std::string, const void*>(OwnFunctions());
  const std::string name = WithPlainNamespaces(nvcc_name);
  const auto function = functions->find(name);
  if (function == functions->end()) return {.why = "no emulated kernel is called " + name};
  if (function->second == nullptr) return {.why = "several emulated kernels are called " + name};
  const auto signature = Signatures().find(Parameters(Demangled(name)));
  if (signature == Signatures().end())
    return {.why = "no launcher passes what this takes: " + name};
  if (signature->second.bind == nullptr) {
    return {.why = "launchers disagree on what this takes: " + name};
  }
  return {.kernel = function->second, .bind = signature->second.bind, .why = {}};
}

}  // namespace penstock::simt
