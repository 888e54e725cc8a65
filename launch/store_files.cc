// SPDX-License-Identifier: Apache-2.0
#include "launch/store_files.h"

#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace penstock::launch {
namespace {

absl::Status CannotMake(std::string_view path, int error) {
  return absl::UnavailableError(
      absl::StrCat("cannot make ", ToAbsl(path), ": ", std::strerror(error)));
}

// Whole from the moment it has its name, and never instead of one that is there.
absl::Status MakeSecret(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) return absl::OkStatus();
  std::array<char, 32> random;
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    return CannotMake(path, errno);
  }
  const std::string text = absl::BytesToHexString({random.data(), random.size()});
  std::string part = path + ".XXXXXX";
  const UniqueFd file(::mkstemp(part.data()));  // For this user alone.
  if (!file) return CannotMake(path, errno);
  int error = 0;
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      (::link(part.c_str(), path.c_str()) != 0 && errno != EEXIST)) {
    error = errno;
  }
  ::unlink(part.c_str());
  return error == 0 ? absl::OkStatus() : CannotMake(path, error);
}

}  // namespace

std::string DiskOf(const StoreNode& store) {
  return store.disk.empty() ? std::string() : absl::StrCat(store.disk, "/", store.name);
}

std::string SecretFile(const Deployment& deployment, std::size_t host, std::string_view folder) {
  if (deployment.stores.empty()) return "";
  if (!deployment.secret_file.empty()) return deployment.secret_file;
  for (const StoreNode& store : deployment.stores) {
    if (store.host == host && !store.disk.empty()) return absl::StrCat(store.disk, "/secret");
  }
  return absl::StrCat(ToAbsl(folder), "/secret");
}

absl::Status MakeStoreFiles(const Deployment& deployment, std::size_t host,
                            std::string_view folder) {
  for (const StoreNode& store : deployment.stores) {
    if (store.host != host || store.disk.empty()) continue;
    std::error_code error;
    std::filesystem::create_directories(store.disk, error);
    if (error) return CannotMake(store.disk, error.value());
  }
  if (deployment.stores.empty() || !deployment.secret_file.empty()) return absl::OkStatus();
  return MakeSecret(SecretFile(deployment, host, folder));
}

}  // namespace penstock::launch
