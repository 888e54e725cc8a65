// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_standin_machine.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "device/standin_words.h"

namespace penstock::cuda_standin {
namespace {

// Whoever plants what is not there would test nothing.
[[noreturn]] void Refuse(std::string_view word) {
  std::fprintf(stderr, "PENSTOCK_CUDA_MACHINE: there is no '%.*s'\n", static_cast<int>(word.size()),
               word.data());
  std::abort();
}

int NumberOf(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0) Refuse(text);
  return number;
}

}  // namespace

Machine MachineOfEnvironment() {
  Machine machine;
  ForEachWord("PENSTOCK_CUDA_MACHINE", [&](std::string_view word) {
    const std::size_t equals = std::min(word.find('='), word.size());
    const std::string_view name = word.substr(0, equals);
    const std::string_view value = word.substr(std::min(equals + 1, word.size()));
    if (name == "devices") {
      machine.devices = NumberOf(value);
    } else if (name == "unlike") {
      machine.unlike = true;
    } else if (name == "faults") {
      machine.faults = value;
    } else {
      Refuse(word);
    }
  });
  return machine;
}

int TakePlantedFault(const Machine& machine, const std::string& name) {
  if (machine.faults.empty()) return 0;
  const std::string path = machine.faults + "/" + name;
  std::ifstream file(path);
  int error = 0;
  if (!(file >> error)) return 0;
  return ::unlink(path.c_str()) == 0 ? error : 0;  // Else another process has it.
}

}  // namespace penstock::cuda_standin
