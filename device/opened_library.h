// SPDX-License-Identifier: Apache-2.0
// Libraries of NVIDIA's that the plug-in opens when they are first asked for. Inside device/ only, and of
// what the plug-in has: no Abseil. Any thread.
#pragma once

#include <dlfcn.h>

#include <string>

namespace penstock {

// Null where it cannot be loaded, with "cannot load FILE: ..." in `why_not`. It stays until it is given to
// dlclose.
inline void* OpenLibrary(const char* file, std::string& why_not) {
  void* const library = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const char* const text = ::dlerror();
  why_not = std::string("cannot load ") + file + ": " + (text == nullptr ? "?" : text);
  return nullptr;
}

// Of an open library: symbols by their names. One that is missing is null, with "FILE has no NAME" in
// `why_not`.
class SymbolFinder {
 public:
  SymbolFinder(void* library, const char* file, std::string& why_not)
      : library_(library), file_(file), why_not_(why_not) {}
  template <typename Function>
  void operator()(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(::dlsym(library_, name));
    if (function == nullptr) why_not_ = std::string(file_) + " has no " + name;
  }

 private:
  void* const library_;
  const char* const file_;
  std::string& why_not_;
};

}  // namespace penstock
