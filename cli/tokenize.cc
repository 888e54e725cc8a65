// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/inference_client.h"
#include "cli/prompt.h"
#include "cli/terminal.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

struct TokenizeFlags {
  ModelFlags model;
  std::optional<std::string> text;
  std::optional<std::string> file;
  bool json = false;
  bool pieces = false;
  bool no_special = false;
  bool no_bos = false;
};

// In quotes, one line, with what no terminal should get escaped.
std::string Quoted(const std::string& piece) {
  return nlohmann::json(piece).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<int> Tokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text, flags.file, "the text"));
  std::vector<TokenId> tokens;
  std::vector<std::string> pieces;
  if (!flags.model.server.empty()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<InferenceClient> client,
                     InferenceClient::Open(flags.model.server, flags.model.model));
    ASSIGN_OR_RETURN(InferenceClient::Tokens found,
                     client->Tokenize(text, !flags.no_special, flags.no_bos, flags.pieces));
    tokens = std::move(found.ids);
    pieces = std::move(found.pieces);
  } else {
    ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, OpenModel(flags.model));
    const model::Tokenizer& tokenizer = model->tokenizer();
    tokens = tokenizer.Encode(
        text,
        {.parse_special = !flags.no_special, .add_bos = !flags.no_bos, .add_eos = !flags.no_bos});
    if (flags.pieces) {
      for (const TokenId token : tokens) pieces.push_back(tokenizer.Piece(token, /*special=*/true));
    }
  }
  if (flags.json) {
    nlohmann::ordered_json object = {{"tokens", tokens}};
    if (flags.pieces) object["pieces"] = pieces;
    WriteStdout(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  } else if (flags.pieces) {
    std::string lines;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      absl::StrAppendFormat(&lines, "%7d  %s\n", tokens[i], Quoted(pieces[i]));
    }
    WriteStdout(lines);
  } else {
    WriteStdout(absl::StrJoin(tokens, " ") + "\n");
  }
  return kExitOk;
}

}  // namespace

void RegisterTokenize(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* tokenize = app.add_subcommand("tokenize", "Show the tokens of a text");
  tokenize->add_option("TEXT", flags->text, "The text; without it, --file or standard input");
  tokenize->add_option("-f,--file", flags->file,
                       "Read the text from a file, \"-\" is standard input");
  tokenize->add_flag("--json", flags->json, "Print {\"tokens\": [ids]}");
  tokenize->add_flag("--pieces", flags->pieces, "Show what each token stands for");
  tokenize->add_flag("--no-special", flags->no_special,
                     "Take names of control tokens, such as <|im_end|>, as plain text");
  tokenize->add_flag("--no-bos", flags->no_bos,
                     "Leave out what the model wants around a text: a beginning-of-text token, and "
                     "for some an end-of-text token");
  AddModelFlag(*tokenize, flags->model);
  AddServerFlag(*tokenize, flags->model);
  tokenize->footer(
      "Examples:\n"
      "  penstock tokenize --pieces \"Hello, world!\"\n"
      "  penstock tokenize --json --file book.txt | jq '.tokens | length'\n\n"
      "Prompts of penstock generate never get an end-of-text token, even where this shows one.");
  tokenize->callback([flags, &run] { run = [flags] { return Tokenize(*flags); }; });
}

}  // namespace penstock::cli
