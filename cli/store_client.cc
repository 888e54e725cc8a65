// SPDX-License-Identifier: Apache-2.0
// penstock store: what operators ask of a cluster's store nodes.
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/deployment_file.h"
#include "cli/flags.h"
#include "cli/prompt.h"
#include "cli/store_nodes_client.h"
#include "cli/store_text_client.h"
#include "cli/terminal.h"
#include "cli/text_table.h"
#include "model/chat_prompt.h"
#include "nlohmann/json.hpp"
#include "rpc/convert.h"

namespace penstock::cli {
namespace {

using nlohmann::ordered_json;

struct StoreFlags {
  std::string server;
  std::string node;
  bool json = false;
  // Which copies.
  std::vector<std::string> names;
  std::optional<std::string> prompt_file;
  std::optional<std::string> system_file;
  ModelFlags model;
  std::string tenant;
  bool all = false;
  // Of ls.
  std::string tier;
  std::string prefix;
  bool pinned = false;
  std::uint64_t most = 0;
};

// ---- Which copies are meant.

// Those that a prompt begins with: of a conversation, what all that have this system prompt share.
absl::StatusOr<std::vector<TokenId>> TokensOf(const StoreFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, OpenModel(flags.model));
  if (flags.prompt_file.has_value()) {
    ASSIGN_OR_RETURN(const std::string text,
                     ReadText(std::nullopt, flags.prompt_file, "the prompt"));
    RETURN_IF_ERROR(CheckPrompt(text, "the prompt"));
    return model->tokenizer().Encode(text, {});
  }
  ASSIGN_OR_RETURN(const std::string text,
                   ReadText(std::nullopt, flags.system_file, "the system prompt"));
  RETURN_IF_ERROR(CheckPrompt(text, "the system prompt"));
  ASSIGN_OR_RETURN(const model::ChatTemplate* chat_template, model->chat_template());
  std::vector<TokenId> tokens[2];
  for (const int i : {0, 1}) {
    ASSIGN_OR_RETURN(
        tokens[i], model::EncodeChat(model->tokenizer(), *chat_template,
                                     {{"system", text}, {"user", i == 0 ? "a" : "0"}}, CivilNow()));
  }
  const auto end = std::ranges::mismatch(tokens[0], tokens[1]).in1;
  tokens[0].erase(end, tokens[0].end());
  return std::move(tokens[0]);
}

absl::StatusOr<std::string> ChainsOfPrompt(const StoreFlags& flags, const StoreNodes& cluster) {
  if (cluster.block_tokens.empty()) {
    return absl::FailedPreconditionError(
        "the cluster has no model yet, so how long its blocks are is not known");
  }
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, TokensOf(flags));
  std::string bytes;
  for (const std::int32_t block_tokens : cluster.block_tokens) {
    bytes += rpc::ChainsToProto(
        ChainsOf(tokens, flags.tenant, static_cast<std::uint32_t>(block_tokens)));
  }
  if (!bytes.empty()) return bytes;
  return absl::InvalidArgumentError(
      absl::StrCat("the prompt has ", tokens.size(), " tokens, fewer than a block: ",
                   cluster.block_tokens.back(), "; whole blocks alone are kept"));
}

// By node: names of 16 bytes each.
using Chosen = std::map<std::string, std::string>;

absl::Status ChooseNamed(StoreNodes& cluster, const std::string& prefix, Chosen& chosen) {
  std::set<std::string> names;
  std::vector<std::pair<std::string, std::string>> found;
  for (StoreNode& node : cluster.nodes) {
    v1::ListRequest request;
    request.set_prefix(prefix);
    request.set_most(3);
    RETURN_IF_ERROR(node.List(request, [&](const v1::ListResponse::Copy& copy) {
      names.insert(copy.name());
      found.emplace_back(node.name(), copy.name());
    }));
  }
  if (names.empty()) {
    return absl::NotFoundError(absl::StrCat("no copy has a name that begins with ", prefix));
  }
  if (names.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("several names begin with ", prefix,
                                                   ", such as ", HexName(*names.begin()), " and ",
                                                   HexName(*names.rbegin())));
  }
  for (const auto& [node, name] : found) chosen[node] += name;
  return absl::OkStatus();
}

absl::StatusOr<Chosen> Choose(const StoreFlags& flags, StoreNodes& cluster) {
  const bool by_prompt = flags.prompt_file.has_value() || flags.system_file.has_value();
  if (flags.names.empty() == !by_prompt) {
    return absl::InvalidArgumentError(
        "name copies, or a prompt by --prompt-file or --system-file: one of these");
  }
  Chosen chosen;
  for (const std::string& name : flags.names) RETURN_IF_ERROR(ChooseNamed(cluster, name, chosen));
  if (!by_prompt) return chosen;
  v1::ListRequest request;
  ASSIGN_OR_RETURN(*request.mutable_chains(), ChainsOfPrompt(flags, cluster));
  for (StoreNode& node : cluster.nodes) {
    RETURN_IF_ERROR(node.List(
        request, [&](const v1::ListResponse::Copy& copy) { chosen[node.name()] += copy.name(); }));
  }
  if (chosen.empty()) return absl::NotFoundError("no node has a block of this prompt");
  return chosen;
}

// ---- Commands. A node that fails does not keep others from being asked.

template <typename Ask>
absl::StatusOr<int> ForEachNode(const StoreFlags& flags, const Ask& ask) {
  ASSIGN_OR_RETURN(StoreNodes cluster, FindStoreNodes(flags.server, flags.node));
  absl::Status status;
  for (StoreNode& node : cluster.nodes) status.Update(ask(node));
  RETURN_IF_ERROR(status);
  return kExitOk;
}

std::string Line(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

absl::StatusOr<int> RunStat(const StoreFlags& flags) {
  bool first = true;
  return ForEachNode(flags, [&](StoreNode& node) -> absl::Status {
    ASSIGN_OR_RETURN(const v1::StatResponse stat, node.Stat());
    if (!flags.json && !std::exchange(first, false)) WriteStdout("\n");
    WriteStdout(flags.json ? Line(StatJson(stat)) : StatText(stat));
    return absl::OkStatus();
  });
}

absl::StatusOr<int> RunList(const StoreFlags& flags) {
  v1::ListRequest request;
  request.set_pinned(flags.pinned);
  request.set_most(flags.most);
  request.set_prefix(flags.prefix);
  if (flags.tier == "host") request.set_tier(v1::TIER_HOST);
  if (flags.tier == "disk") request.set_tier(v1::TIER_DISK);
  if (flags.tier == "remote") request.set_tier(v1::TIER_REMOTE);
  if (flags.prompt_file.has_value() || flags.system_file.has_value()) {
    ASSIGN_OR_RETURN(const StoreNodes cluster, FindStoreNodes(flags.server, flags.node));
    ASSIGN_OR_RETURN(*request.mutable_chains(), ChainsOfPrompt(flags, cluster));
  }
  // Not before something was heard: where nobody answers, that is all there is to say.
  bool head = !flags.json;
  const auto write_head = [&] {
    if (std::exchange(head, false)) WriteStdout(CopyTextHead());
  };
  std::uint64_t copies = 0, bytes = 0;
  ASSIGN_OR_RETURN(
      const int code, ForEachNode(flags, [&](StoreNode& node) {
        return node.List(request, [&](const v1::ListResponse::Copy& copy) {
          write_head();
          ++copies;
          bytes += copy.bytes();
          WriteStdout(flags.json ? Line(CopyJson(node.name(), copy)) : CopyText(node.name(), copy));
        });
      }));
  if (!flags.json) {
    write_head();
    WriteStdout(absl::StrCat(copies, copies == 1 ? " copy, " : " copies, ",
                             FormatBinaryBytes(bytes), "\n"));
  }
  return code;
}

// pin, unpin, rm: what they did at each node.
template <typename Change>
absl::StatusOr<int> RunChange(const StoreFlags& flags, const char* done, const Change& change) {
  ASSIGN_OR_RETURN(StoreNodes cluster, FindStoreNodes(flags.server, flags.node));
  Chosen chosen;
  if (!flags.all) {
    ASSIGN_OR_RETURN(chosen, Choose(flags, cluster));
  }
  absl::Status status;
  for (StoreNode& node : cluster.nodes) {
    if (!flags.all && !chosen.contains(node.name())) continue;
    const absl::StatusOr<std::uint64_t> count = change(node, chosen[node.name()]);
    status.Update(count.status());
    if (!count.ok()) continue;
    WriteStdout(flags.json ? Line({{"node", node.name()}, {done, *count}})
                           : absl::StrCat(node.name(), ": ", *count,
                                          *count == 1 ? " copy " : " copies ", done, "\n"));
  }
  RETURN_IF_ERROR(status);
  return kExitOk;
}

absl::StatusOr<int> RunPin(const StoreFlags& flags) {
  return RunChange(flags, "pinned", [](StoreNode& node, const std::string& names) {
    return node.Pin(names, /*unpin=*/false);
  });
}

absl::StatusOr<int> RunUnpin(const StoreFlags& flags) {
  return RunChange(flags, "unpinned", [](StoreNode& node, const std::string& names) {
    return node.Pin(names, /*unpin=*/true);
  });
}

absl::StatusOr<int> RunRemove(const StoreFlags& flags) {
  const bool chosen =
      !flags.names.empty() || flags.prompt_file.has_value() || flags.system_file.has_value();
  if (flags.all && chosen) {
    return absl::InvalidArgumentError("--all is all: name no copies beside it");
  }
  return RunChange(flags, "removed", [&](StoreNode& node, const std::string& names) {
    return flags.all ? node.DeleteAll() : node.Delete(names);
  });
}

absl::StatusOr<int> RunFlush(const StoreFlags& flags) {
  return ForEachNode(flags, [&](StoreNode& node) -> absl::Status {
    ASSIGN_OR_RETURN(const std::uint64_t bytes, node.Flush());
    WriteStdout(flags.json ? Line({{"node", node.name()}, {"bytes", bytes}})
                           : absl::StrCat(node.name(), ": ", FormatBinaryBytes(bytes),
                                          " of host memory let go of\n"));
    return absl::OkStatus();
  });
}

absl::StatusOr<int> RunVerify(const StoreFlags& flags) {
  std::uint64_t damaged = 0;
  ASSIGN_OR_RETURN(
      const int code, ForEachNode(flags, [&](StoreNode& node) -> absl::Status {
        ProgressLine progress;
        ASSIGN_OR_RETURN(
            const v1::VerifyResponse sum, node.Verify([&](const v1::VerifyResponse& so_far) {
              progress.Update("checking " + node.name(), so_far.copies(), so_far.copies_max());
            }));
        progress.Clear();
        damaged += sum.damaged();
        WriteStdout(flags.json ? Line(VerifyJson(node.name(), sum)) : VerifyText(node.name(), sum));
        return absl::OkStatus();
      }));
  return damaged > 0 ? kExitFailed : code;
}

// ---- Flags.

void AddPromptFlags(CLI::App& sub, const std::shared_ptr<StoreFlags>& flags) {
  CLI::Option* const prompt = sub.add_option(
      "--prompt-file", flags->prompt_file,
      "Copies of the blocks that this prompt begins with, \"-\" is standard input; needs --model");
  sub.add_option("--system-file", flags->system_file,
                 "Copies of the blocks that chats with this system prompt begin with; likewise")
      ->excludes(prompt);
  AddModelFlag(sub, flags->model);
  sub.add_option("--tenant", flags->tenant, "Whose prompt it is, as requests have it");
}

CLI::App* Add(CLI::App& store, Run& run, const char* name, const char* what,
              const std::shared_ptr<StoreFlags>& flags,
              absl::StatusOr<int> (*command)(const StoreFlags&)) {
  CLI::App* const sub = store.add_subcommand(name, what);
  sub->add_option("--server", flags->server, "Address of the coordinator, HOST:PORT")->required();
  sub->add_option("--node", flags->node, "This store node alone");
  sub->add_flag("--json", flags->json, "As JSON, an object a line");
  sub->callback([flags, command, &run] { run = [flags, command] { return command(*flags); }; });
  return sub;
}

void AddChange(CLI::App& store, Run& run, const char* name, const char* what,
               absl::StatusOr<int> (*command)(const StoreFlags&)) {
  const auto flags = std::make_shared<StoreFlags>();
  CLI::App* const sub = Add(store, run, name, what, flags, command);
  sub->add_option("NAME", flags->names,
                  "Copies, by name or as many of its first digits as no other has");
  AddPromptFlags(*sub, flags);
  if (std::string_view(name) == "rm") sub->add_flag("--all", flags->all, "Every copy");
  if (std::string_view(name) == "pin") {
    sub->footer(
        "Pins last as long as the node runs. What is pinned before it was computed is not there "
        "yet.\n"
        "Examples:\n"
        "  penstock store pin --server 127.0.0.1:7070 3fa9c1\n"
        "  penstock store pin --server 127.0.0.1:7070 --model smollm2 --system-file system.txt");
  }
}

}  // namespace

void RegisterStore(CLI::App& app, Run& run) {
  CLI::App* const store =
      app.add_subcommand("store", "Looks after the KV blocks that a cluster's store nodes keep");
  store->require_subcommand(1);
  const auto make = [] { return std::make_shared<StoreFlags>(); };
  Add(*store, run, "stat", "How full the tiers are, and how often they had what was asked for",
      make(), RunStat);
  const auto list = make();
  CLI::App* const ls = Add(*store, run, "ls", "Lists copies, by name", list, RunList);
  ls->add_option("--tier", list->tier, "Those in this tier alone")
      ->check(CLI::IsMember({"host", "disk", "remote"}));
  ls->add_flag("--pinned", list->pinned, "Those that are pinned alone");
  ls->add_option("--prefix", list->prefix, "Those whose names begin with these hex digits");
  ls->add_option("--most", list->most, "Of each node, at most; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  AddPromptFlags(*ls, list);
  AddChange(*store, run, "pin", "Keeps copies in memory and on disk, whatever else comes", RunPin);
  AddChange(*store, run, "unpin", "Lets eviction have them again", RunUnpin);
  AddChange(*store, run, "rm", "Removes copies from all tiers, for good", RunRemove);
  Add(*store, run, "flush", "Empties host memory: copies go to the tier below, where there is one",
      make(), RunFlush);
  Add(*store, run, "verify", "Reads every copy and drops what is damaged; fails if any was", make(),
      RunVerify);
  const auto salt_file = std::make_shared<std::string>();
  CLI::App* const tenant = store->add_subcommand(
      "tenant",
      "Prints the number of a tenant, by which nodes know it: see penstock kvstore --quota");
  tenant->add_option("SALT_FILE", *salt_file, "With its salt, for this user alone")->required();
  tenant->callback([salt_file, &run] {
    run = [salt_file]() -> absl::StatusOr<int> {
      ASSIGN_OR_RETURN(const std::uint32_t number, ReadTenant("SALT_FILE", *salt_file));
      WriteStdout(absl::StrFormat("%08x\n", number));
      return kExitOk;
    };
  });
  store->footer(
      "A copy is a block of KV in one encoding; its name is what the cluster's index has of it.\n"
      "Examples:\n"
      "  penstock store stat --server 127.0.0.1:7070\n"
      "  penstock store ls --server 127.0.0.1:7070 --tier disk --most 20\n"
      "  penstock store pin --server 127.0.0.1:7070 --model smollm2 --system-file system.txt\n"
      "  penstock store verify --server 127.0.0.1:7070 --node store-1");
}

}  // namespace penstock::cli
