// SPDX-License-Identifier: Apache-2.0
// A deployment file as commands use it: read, and set against this machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "cli/flags.h"
#include "launch/commands.h"
#include "launch/deployment.h"

namespace penstock::cli {

// As ParseDeployment, and what reading a file can say. Its `secret_file`, and of store nodes `disk`,
// password and salt files, are absolute: what was relative was so to the file's folder.
absl::StatusOr<launch::Deployment> ReadDeploymentFile(const std::string& path);

// The host that --host names; without it the only one. INVALID_ARGUMENT lists those there are.
absl::StatusOr<std::size_t> ChooseHost(const launch::Deployment& deployment,
                                       const std::string& name);

// Where a model is, by its index: relative to the deployment file's folder where something is
// there, else as --model takes it. NOT_FOUND says how to get it.
absl::StatusOr<std::string> ResolveModel(const launch::Deployment& deployment,
                                         const std::string& file, std::size_t model);

// The same for all that processes of `host` open, by their names. NOT_FOUND lists all that are
// missing, with their places in the file.
absl::StatusOr<std::map<std::string, std::string>> ResolveModels(
    const launch::Deployment& deployment, const std::string& file, std::size_t host);

// The number (TenantOf) of the tenant whose salt is in `file`, which `flag` names; as
// ReadPrivateFile, of 1 to 64 bytes without the newlines at its end.
absl::StatusOr<std::uint32_t> ReadTenant(std::string_view flag, const std::string& file);

// Those of all tenants that store nodes of `host` have a limit for, by their salt files.
// INVALID_ARGUMENT: two have one number.
absl::StatusOr<std::map<std::string, std::uint32_t>> ReadTenants(
    const launch::Deployment& deployment, std::size_t host);

// What --device says, over what the file says of all its workers; "cpu", the default, says nothing.
// The flags beside it are for all workers.
void UseDevice(const ModelFlags& flags, launch::Deployment& deployment,
               launch::CommandOptions& commands);

// Host memory of a store node that is not told how much: 1 GiB, or half of what is free now where that
// is less.
std::uint64_t DefaultStoreBytes();

}  // namespace penstock::cli
