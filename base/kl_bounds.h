// SPDX-License-Identifier: Apache-2.0
// The bounds of loss classes (base/loss_class.h): the largest mean KL divergence to the full cache, in
// nats, of what counts as of each.
#pragma once

namespace penstock {

inline constexpr double kKl3Max = 0.005;
inline constexpr double kKl2Max = 0.05;

}  // namespace penstock
