// SPDX-License-Identifier: Apache-2.0
#include "engine/logit_rows.h"

#include "base/check.h"
#include "base/status.h"

namespace penstock::engine {

absl::StatusOr<std::unique_ptr<LogitRows>> LogitRows::Make(Device& device, kernels::Ops& ops,
                                                           const DeviceMemory& memory,
                                                           const float* logits,
                                                           std::int32_t rows_max,
                                                           std::int32_t vocab) {
  auto rows = std::unique_ptr<LogitRows>(new LogitRows(device, ops, logits, rows_max, vocab));
  if (!memory.host_visible()) {
    ASSIGN_OR_RETURN(rows->host_, device.AllocateHost(static_cast<std::size_t>(rows_max) *
                                                      rows->vocab_ * sizeof(float)));
  }
  return rows;
}

void LogitRows::Begin(std::int32_t rows, std::span<const TokenDraw> draws) {
  std::vector<bool> drawn_from(static_cast<std::size_t>(rows), false);
  std::vector<bool> needed(static_cast<std::size_t>(rows), false);
  made_on_device_.clear();
  device_draws_.clear();
  host_draws_.clear();
  for (std::size_t i = 0; i < draws.size(); ++i) {
    CHECK(draws[i].row >= 0 && draws[i].row < rows);
    const auto row = static_cast<std::size_t>(draws[i].row);
    drawn_from[row] = true;
    // A prompt's end may draw many answers' first tokens: beyond what is planned for, on the host.
    if (NeedsRow(*draws[i].params) || std::ssize(made_on_device_) >= rows_max_) {
      needed[row] = true;
      host_draws_.push_back(i);
    } else {
      made_on_device_.push_back(ToRowDraw(draws[i]));
      device_draws_.push_back(i);
    }
  }
  on_host_.clear();
  for (std::size_t row = 0; row < drawn_from.size(); ++row) {
    on_host_.push_back(needed[row] || !drawn_from[row]);
  }
}

void LogitRows::Draw() {
  drawn_ = {};
  if (made_on_device_.empty()) return;
  drawn_ = ops_.Draw(logits_, static_cast<std::int32_t>(vocab_), made_on_device_);
}

// Those that lie one after another go at once.
void LogitRows::CopyRows() {
  if (host_ == nullptr) return;
  for (std::size_t begin = 0; begin < on_host_.size();) {
    std::size_t end = begin;
    while (end < on_host_.size() && on_host_[end]) ++end;
    if (end > begin) {
      ops_.stream().Copy(host_->data() + begin * vocab_ * sizeof(float),
                         reinterpret_cast<const std::byte*>(logits_ + begin * vocab_),
                         (end - begin) * vocab_ * sizeof(float));
    }
    begin = end + 1;
  }
}

void LogitRows::Finish(std::span<TokenDraw> draws) {
  for (std::size_t i = 0; i < device_draws_.size(); ++i) {
    TokenDraw& draw = draws[device_draws_[i]];
    draw.sampled = ToSampled(drawn_[i], *draw.params);
  }
  device_.ForEachOnHost(std::ssize(host_draws_), [&](std::int64_t i) {
    TokenDraw& draw = draws[host_draws_[static_cast<std::size_t>(i)]];
    SampleToken(row(draw.row), draw);
  });
}

std::span<const float> LogitRows::row(std::int32_t i) const {
  CHECK(i >= 0 && static_cast<std::size_t>(i) < on_host_.size());
  CHECK(on_host_[static_cast<std::size_t>(i)]);
  const float* const all =
      host_ == nullptr ? logits_ : reinterpret_cast<const float*>(host_->data());
  return {all + static_cast<std::size_t>(i) * vocab_, vocab_};
}

}  // namespace penstock::engine
