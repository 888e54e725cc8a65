// SPDX-License-Identifier: Apache-2.0
#include "cli/deployment_file.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/key.h"
#include "base/status.h"
#include "cli/member_service.h"
#include "cli/model_store.h"
#include "engine/memory_plan.h"
#include "launch/schema.h"

namespace penstock::cli {
namespace {

bool Opens(const launch::Deployment& deployment, std::size_t host, std::size_t model) {
  const bool gateway =
      deployment.gateway_inside()
          ? deployment.coordinator_host == host
          : std::any_of(deployment.gateways.begin(), deployment.gateways.end(),
                        [host](const launch::Gateway& one) { return one.host == host; });
  return gateway || std::any_of(deployment.workers.begin(), deployment.workers.end(),
                                [&](const launch::Worker& worker) {
                                  return worker.host == host && worker.model == model;
                                });
}

}  // namespace

absl::StatusOr<launch::Deployment> ReadDeploymentFile(const std::string& path) {
  // One more than is allowed, so that a longer file is a fault like the others.
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, launch::kYamlBytesMax + 1));
  ASSIGN_OR_RETURN(launch::Deployment deployment, launch::ParseDeployment(text, path));
  const auto make_absolute = [&](std::string& file) {
    std::error_code ignored;
    if (file.empty()) return;
    const std::filesystem::path beside = std::filesystem::path(path).parent_path() / file;
    file = std::filesystem::absolute(beside, ignored).lexically_normal().string();
  };
  make_absolute(deployment.secret_file);
  for (launch::StoreNode& store : deployment.stores) {
    make_absolute(store.disk);
    make_absolute(store.remote_password_file);
    for (launch::TenantQuota& tenant : store.tenants) make_absolute(tenant.salt_file);
  }
  return deployment;
}

absl::StatusOr<std::size_t> ChooseHost(const launch::Deployment& deployment,
                                       const std::string& name) {
  std::vector<std::string> names;
  for (const launch::Host& host : deployment.hosts) names.push_back(host.name);
  if (name.empty()) {
    if (names.size() == 1) return 0;
    return absl::InvalidArgumentError(absl::StrCat(
        "the file names ", names.size(),
        " hosts; say with --host which of them this is: ", absl::StrJoin(names, ", ")));
  }
  const auto at = std::find(names.begin(), names.end(), name);
  if (at != names.end()) return static_cast<std::size_t>(at - names.begin());
  return absl::InvalidArgumentError(absl::StrCat("--host ", name, " is not in the file; there are ",
                                                 absl::StrJoin(names, ", "),
                                                 launch::DidYouMean(name, names)));
}

absl::StatusOr<std::string> ResolveModel(const launch::Deployment& deployment,
                                         const std::string& file, std::size_t model) {
  const std::string& path = deployment.models[model].path;
  const std::filesystem::path beside = std::filesystem::path(file).parent_path() / path;
  std::error_code error;
  if (std::filesystem::exists(beside, error)) {
    return std::filesystem::absolute(beside, error).string();
  }
  return ResolveModel(path);
}

absl::StatusOr<std::map<std::string, std::string>> ResolveModels(
    const launch::Deployment& deployment, const std::string& file, std::size_t host) {
  std::map<std::string, std::string> paths;
  std::string faults;
  for (std::size_t i = 0; i < deployment.models.size(); ++i) {
    const launch::Model& model = deployment.models[i];
    if (!Opens(deployment, host, i)) continue;
    absl::StatusOr<std::string> path = ResolveModel(deployment, file, i);
    if (path.ok()) {
      paths[model.name] = *std::move(path);
    } else {
      absl::StrAppend(&faults, faults.empty() ? "" : "\n", file, ":", model.at.line, ":",
                      model.at.column, ": ", path.status().message());
    }
  }
  if (!faults.empty()) return absl::NotFoundError(faults);
  return paths;
}

absl::StatusOr<std::uint32_t> ReadTenant(std::string_view flag, const std::string& file) {
  ASSIGN_OR_RETURN(std::string salt, ReadPrivateFile(flag, file, 1));
  // As editors leave it.
  while (salt.ends_with('\n')) salt.pop_back();
  RETURN_IF_ERROR(CheckRange(absl::StrCat("bytes of the salt in ", file),
                             static_cast<std::int64_t>(salt.size()), 1, 64));
  return TenantOf(salt);
}

absl::StatusOr<std::map<std::string, std::uint32_t>> ReadTenants(
    const launch::Deployment& deployment, std::size_t host) {
  std::map<std::string, std::uint32_t> tenants;
  std::map<std::uint32_t, std::string> files;
  for (const launch::StoreNode& store : deployment.stores) {
    if (store.host != host) continue;
    for (const launch::TenantQuota& tenant : store.tenants) {
      const std::string& file = tenant.salt_file;
      if (file.empty() || tenants.contains(file)) continue;
      ASSIGN_OR_RETURN(tenants[file], ReadTenant("salt_file", file));
      const auto [twin, is_new] = files.emplace(tenants[file], file);
      if (is_new) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("the salts in ", twin->second, " and ", file,
                       " have one number, so one limit: give one of the tenants another salt"));
    }
  }
  return tenants;
}

void UseDevice(const ModelFlags& flags, launch::Deployment& deployment,
               launch::CommandOptions& commands) {
  commands.worker_arguments = DeviceArguments(flags);
  if (flags.device == "cpu") return;
  for (launch::Worker& worker : deployment.workers) {
    worker.device = flags.device;
    worker.any_gpus = flags.device == "cuda";
  }
}

std::uint64_t DefaultStoreBytes() {
  return std::min<std::uint64_t>(std::uint64_t{1} << 30, engine::AvailableBytes() / 2);
}

}  // namespace penstock::cli
