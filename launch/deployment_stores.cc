// SPDX-License-Identifier: Apache-2.0
#include "launch/deployment_stores.h"

#include <optional>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/kl_bounds.h"
#include "base/status.h"
#include "launch/schema.h"
#include "launch/values.h"

namespace penstock::launch {
namespace {

constexpr std::int64_t kPerHostMax = 16;
constexpr std::size_t kGroupsMax = 256;
constexpr std::size_t kStoresMax = 256;
constexpr std::size_t kTenantsMax = 1024;
constexpr std::int64_t kDiskBytesMin = std::int64_t{5} << 26;  // A node's log has five segments.

class Reader {
 public:
  Reader(const std::function<std::size_t(const std::string&, Mark)>& find_host,
         const std::vector<Worker>& workers, Faults& faults)
      : find_host_(find_host), faults_(faults) {
    for (const Worker& worker : workers) {
      worker_hosts_.insert(worker.host);
      int8_ = int8_ || worker.kv_dtype == "int8";
    }
  }

  void ReadGroup(const YamlNode& node, Mark at, std::optional<std::int64_t> given) {
    const SectionReader reader(Section::kStore, node, faults_);
    const std::int64_t count = given ? *given : *reader.Count("count");
    StoreNode store = {.host_bytes = reader.Bytes("host_bytes").value_or(0),
                       .disk = reader.Text("disk").value_or(""),
                       .disk_bytes = *reader.Bytes("disk_bytes"),
                       .policy = *reader.Text("policy"),
                       .write = *reader.Text("write"),
                       .admit = *reader.Text("admit"),
                       .remote = reader.Text("remote").value_or(""),
                       .remote_user = reader.Text("remote_user").value_or(""),
                       .remote_password_file = reader.Text("remote_password_file").value_or(""),
                       .remote_write = *reader.Text("remote_write"),
                       .at = at};
    for (const char* key : {"disk_bytes", "write"}) {
      if (reader.Has(key) && !reader.Has("disk")) {
        faults_.Add(reader.MarkOf(key), absl::StrCat(key, " is of disk, which is not here"));
      }
    }
    for (const char* key : {"remote_user", "remote_password_file", "remote_write"}) {
      if (reader.Has(key) && !reader.Has("remote")) {
        faults_.Add(reader.MarkOf(key), absl::StrCat(key, " is of remote, which is not here"));
      }
    }
    if (store.disk_bytes < kDiskBytesMin) {
      faults_.Add(
          reader.MarkOf("disk_bytes"),
          absl::StrCat("disk_bytes must be at least 320MiB, got ", store.disk_bytes, " bytes"));
    }
    store.tenants = ReadTenants(reader);
    std::set<std::size_t> hosts = worker_hosts_;
    if (const auto host = reader.Text("host")) hosts = {find_host_(*host, reader.MarkOf("host"))};
    const std::size_t nodes = result_.nodes.size() + hosts.size() * static_cast<std::size_t>(count);
    if (nodes > kStoresMax) {
      return faults_.Add(at, absl::StrCat("a deployment has at most ", kStoresMax,
                                          " store nodes, with this group it has ", nodes));
    }
    for (const std::size_t host : hosts) {
      for (std::int64_t i = 0; i < count; ++i) {
        store.name = absl::StrCat(ToAbsl(ToString(Role::kStore)), "-", result_.nodes.size() + 1);
        store.host = host;
        result_.nodes.push_back(store);
      }
    }
    ReadCopies(reader, at);
    KeepAlike(at, "worker_write", *reader.Text("worker_write"), result_.worker_write);
  }

  StoreGroups Take() { return std::move(result_); }

 private:
  std::vector<TenantQuota> ReadTenants(const SectionReader& group) {
    std::vector<TenantQuota> tenants;
    const YamlNode* const list = group.Find("tenants");
    if (list == nullptr) return tenants;
    if (list->kind != YamlNode::Kind::kList || list->items.empty() ||
        list->items.size() > kTenantsMax) {
      faults_.Add(list->at, absl::StrCat("tenants must be a list of 1 to ", kTenantsMax,
                                         ", each with salt_file and bytes"));
      return tenants;
    }
    std::set<std::string> files;
    for (const YamlNode& node : list->items) {
      const SectionReader reader(Section::kTenant, node, faults_);
      const std::optional<std::int64_t> bytes = reader.Bytes("bytes");
      if (!reader.Has("bytes")) faults_.Add(node.at, "a tenant needs bytes, its limit");
      const std::string file = reader.Text("salt_file").value_or("");
      if (!files.insert(file).second) {
        faults_.Add(node.at, file.empty() ? "two tenants have no salt_file"
                                          : absl::StrCat("two tenants have the salt_file ", file));
      }
      tenants.push_back({.salt_file = file, .bytes = bytes.value_or(0)});
    }
    return tenants;
  }

  // As what copies workers keep blocks. Each key is read once: a fault of it is said once.
  void ReadCopies(const SectionReader& reader, Mark at) {
    const std::string codec = *reader.Text("codec");
    const std::string lossy = *reader.Text("lossy");
    const std::string max_kl = *reader.Text("max_kl");
    KeepAlike(at, "codec", codec, result_.codec);
    KeepAlike(at, "lossy", lossy, result_.lossy);
    KeepAlike(at, "max_kl", max_kl, result_.max_kl);
    double kl = 0;
    if (!absl::SimpleAtod(max_kl, &kl) || !(kl >= 0 && kl <= kKl2Max)) {
      faults_.Add(reader.MarkOf("max_kl"), absl::StrCat("max_kl must be a number from 0 to ",
                                                        kKl2Max, ", got ", Quoted(max_kl)));
    } else if (lossy != "none" && kl == 0) {
      faults_.Add(reader.MarkOf("lossy"),
                  absl::StrCat("lossy: ", lossy, " needs max_kl, such as 0.005"));
    }
    if (int8_ && codec != "raw" && codec != "auto") {
      faults_.Add(reader.MarkOf("codec"),
                  absl::StrCat("codec: workers with kv_dtype int8 take raw, got ", codec));
    }
    if (int8_ && lossy != "none") {
      faults_.Add(reader.MarkOf("lossy"),
                  absl::StrCat("lossy: workers with kv_dtype int8 take none, got ", lossy));
    }
    if (codec == "none" && lossy == "none") {
      faults_.Add(reader.MarkOf("codec"),
                  "codec: none needs a lossy codec beside it, or nothing is kept");
    }
  }

  // Workers know one of each.
  void KeepAlike(Mark at, const char* key, const std::string& value, std::string& all) {
    if (all.empty()) all = value;
    if (all == value) return;
    faults_.Add(at, absl::StrCat("all groups of kvstore need one ", key, "; the first has ", all,
                                 ", this one has ", value));
  }

  const std::function<std::size_t(const std::string&, Mark)>& find_host_;
  Faults& faults_;
  std::set<std::size_t> worker_hosts_;
  bool int8_ = false;  // Some worker's KV.
  StoreGroups result_;
};

}  // namespace

StoreGroups ReadStoreGroups(const YamlNode* node,
                            const std::function<std::size_t(const std::string&, Mark)>& find_host,
                            const std::vector<Worker>& workers, Faults& faults) {
  static const YamlNode kNone;
  if (node == nullptr) return {};
  Reader reader(find_host, workers, faults);
  if (node->kind == YamlNode::Kind::kMap) {
    reader.ReadGroup(*node, node->at, std::nullopt);
  } else if (node->kind == YamlNode::Kind::kScalar) {
    const absl::StatusOr<std::int64_t> count = ParseCount(node->text, 0, kPerHostMax);
    if (!count.ok()) faults.Add(node->at, absl::StrCat("kvstore ", count.status().message()));
    if (count.value_or(0) > 0) reader.ReadGroup(kNone, node->at, *count);
  } else if (node->items.empty() || node->items.size() > kGroupsMax) {
    faults.Add(node->at, absl::StrCat("kvstore must have 1 to ", kGroupsMax, " groups, got ",
                                      node->items.size()));
  } else {
    for (const YamlNode& group : node->items) reader.ReadGroup(group, group.at, std::nullopt);
  }
  return reader.Take();
}

}  // namespace penstock::launch
