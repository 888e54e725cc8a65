// SPDX-License-Identifier: Apache-2.0
#include "worker/prompt_imports.h"

#include <algorithm>
#include <utility>

namespace penstock::worker {

using kvstore::Fetcher;

PromptImports::~PromptImports() {
  for (auto& [key, prompt] : prompts_) loop_.CancelTimer(prompt.timer);
}

void PromptImports::Begin(Key key, BlockImporter::ImportOrder order, Events events) {
  std::erase_if(order.sources, [&](const Fetcher::Source& source) {
    return source.end_block > static_cast<std::int32_t>(order.chains.size());
  });
  Prompt& prompt = prompts_[key];
  prompt.events = std::move(events);
  prompt.begun = loop_.Now();
  if (importer_ == nullptr || order.sources.empty()) {
    prompt.timer = loop_.At(prompt.begun, [this, key] { OnImported(key, {}); });
    return;
  }
  prompt.end_block = order.sources.back().end_block;
  for (const Fetcher::Source& source : order.sources) {
    prompt.pace.fetch += ToSeconds(source.fetch_time);
    prompt.pace.compute += ToSeconds(source.within);
  }
  order.backwards = !import_first_;
  order.map = !prompt.pace.beside();
  prompt.importing = true;
  prompt.import = importer_->Import(
      std::move(order),
      [this, key](const BlockImporter::Imported& imported) { OnImported(key, imported); });
  if (import_first_) return;
  prompt.timer =
      loop_.At(prompt.begun + FromSeconds(prompt.pace.head_start()), [this, key] { Compute(key); });
}

void PromptImports::Compute(Key key) {
  Prompt& prompt = prompts_.at(key);
  prompt.computing = true;
  // A copy: it may end the prompt.
  const auto compute = prompt.events.compute;
  compute();
}

// At the speed at which blocks came so far; or that of none, where it is slower than predicted.
engine::Coming PromptImports::coming(Key key) const {
  const auto it = prompts_.find(key);
  if (it == prompts_.end() || !it->second.importing) return {};
  const Prompt& prompt = it->second;
  const BlockImporter::Progress progress = importer_->progress(prompt.import);
  const double passed = ToSeconds(loop_.Now() - prompt.begun);
  FetchPace pace = prompt.pace;
  pace.fetch =
      progress.there > 0 ? passed * progress.all / progress.there : std::max(pace.fetch, passed);
  return {.end_block = prompt.end_block, .share = pace.share()};
}

void PromptImports::Reached(Key key, std::int32_t block) {
  const auto it = prompts_.find(key);
  if (it == prompts_.end() || !it->second.importing) return;
  importer_->Want(it->second.import, block);
  const auto changed = it->second.events.changed;
  changed();
}

void PromptImports::OnImported(Key key, const BlockImporter::Imported& imported) {
  const auto it = prompts_.find(key);
  if (it == prompts_.end()) return;  // The prompt is over.
  Prompt& prompt = it->second;
  prompt.importing = false;
  prompt.mapped = imported.mapped;
  loop_.CancelTimer(prompt.timer);
  const Events events = prompt.events;
  const bool computing = prompt.computing;
  events.done(imported);
  // What cannot be had is computed, with the rest.
  if (computing) return events.changed();
  if (prompts_.contains(key)) Compute(key);
}

void PromptImports::End(Key key) {
  const auto it = prompts_.find(key);
  if (it == prompts_.end()) return;
  const Prompt over = std::move(it->second);
  prompts_.erase(it);
  loop_.CancelTimer(over.timer);
  if (over.importing) importer_->Cancel(over.import);
}

}  // namespace penstock::worker
