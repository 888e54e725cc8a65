// SPDX-License-Identifier: Apache-2.0
// Emulated kernels of the library that this is linked into, by the names under which nvcc registers
// theirs: so a program that nvcc made can start them, whose only knowledge of a kernel is its
// mangled name and where its arguments lie.
//
// A kernel is found in the library's own symbol table (it must not be stripped), where the C++
// compiler has the same name but for unnamed namespaces; how its arguments are to be passed, from
// what launchers for kernels/simt.h, linked into the library whole, make known of each signature.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace penstock::simt {

// A call of a kernel, with its own copies of the arguments. arguments[i] points at argument i.
using BindFn = std::function<void()> (*)(const void* kernel, void* const* arguments);

struct NamedKernel {
  const void* kernel = nullptr;  // Null: there is none, or nobody knows its signature; see `why`.
  BindFn bind = nullptr;
  std::string why;
};
// nvcc_name: as __cudaRegisterFunction gets it, "_ZN8penstock7kernels46_GLOBAL__N__699c9195_...".
NamedKernel FindKernel(std::string_view nvcc_name);

// That name with each unnamed namespace as g++ and clang mangle it, "12_GLOBAL__N_1".
std::string WithPlainNamespaces(std::string_view nvcc_name);

}  // namespace penstock::simt
