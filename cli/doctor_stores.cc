// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_stores.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/epoll_loop.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/deployment_file.h"
#include "cli/member_service.h"
#include "cli/terminal.h"
#include "engine/memory_plan.h"
#include "kvstore/disk/uring_disk.h"

namespace penstock::cli {
namespace {

namespace fs = std::filesystem;

// The nearest folder above, or at, `path` that is there.
fs::path Nearest(fs::path path) {
  std::error_code ignored;
  while (!fs::exists(path, ignored) && path.has_parent_path() && path != path.parent_path()) {
    path = path.parent_path();
  }
  return path;
}

// Opens a disk as a node would, in a folder of its own that is gone afterwards.
absl::Status TryDisk(const fs::path& above, bool& direct) {
  std::string folder = (above / "penstock-doctor-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot make ", folder, ": ", std::strerror(errno)));
  }
  const auto try_it = [&]() -> absl::Status {
    const UniqueFd file(
        ::open((folder + "/direct").c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_DIRECT, 0600));
    direct = static_cast<bool>(file);
    ASSIGN_OR_RETURN(const std::unique_ptr<EpollLoop> loop, EpollLoop::Make("doctor"));
    absl::Status status;
    loop->Run([&] { status = kvstore::OpenUringDisk(*loop, {.directory = folder}).status(); });
    return status;
  };
  const absl::Status status = try_it();
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  return status;
}

// The directory of a group, which `nodes` of this host share.
void CheckDisk(const std::string& disk, std::uint64_t bytes, std::size_t nodes,
               DoctorReport& report) {
  const fs::path above = Nearest(disk);
  bool direct = false;
  if (const absl::Status tried = TryDisk(above, direct); !tried.ok()) {
    return report.Fault("disk ", disk, ": ", tried.message(),
                        absl::IsUnimplemented(tried)
                            ? "; leave disk out, or let processes use io_uring (sysctl "
                              "kernel.io_uring_disabled, seccomp, ulimit -l)"
                            : "; choose another directory");
  }
  struct statvfs space = {};
  if (::statvfs(above.c_str(), &space) != 0) {
    return report.Fault("disk ", disk, ": ", std::strerror(errno));
  }
  // What is there already counts as free: the nodes will use it.
  std::uint64_t free = std::uint64_t{space.f_bavail} * space.f_frsize;
  std::error_code ignored;
  for (auto file = fs::recursive_directory_iterator(disk, ignored);
       file != fs::recursive_directory_iterator(); file.increment(ignored)) {
    if (file->is_regular_file(ignored)) free += file->file_size(ignored);
  }
  const std::string numbers =
      absl::StrCat("disk ", disk, ": ", nodes, nodes == 1 ? " node takes " : " nodes take ",
                   FormatBytes(bytes), " at most, ", FormatBytes(free), " are free");
  if (bytes > free) {
    report.Fault(numbers, "; give a smaller disk_bytes");
  } else if (!direct) {
    report.Warning(numbers, "; the file system has no O_DIRECT, so the page cache keeps it twice");
  } else {
    report.Ok(numbers, "; io_uring and O_DIRECT work");
  }
}

// Copies with a loss need a record of each model; whose weights it is of the worker sees, which has
// loaded them.
void CheckRecords(const launch::Deployment& deployment, const std::string& file,
                  DoctorReport& report) {
  for (const launch::Worker& worker : deployment.workers) {
    const launch::Model& model = deployment.models[worker.model];
    const absl::StatusOr<std::string> path = ResolveModel(deployment, file, worker.model);
    if (!path.ok()) continue;  // Said with the models.
    const std::string end = absl::StrCat("-", worker.kv_dtype, ".json");
    std::error_code ignored;
    const auto is_record = [&](const fs::directory_entry& entry) {
      const std::string name = entry.path().filename().string();
      return name.starts_with("quality-") && name.ends_with(end);
    };
    const fs::directory_iterator files(fs::path(*path).parent_path(), ignored);
    if (std::any_of(fs::begin(files), fs::end(files), is_record)) continue;
    return report.Fault("copies by ", deployment.store_lossy, " need the quality record of model ",
                        model.name, " with ", worker.kv_dtype, " KV; `penstock quality ", *path,
                        "` writes it");
  }
  report.Ok("there are quality records beside the models, for copies by ", deployment.store_lossy);
}

const RunningStore* FindStore(const std::optional<RunningCluster>& cluster,
                              const std::string& name) {
  if (!cluster.has_value()) return nullptr;
  const auto at = std::find_if(cluster->stores.begin(), cluster->stores.end(),
                               [&](const RunningStore& one) { return one.name == name; });
  return at == cluster->stores.end() ? nullptr : &*at;
}

}  // namespace

void CheckStores(const launch::Deployment& deployment, const std::string& file, std::size_t host,
                 const std::optional<RunningCluster>& cluster, DoctorReport& report) {
  struct Disk {
    std::uint64_t bytes = 0;
    std::size_t nodes = 0;
  };
  std::map<std::string, Disk> disks;
  std::uint64_t memory = 0;
  std::size_t waiting = 0;
  for (const launch::StoreNode& store : deployment.stores) {
    if (store.host != host) continue;
    if (!store.disk.empty()) {
      Disk& disk = disks[store.disk];
      disk.bytes += static_cast<std::uint64_t>(store.disk_bytes);
      ++disk.nodes;
    }
    if (FindStore(cluster, store.name) != nullptr) continue;  // It has its memory.
    ++waiting;
    memory +=
        store.host_bytes != 0 ? static_cast<std::uint64_t>(store.host_bytes) : DefaultStoreBytes();
  }
  if (!deployment.stores.empty() && !deployment.secret_file.empty()) {
    const absl::Status secret = ReadSecret(deployment.secret_file).status();
    if (secret.ok()) {
      report.Ok("secret_file ", deployment.secret_file, " is there, for this user alone");
    } else {
      report.Fault(secret.message());
    }
  }
  if (!deployment.stores.empty() && deployment.store_lossy != "none") {
    CheckRecords(deployment, file, report);
  }
  if (const auto tenants = ReadTenants(deployment, host); !tenants.ok()) {
    report.Fault(tenants.status().message());
  } else if (!tenants->empty()) {
    report.Ok("salt files of tenants are there, for this user alone: ", tenants->size());
  }
  if (waiting > 0) {
    const std::uint64_t available = engine::AvailableBytes();
    const std::string numbers =
        absl::StrCat("store nodes need ", FormatBytes(memory), " of memory, ",
                     FormatBytes(available), " are free, for workers too");
    if (memory > available) {
      report.Fault(numbers, "; give a smaller host_bytes");
    } else {
      report.Ok(numbers);
    }
  }
  for (const auto& [directory, disk] : disks) {
    CheckDisk(directory, disk.bytes, disk.nodes, report);
  }
}

void ReportStores(const launch::Deployment& deployment,
                  const std::optional<RunningCluster>& cluster, DoctorReport& report) {
  if (!cluster.has_value()) return;
  for (const launch::StoreNode& store : deployment.stores) {
    const RunningStore* const running = FindStore(cluster, store.name);
    if (running == nullptr || running->state != "ready") {
      report.Warning(store.name,
                     running == nullptr ? " has not joined" : absl::StrCat(" is ", running->state),
                     "; see to penstock up on host ", deployment.hosts[store.host].name);
      continue;
    }
    for (const RunningStore::Tier& tier : running->tiers) {
      report.Ok("store ", store.name, ", ", tier.name, ": ", tier.copies, " copies, ",
                FormatBytes(tier.bytes), " of ", FormatBytes(tier.bytes_max), ", ", tier.hits,
                " hits");
    }
  }
}

}  // namespace penstock::cli
