// SPDX-License-Identifier: Apache-2.0
// A quality record for people: a table, and a picture of loss against bytes. Pure functions; any
// thread.
#pragma once

#include <string>
#include <string_view>

#include "kvstore/quality_record.h"

namespace penstock::cli {

std::string QualityText(std::string_view model_name, const kvstore::QualityRecord& record);
// SVG. Codecs without a loss stand on the lower edge; a line joins those that none beats in both
// bytes and loss.
std::string QualitySvg(std::string_view model_name, const kvstore::QualityRecord& record);

}  // namespace penstock::cli
