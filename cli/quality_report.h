// SPDX-License-Identifier: Apache-2.0
// A quality record for people: a table, and a picture of loss against bytes. Pure functions; any
// thread.
#pragma once

#include <string>
#include <string_view>

#include "engine/divergence.h"
#include "kvstore/quality_record.h"

namespace penstock::cli {

std::string QualityText(std::string_view model_name, const kvstore::QualityRecord& record);
// What the record's KV type itself costs.
std::string AgainstF16Text(const kvstore::QualityRecord& record,
                           const engine::DivergenceSummary& against_f16);
// SVG. Codecs without a loss stand on the lower edge; a line joins those that none beats in both
// bytes and loss.
std::string QualitySvg(std::string_view model_name, const kvstore::QualityRecord& record);

}  // namespace penstock::cli
