// SPDX-License-Identifier: Apache-2.0
#include "launch/deployment.h"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "launch/deployment_devices.h"
#include "launch/deployment_stores.h"
#include "launch/schema.h"
#include "launch/values.h"

namespace penstock::launch {
namespace {

constexpr std::size_t kModelsMax = 64;
constexpr std::size_t kHostsMax = 256;
constexpr std::size_t kGroupsMax = 256;
constexpr std::size_t kWorkersMax = 1024;
constexpr std::size_t kAddressesMax = 15;  // With the coordinator 16: what --coordinator takes.

template <typename T>
std::vector<std::string> NamesOf(const std::vector<T>& all) {
  std::vector<std::string> names;
  for (const T& one : all) names.push_back(one.name);
  return names;
}

// Reads the file in the order in which its parts refer to each other.
class Reader {
 public:
  Reader(const YamlNode& root, Faults& faults)
      : root_(root), faults_(faults), top_(Section::kTop, root, faults) {}

  Deployment Read() {
    ReadHosts();
    ReadModels();
    result_.policy = top_.Text("policy").value_or("");
    result_.transfer = top_.Words("transfer");
    if (std::ranges::find_if(result_.transfer, [](const auto& kind) { return kind != "nccl"; }) ==
        result_.transfer.end()) {
      Fault(top_.MarkOf("transfer"),
            "transfer has nccl alone: name shm, ucx or tcp, too, by which blocks come from stores, "
            "and where two GPUs cannot reach each other");
    }
    ReadBlockTokens();
    ReadWorkers(Role::kPrefill, "prefill");
    ReadWorkers(Role::kDecode, "decode");
    ReadStores();
    ReadSlo();
    ReadEtcd();
    if (const auto host = top_.Text("coordinator_host")) {
      result_.coordinator_host = FindHost(*host, top_.MarkOf("coordinator_host"));
    }
    ReadGateways();
    CheckModels();
    return std::move(result_);
  }

 private:
  template <typename... Parts>
  void Fault(Mark at, const Parts&... parts) {
    faults_.Add(at, absl::StrCat(parts...));
  }

  void ReadBlockTokens() {
    result_.block_tokens = *top_.Count("block_tokens");
    if (!std::has_single_bit(static_cast<std::uint64_t>(result_.block_tokens))) {
      Fault(top_.MarkOf("block_tokens"), "block_tokens must be a power of two, got ",
            result_.block_tokens);
    }
  }

  void ReadHosts() {
    const YamlNode* const hosts = top_.Find("hosts");
    if (hosts == nullptr || hosts->kind != YamlNode::Kind::kMap || hosts->keys.empty()) {
      if (hosts != nullptr)
        Fault(hosts->at, "hosts must be names with addresses, such as \"a: 10.0.0.1\"");
      result_.hosts = {{.name = "local", .address = "127.0.0.1"}};
      return;
    }
    if (hosts->keys.size() > kHostsMax) {
      Fault(hosts->at, "at most ", kHostsMax, " hosts, got ", hosts->keys.size());
    }
    for (std::size_t i = 0; i < std::min(hosts->keys.size(), kHostsMax); ++i) {
      const YamlNode &key = hosts->keys[i], &value = hosts->items[i];
      if (!IsName(key.text)) {
        Fault(key.at, "a host must be ", ToAbsl(kNameWanted), ", got ", Quoted(key.text));
      }
      if (value.kind != YamlNode::Kind::kScalar || !IsNumericAddress(value.text)) {
        Fault(value.at, "an address must be numeric, such as 10.0.0.1 or fd00::1, got ",
              value.kind == YamlNode::Kind::kScalar ? Quoted(value.text)
                                                    : std::string(ToString(value.kind)));
      }
      result_.hosts.push_back({.name = key.text, .address = value.text});
    }
  }

  std::size_t FindHost(const std::string& name, Mark at) {
    for (std::size_t i = 0; i < result_.hosts.size(); ++i) {
      if (result_.hosts[i].name == name) return i;
    }
    const std::vector<std::string> known = NamesOf(result_.hosts);
    Fault(at, "no host ", Quoted(name), "; there are ", absl::StrJoin(known, ", "),
          DidYouMean(name, known));
    return 0;
  }

  void ReadModels() {
    const YamlNode* const models = top_.Find("models");
    if (top_.Has("model") && models != nullptr) {
      return Fault(models->at, "model and models are both here; one of them is wanted");
    }
    if (const auto path = top_.Text("model")) {
      result_.models = {{.name = ModelName(*path), .path = *path, .at = top_.MarkOf("model")}};
      return;
    }
    if (top_.Has("model")) return;  // And it is wrong.
    if (models == nullptr)
      return Fault(root_.at, "model is missing: a file, a folder or a name, such as smollm2");
    if (models->kind != YamlNode::Kind::kList || models->items.empty() ||
        models->items.size() > kModelsMax) {
      return Fault(models->at, "models must be a list of 1 to ", kModelsMax, " models, got ",
                   models->kind == YamlNode::Kind::kList ? absl::StrCat(models->items.size())
                                                         : std::string(ToString(models->kind)));
    }
    for (const YamlNode& item : models->items) ReadModel(item);
  }

  void ReadModel(const YamlNode& node) {
    const SectionReader reader(Section::kModel, node, faults_);
    for (const char* key : {"name", "path"}) {
      if (node.kind == YamlNode::Kind::kMap && !reader.Has(key))
        Fault(node.at, "this model's ", key, " is missing");
    }
    Model model = {.name = reader.Text("name").value_or(""),
                   .path = reader.Text("path").value_or(""),
                   .at = node.at};
    for (const Model& other : result_.models) {
      if (!model.name.empty() && other.name == model.name) {
        Fault(reader.MarkOf("name"), "the model ", Quoted(model.name),
              " is here for the second time; the first is in line ", other.at.line);
      }
    }
    result_.models.push_back(std::move(model));
  }

  void ReadWorkers(Role role, const char* key) {
    static const YamlNode kNone;
    const YamlNode* const node = top_.Find(key);
    if (node == nullptr) return ReadGroup(role, kNone, root_.at);
    if (node->kind == YamlNode::Kind::kMap) return ReadGroup(role, *node, node->at);
    if (node->kind == YamlNode::Kind::kScalar) {
      const int least = role == Role::kPrefill ? 0 : 1;
      const absl::StatusOr<std::int64_t> count = ParseCount(node->text, least, 256);
      without_prefill_ |= count.ok() && *count == 0;
      if (!count.ok()) return Fault(node->at, key, " ", count.status().message());
      return ReadGroup(role, kNone, node->at, *count);
    }
    if (node->items.empty() || node->items.size() > kGroupsMax) {
      return Fault(node->at, key, " must have 1 to ", kGroupsMax, " groups, got ",
                   node->items.size());
    }
    for (const YamlNode& group : node->items) ReadGroup(role, group, group.at);
  }

  void ReadGroup(Role role, const YamlNode& node, Mark at, std::optional<std::int64_t> given = {}) {
    const SectionReader reader(Section::kWorkers, node, faults_);
    const std::int64_t count = given ? *given : *reader.Count("count");
    Worker worker = {.role = role, .at = at};
    if (const auto host = reader.Text("host")) worker.host = FindHost(*host, reader.MarkOf("host"));
    worker.threads = static_cast<int>(reader.Count("threads").value_or(0));
    worker.kv_bytes = reader.Bytes("kv_bytes").value_or(0);
    worker.kv_dtype = *reader.Text("kv_dtype");
    worker.numerics = *reader.Text("numerics");
    worker.device = *reader.Text("device");
    worker.any_gpus = worker.device == "cuda";
    worker.pp = *reader.Count("pp");
    worker.tp = *reader.Count("tp");
    worker.tp_sum = reader.Count("tp_sum").value_or(worker.tp);
    CheckShards(reader, worker, faults_);
    worker.page_tokens = reader.Count("page_tokens").value_or(0);
    if (worker.page_tokens != 0 && result_.block_tokens % worker.page_tokens != 0) {
      Fault(reader.MarkOf("page_tokens"),
            "page_tokens must be a divisor of block_tokens, which is ", result_.block_tokens,
            ", got ", worker.page_tokens);
    }
    worker.context_tokens = reader.Count("context_tokens").value_or(0);
    worker.chunk_tokens = *reader.Count("chunk_tokens");
    worker.sequences = *reader.Count("sequences");
    std::vector<std::size_t> models = ModelsOf(reader);
    const std::vector<int> cpus = reader.Cpus("cpus");
    const std::size_t workers = static_cast<std::size_t>(count) * models.size();
    CheckCpus(reader, cpus, workers);
    const std::vector<std::string> devices = DevicesOf(reader, worker, workers, faults_);
    if (result_.workers.size() + workers > kWorkersMax) {
      return Fault(at, "a deployment has at most ", kWorkersMax,
                   " workers, with this group it has ", result_.workers.size() + workers);
    }
    const std::size_t share = workers == 0 ? 0 : cpus.size() / workers;
    std::size_t next = 0;
    for (const std::size_t model : models) {
      for (std::int64_t i = 0; i < count; ++i, ++next) {
        worker.name = absl::StrCat(ToAbsl(ToString(role)), "-", ++numbers_[role]);
        worker.model = model;
        const auto first = cpus.begin() + static_cast<std::ptrdiff_t>(next * share);
        worker.cpus.assign(first, first + static_cast<std::ptrdiff_t>(share));
        worker.device = devices[next];
        result_.workers.push_back(worker);
      }
    }
  }

  std::vector<std::size_t> ModelsOf(const SectionReader& reader) {
    std::vector<std::size_t> all;
    const std::optional<std::string> name = reader.Text("model");
    for (std::size_t i = 0; i < result_.models.size(); ++i) {
      if (!name || result_.models[i].name == *name) all.push_back(i);
    }
    if (all.empty() && !result_.models.empty()) {
      const std::vector<std::string> known = NamesOf(result_.models);
      Fault(reader.MarkOf("model"), "no model ", Quoted(*name), "; there are ",
            absl::StrJoin(known, ", "), DidYouMean(*name, known));
    }
    return all;
  }

  void CheckCpus(const SectionReader& reader, const std::vector<int>& cpus, std::size_t workers) {
    if (cpus.empty()) return;
    if (reader.Has("threads")) {
      Fault(reader.MarkOf("threads"), "threads and cpus are both here; cpus gives each a thread");
    }
    if (workers != 0 && cpus.size() % workers != 0) {
      Fault(reader.MarkOf("cpus"), cpus.size(), " CPUs do not divide evenly among ", workers,
            " workers");
    }
  }

  void ReadStores() {
    const StoreGroups groups = ReadStoreGroups(
        top_.Find("kvstore"),
        [this](const std::string& name, Mark at) { return FindHost(name, at); }, result_.workers,
        faults_);
    result_.stores = groups.nodes;
    result_.store_codec = groups.codec;
    result_.store_lossy = groups.lossy;
    result_.store_max_kl = groups.max_kl;
    result_.store_write = groups.worker_write;
    result_.secret_file = top_.Text("secret_file").value_or("");
    std::set<std::size_t> hosts;
    for (const StoreNode& node : result_.stores) hosts.insert(node.host);
    for (const Worker& worker : result_.workers) hosts.insert(worker.host);
    if (result_.stores.empty() || top_.Has("secret_file")) return;
    for (const StoreNode& node : result_.stores) {
      if (node.remote.empty()) continue;
      return Fault(node.at, "remote needs secret_file: it says what there is this cluster's");
    }
    if (hosts.size() < 2) return;
    Fault(top_.MarkOf("kvstore"), "with workers and store nodes on ", hosts.size(),
          " hosts kvstore needs secret_file, a file with the same random bytes on each, so that "
          "nodes take no frames of strangers: `(umask 077; head -c 32 /dev/urandom > FILE)`, then "
          "copy it");
  }

  void ReadSlo() {
    static const YamlNode kNone;
    const YamlNode* const node = top_.Find("slo");
    const SectionReader reader(Section::kSlo, node == nullptr ? kNone : *node, faults_);
    result_.slo_ttft = reader.Time("ttft").value_or(Duration{});
    result_.slo_tpot = reader.Time("tpot").value_or(Duration{});
  }

  void ReadEtcd() {
    result_.etcd_prefix = *top_.Text("etcd_prefix");
    result_.etcd = ReadAddresses("etcd");
    result_.standby = ReadAddresses("standby");
    if (!result_.standby.empty() && !top_.Has("etcd")) {
      Fault(top_.MarkOf("standby"),
            "standby needs etcd: without it several coordinators would lead");
    }
  }

  // One, or a list.
  std::vector<std::string> ReadAddresses(const char* key) {
    const YamlNode* const node = top_.Find(key);
    if (node == nullptr) return {};
    std::vector<const YamlNode*> items = {node};
    if (node->kind == YamlNode::Kind::kList) {
      items.clear();
      for (const YamlNode& item : node->items) items.push_back(&item);
    }
    std::vector<std::string> addresses;
    if (items.empty() || items.size() > kAddressesMax) {
      Fault(node->at, key, " must have 1 to ", kAddressesMax, " addresses, got ", items.size());
      return addresses;
    }
    for (const YamlNode* item : items) {
      const std::string& text = item->text;
      const std::size_t colon = text.rfind(':');
      const bool good = item->kind == YamlNode::Kind::kScalar && colon != std::string::npos &&
                        colon > 0 && text.find_first_of(" ,/") == std::string::npos &&
                        ParseCount(text.substr(colon + 1), 1, 65535).ok();
      if (!good) {
        Fault(item->at, key, " must be HOST:PORT, such as 10.0.0.1:2379, got ",
              item->kind == YamlNode::Kind::kScalar ? Quoted(text)
                                                    : std::string(ToString(item->kind)));
      }
      addresses.push_back(text);
    }
    return addresses;
  }

  void ReadGateways() {
    static const YamlNode kNone;
    const YamlNode* const ports_node = top_.Find("ports");
    const SectionReader ports(Section::kPorts, ports_node == nullptr ? kNone : *ports_node,
                              faults_);
    const std::int64_t grpc = *ports.Count("grpc"), http = *ports.Count("http");
    const std::int64_t coordinator = *ports.Count("coordinator");
    result_.metrics_port = static_cast<std::uint16_t>(*ports.Count("metrics"));
    const YamlNode* const node = top_.Find("gateway");
    const bool inside =
        node == nullptr || (node->kind == YamlNode::Kind::kScalar && node->text == "inside");
    result_.coordinator_port = static_cast<std::uint16_t>(inside ? grpc : coordinator);
    if (inside) {
      result_.http_port = static_cast<std::uint16_t>(http);
      if (coordinator != 0) {
        Fault(ports.MarkOf("coordinator"),
              "with the gateway inside the coordinator there is one gRPC port: ports.grpc");
      }
    } else {
      ReadGateways(*node, grpc, http);
    }
    CheckPorts(inside ? "grpc" : "coordinator");
  }

  void ReadGateways(const YamlNode& node, std::int64_t grpc, std::int64_t http) {
    static const YamlNode kNone;
    std::vector<const YamlNode*> groups;
    std::int64_t given = 0;
    if (node.kind == YamlNode::Kind::kScalar) {
      const absl::StatusOr<std::int64_t> count = ParseCount(node.text, 1, 256);
      if (!count.ok()) {
        return Fault(node.at, "gateway must be inside, a count from 1 to 256, or keys, got ",
                     Quoted(node.text), DidYouMean(node.text, {"inside"}));
      }
      given = *count;
      groups = {&kNone};
    } else if (node.kind == YamlNode::Kind::kMap) {
      groups = {&node};
    } else {
      for (const YamlNode& group : node.items) groups.push_back(&group);
    }
    if (groups.empty() || groups.size() > kGroupsMax) {
      return Fault(node.at, "gateway must have 1 to ", kGroupsMax, " groups, got ", groups.size());
    }
    for (const YamlNode* group : groups) {
      const SectionReader reader(Section::kGateway, *group, faults_);
      const auto host = reader.Text("host");
      const std::size_t index =
          host ? FindHost(*host, reader.MarkOf("host")) : result_.coordinator_host;
      const std::int64_t count = given != 0 ? given : *reader.Count("count");
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t nth = gateways_of_host_[index]++;
        const auto port = [&](const char* key, std::int64_t first) {
          if (first == 0) return std::uint16_t{0};
          if (first + nth > 65535) {
            Fault(node.at, "gateway ", nth + 1, " of a host would have the ", key, " port ",
                  first + nth, ", above 65535");
          }
          return static_cast<std::uint16_t>(std::min<std::int64_t>(first + nth, 65535));
        };
        result_.gateways.push_back({.name = absl::StrCat("gateway-", result_.gateways.size() + 1),
                                    .host = index,
                                    .grpc_port = port("grpc", grpc),
                                    .http_port = port("http", http),
                                    .at = node.at});
      }
    }
  }

  // Nobody can take a port twice, nor guess one on another host.
  void CheckPorts(const char* coordinators) {
    if (result_.hosts.size() > 1 && result_.coordinator_port == 0) {
      Fault(top_.MarkOf("ports"), "with ", result_.hosts.size(),
            " hosts the others must know the coordinator's port: ports.", coordinators,
            " must be given");
    }
    std::map<std::pair<std::size_t, std::uint16_t>, std::string> taken;
    const auto take = [&](std::size_t host, std::uint16_t port, std::string what) {
      if (port == 0) return;
      const auto [at, is_new] = taken.emplace(std::pair(host, port), what);
      if (!is_new) {
        Fault(top_.MarkOf("ports"), "port ", port, " of host ", result_.hosts[host].name,
              " is given to ", at->second, " and to ", what);
      }
    };
    take(result_.coordinator_host, result_.coordinator_port, "the coordinator");
    take(result_.coordinator_host, result_.http_port, "HTTP");
    take(result_.coordinator_host, result_.metrics_port, "metrics");
    for (const Gateway& gateway : result_.gateways) {
      take(gateway.host, gateway.grpc_port, gateway.name);
      take(gateway.host, gateway.http_port, absl::StrCat(gateway.name, "'s HTTP"));
    }
  }

  void CheckAlike(const Worker& first, const Worker& worker, const char* key,
                  const std::string& firsts, const std::string& workers) {
    if (firsts == workers) return;
    Fault(worker.at, "all workers of the model ", result_.models[worker.model].name, " need one ",
          key, "; ", first.name, " has ", firsts, ", ", worker.name, " has ", workers);
  }

  // What spans several groups.
  void CheckModels() {
    const bool tcp = std::ranges::find(result_.transfer, "tcp") != result_.transfer.end();
    for (std::size_t m = 0; m < result_.models.size(); ++m) {
      std::map<Role, int> counts;
      std::set<std::size_t> hosts;
      const Worker* first = nullptr;
      for (const Worker& worker : result_.workers) {
        if (worker.model != m) continue;
        ++counts[worker.role];
        hosts.insert(worker.host);
        if (first == nullptr) first = &worker;
        CheckAlike(*first, worker, "kv_dtype", first->kv_dtype, worker.kv_dtype);
        CheckAlike(*first, worker, "numerics", first->numerics, worker.numerics);
        CheckAlike(*first, worker, "tp_sum", absl::StrCat(first->tp_sum),
                   absl::StrCat(worker.tp_sum));
        if (first->device != "paced" && worker.device != "paced") continue;  // The same bits.
        CheckAlike(*first, worker, "device", first->device, worker.device);
      }
      const bool prefills = without_prefill_ || counts[Role::kPrefill] > 0;
      if (faults_.empty() && (!prefills || counts[Role::kDecode] == 0)) {
        Fault(result_.models[m].at, "the model ", result_.models[m].name, " has ",
              counts[Role::kPrefill], " prefill and ", counts[Role::kDecode],
              " decode workers; it needs one of each at least");
      }
      if (hosts.size() > 1 && !tcp) {
        Fault(top_.MarkOf("transfer"), "workers of the model ", result_.models[m].name, " are on ",
              hosts.size(), " hosts, and shm works within one: transfer needs tcp");
      }
    }
  }

  const YamlNode& root_;
  Faults& faults_;
  const SectionReader top_;
  Deployment result_;
  std::map<Role, int> numbers_;
  bool without_prefill_ = false;  // On purpose.
  std::map<std::size_t, std::int64_t> gateways_of_host_;
};

}  // namespace

std::string_view ToString(Role role) {
  switch (role) {
    case Role::kCoordinator:
      return "coordinator";
    case Role::kGateway:
      return "gateway";
    case Role::kPrefill:
      return "prefill";
    case Role::kDecode:
      return "decode";
    case Role::kStore:
      return "kvstore";
  }
  return "";
}

std::optional<std::string> Deployment::CoordinatorAddress() const {
  if (coordinator_port == 0) return std::nullopt;
  return JoinAddress(hosts[coordinator_host].address, coordinator_port);
}

absl::StatusOr<Deployment> ParseDeployment(std::string_view text, std::string_view file) {
  Faults faults;
  const std::optional<YamlNode> root = ParseYaml(text, faults);
  Deployment deployment;
  if (root.has_value()) deployment = Reader(*root, faults).Read();
  if (!faults.empty()) return absl::InvalidArgumentError(faults.ToString(file));
  return deployment;
}

std::string JoinAddress(std::string_view address, std::uint16_t port) {
  const bool v6 = address.find(':') != std::string_view::npos;
  return absl::StrCat(v6 ? "[" : "", ToAbsl(address), v6 ? "]" : "", ":", port);
}

}  // namespace penstock::launch
