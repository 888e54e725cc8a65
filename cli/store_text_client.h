// SPDX-License-Identifier: Apache-2.0
// What store nodes answer, for people and as JSON.
#pragma once

#include <string>

#include "nlohmann/json.hpp"
#include "penstock/v1/store.pb.h"

namespace penstock::cli {

std::string HexName(const std::string& name);

std::string StatText(const v1::StatResponse& stat);
nlohmann::ordered_json StatJson(const v1::StatResponse& stat);

// Lines of `penstock store ls`: columns have fixed widths, so that copies can be shown as they come.
std::string CopyTextHead();
std::string CopyText(const std::string& node, const v1::ListResponse::Copy& copy);
nlohmann::ordered_json CopyJson(const std::string& node, const v1::ListResponse::Copy& copy);

std::string VerifyText(const std::string& node, const v1::VerifyResponse& sum);
nlohmann::ordered_json VerifyJson(const std::string& node, const v1::VerifyResponse& sum);

}  // namespace penstock::cli
