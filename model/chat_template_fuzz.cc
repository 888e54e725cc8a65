// SPDX-License-Identifier: Apache-2.0
// A template, a NUL, and the JSON of its variables: compiling and rendering must end in text or in
// a status, the same one twice.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "model/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using penstock::model::ChatTemplate;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  const auto made = ChatTemplate::Compile(input.substr(0, end));
  if (!made.ok()) return 0;
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();
  // Deeper JSON than this is refused before it gets here, and its own destructor recurses.
  constexpr int kDepthMax = 100;
  if (end != std::string_view::npos) {
    const auto shallow = [](int depth, nlohmann::ordered_json::parse_event_t,
                            nlohmann::ordered_json&) { return depth < kDepthMax; };
    nlohmann::ordered_json parsed =
        nlohmann::ordered_json::parse(input.substr(end + 1), shallow, /*allow_exceptions=*/false);
    if (parsed.is_object()) variables = std::move(parsed);
  }
  const auto text = (*made)->Render(variables);
  const auto again = (*made)->Render(variables);
  CHECK(text.ok() == again.ok());
  if (text.ok()) CHECK(*text == *again);
  return 0;
}
