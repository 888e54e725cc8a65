// SPDX-License-Identifier: Apache-2.0
#include "device/gpu_group.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"

namespace penstock {
namespace {

constexpr Duration kAskAgain = std::chrono::milliseconds(10);

}  // namespace

GpuGroup::GpuGroup(std::span<CudaDevice* const> gpus, OnGpuFailed on_failed, Duration patience)
    : on_failed_(on_failed), patience_(patience) {
  for (CudaDevice* const gpu : gpus) {
    const std::size_t i = members_.size();
    members_.push_back({.gpu = gpu, .doing = {}});
    gpu->TellOfFailures(
        [this, i](std::string_view doing, int error) { CallFailed(i, doing, error); });
  }
}

GpuGroup::~GpuGroup() {
  for (const Member& member : members_) member.gpu->TellOfFailures({});
}

void GpuGroup::CallFailed(std::size_t i, std::string_view doing, int error) {
  if (on_failed_ == nullptr) return;
  std::unique_lock lock(mutex_);
  Member& member = members_[i];
  if (member.said == kCudaSuccess) {
    member.said = error;
    member.doing = doing;
  }
  Tell(lock);
}

void GpuGroup::ExchangeFailed(const absl::Status& why) {
  if (on_failed_ == nullptr) return;
  std::unique_lock lock(mutex_);
  if (exchange_.ok()) exchange_ = why;
  Tell(lock);
}

void GpuGroup::Tell(std::unique_lock<std::mutex>& lock) {
  changed_.notify_all();
  if (std::exchange(asking_, true)) {
    changed_.wait_for(lock, 2 * patience_, [this] { return told_; });
    return;
  }
  lock.unlock();
  const std::vector<std::jthread> asked =
      AskAll();  // They may hang: none is joined before the end.
  lock.lock();
  changed_.wait_for(lock, patience_, [this] { return Known(); });
  const std::string text = Text();
  over_ = true;
  changed_.notify_all();
  lock.unlock();
  on_failed_(text);
  lock.lock();
  told_ = true;
  changed_.notify_all();
  lock.unlock();
}

std::vector<std::jthread> GpuGroup::AskAll() {
  std::vector<std::jthread> asked;
  try {
    for (Member& member : members_) asked.emplace_back([this, &member] { Ask(member); });
  } catch (const std::system_error&) {  // No thread is to be had: what is known has to do.
  }
  return asked;
}

void GpuGroup::Ask(Member& member) {
  for (;;) {
    const int error = member.gpu->Ask();
    std::unique_lock lock(mutex_);
    member.answered = true;
    member.error = error;
    changed_.notify_all();
    if (error != kCudaSuccess) return;
    if (changed_.wait_for(lock, kAskAgain, [this] { return over_; })) return;
  }
}

bool GpuGroup::Known() const {
  return std::ranges::all_of(members_, &Member::answered) &&
         std::ranges::any_of(members_, [](const Member& m) { return m.error != kCudaSuccess; });
}

std::string GpuGroup::Text() const {
  std::vector<const Member*> lost;
  const auto take = [&](auto is_lost) {
    if (!lost.empty()) return;
    for (const Member& member : members_) {
      if (is_lost(member)) lost.push_back(&member);
    }
  };
  take([](const Member& m) { return m.error != kCudaSuccess; });
  take([](const Member& m) { return m.said != kCudaSuccess; });
  if (!lost.empty()) return TextOf(lost);
  take([](const Member& m) { return !m.answered; });
  if (!lost.empty()) return SilentGpuText(lost.front()->gpu->named(), patience_);
  std::vector<std::string> names;
  for (const Member& member : members_) names.push_back(GpuText(member.gpu->named()));
  return PartedGpusText(ToStd(absl::StrJoin(names, " and ")), ToStd(exchange_.message()));
}

std::string GpuGroup::TextOf(const std::vector<const Member*>& lost) const {
  std::string also;
  for (const Member* const member : lost) {
    if (member == lost.front()) continue;
    const int error = member->said != kCudaSuccess ? member->said : member->error;
    absl::StrAppend(&also, "; so was ", GpuText(member->gpu->named()), ": ",
                    CudaErrorText(member->gpu->plugin(), error));
  }
  const Member& first = *lost.front();
  const bool said = first.said != kCudaSuccess;
  const int error = said ? first.said : first.error;
  return LostGpuText(first.gpu->named(), said ? first.doing : "computing with others", error,
                     CudaErrorText(first.gpu->plugin(), error)) +
         also;
}

}  // namespace penstock
