// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/suggest.h"
#include "base/time.h"
#include "cli/answer.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/line_reader.h"
#include "cli/prompt.h"
#include "cli/responder.h"
#include "cli/terminal.h"
#include "model/chat_prompt.h"

namespace penstock::cli {
namespace {

// Left free for the answer before old exchanges are forgotten.
constexpr std::int32_t kAnswerTokensMin = 128;

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string system;
};

constexpr const char* kHelp =
    "  /help         this list\n"
    "  /reset        forget the conversation (the system message stays)\n"
    "  /system TEXT  set the system message and start over; without TEXT, show it\n"
    "  /retry        answer the last message again, with another seed\n"
    "  /save FILE    write the conversation as JSON\n"
    "  /quit         leave; so do Ctrl-D, and Ctrl-C twice\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.\n";

class ChatSession {
 public:
  ChatSession(const ChatFlags& flags, Responder& responder, engine::SamplingParams sampling,
              InterruptWatch& interrupts)
      : responder_(responder),
        sampling_(std::move(sampling)),
        interrupts_(interrupts),
        reader_(interrupts),
        system_(flags.system) {}

  // Until the input ends. Whether every message got its answer.
  bool Run() {
    if (reader_.interactive()) {
      absl::FPrintF(stderr,
                    "%sType a message, or /help. Ctrl-C stops an answer, Ctrl-D leaves.%s\n",
                    ToAbsl(StderrStyle().dim), ToAbsl(StderrStyle().reset));
    }
    std::string line;
    for (bool interrupted = false; !leaving_;) {
      switch (ReadMessage(&line)) {
        case LineReader::Result::kEnd:
          return good_;
        case LineReader::Result::kInterrupted:
          if (interrupted || !reader_.interactive()) return good_;
          Note("Press Ctrl-C again to leave.");
          interrupted = true;
          continue;
        case LineReader::Result::kTooLong:
          Report(absl::InvalidArgumentError(absl::StrCat(
              "a message may have at most ", LineReader::kLineBytesMax, " bytes a line")));
          continue;
        case LineReader::Result::kLine:
          break;
      }
      interrupted = false;
      if (absl::StripAsciiWhitespace(line).empty()) continue;
      Report(line.starts_with("/") ? Command(line) : Say(line));
    }
    return good_;
  }

 private:
  LineReader::Result ReadMessage(std::string* message) {
    const std::string prompt = absl::StrCat(ToAbsl(StdoutStyle().bold), ToAbsl(StdoutStyle().green),
                                            "> ", ToAbsl(StdoutStyle().reset));
    LineReader::Result result = reader_.Read(prompt, message);
    std::string more;
    while (result == LineReader::Result::kLine && message->ends_with('\\')) {
      message->back() = '\n';
      result = reader_.Read("  ", &more);
      if (result == LineReader::Result::kEnd) return LineReader::Result::kLine;
      message->append(more);
    }
    return result;
  }

  void Note(std::string_view text) {
    absl::FPrintF(stderr, "%s%s%s\n", ToAbsl(StderrStyle().dim), ToAbsl(text),
                  ToAbsl(StderrStyle().reset));
  }

  void Report(const absl::Status& status) {
    if (status.ok()) return;
    good_ = false;
    absl::FPrintF(stderr, "%spenstock:%s %s\n", ToAbsl(StderrStyle().red),
                  ToAbsl(StderrStyle().reset), status.message());
  }

  absl::Status Command(const std::string& line) {
    const std::size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string rest(absl::StripAsciiWhitespace(
        space == std::string::npos ? absl::string_view() : absl::string_view(line).substr(space)));
    if (name == "/quit" || name == "/exit" || name == "/q") {
      leaving_ = true;
    } else if (name == "/help" || name == "/?") {
      absl::FPrintF(stderr, "%s", kHelp);
    } else if (name == "/reset" || name == "/clear") {
      history_.clear();
      Note("The conversation starts anew.");
    } else if (name == "/system") {
      return SetSystem(rest);
    } else if (name == "/save") {
      return Save(rest);
    } else if (name == "/retry") {
      return Retry();
    } else {
      const std::optional<std::string> nearest =
          Nearest(name, {"/help", "/reset", "/system", "/retry", "/save", "/quit"});
      return absl::InvalidArgumentError(
          absl::StrCat("no command ", name, "; ",
                       nearest ? absl::StrCat("did you mean ", *nearest, "?")
                               : std::string("/help lists them; begin with a space to say it")));
    }
    return absl::OkStatus();
  }

  absl::Status SetSystem(const std::string& text) {
    if (text.empty()) {
      Note(system_.empty() ? "There is no system message." : system_);
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(CheckPrompt(text, "the system message"));
    system_ = text;
    history_.clear();
    Note("System message set; the conversation starts anew.");
    return absl::OkStatus();
  }

  absl::Status Save(const std::string& path) {
    if (path.empty()) return absl::InvalidArgumentError("/save needs the name of a file");
    auto messages = nlohmann::ordered_json::array();
    for (const model::ChatMessage& message : Messages()) {
      messages.push_back({{"role", message.role}, {"content", message.content}});
    }
    std::ofstream out(path);
    out << nlohmann::ordered_json{{"messages", messages}}.dump(
               2, ' ', false, nlohmann::json::error_handler_t::replace)
        << "\n";
    out.close();
    if (!out) return absl::UnavailableError(absl::StrCat("cannot write ", path));
    Note(absl::StrCat("Saved ", messages.size(), " messages to ", path));
    return absl::OkStatus();
  }

  absl::Status Retry() {
    if (history_.size() < 2) return absl::InvalidArgumentError("there is no answer to retry yet");
    history_.pop_back();
    const std::string message = history_.back().content;
    history_.pop_back();
    ++sampling_.seed;
    return Say(message);
  }

  std::vector<model::ChatMessage> Messages() const {
    std::vector<model::ChatMessage> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    messages.insert(messages.end(), history_.begin(), history_.end());
    return messages;
  }

  // Forgets the oldest exchanges where the context is too short for all of them.
  absl::Status FitHistory() {
    for (;;) {
      ASSIGN_OR_RETURN(const std::size_t prompt_tokens, responder_.Measure(Messages(), began_));
      const std::int32_t limit = responder_.context_tokens();
      const std::int32_t reserve = std::min(kAnswerTokensMin, limit / 4);
      if (prompt_tokens <= static_cast<std::size_t>(limit - reserve)) return absl::OkStatus();
      if (history_.size() < 3) {
        return absl::InvalidArgumentError(
            absl::StrCat("this message makes a prompt of ", prompt_tokens,
                         " tokens, the context has room for ", limit - reserve));
      }
      history_.erase(history_.begin(), history_.begin() + 2);
      Note("The context is full: the oldest exchange is forgotten.");
    }
  }

  absl::Status Say(const std::string& message) {
    RETURN_IF_ERROR(CheckPrompt(message, "the message"));
    if (history_.empty()) began_ = CivilNow();
    history_.push_back({"user", message});
    const absl::StatusOr<Answers> answers = Answer();
    if (!answers.ok()) {
      history_.pop_back();
      return answers.status();
    }
    history_.push_back({"assistant", answers->choices[0].text});
    WriteStdout("\n");
    if (StderrIsTerminal() && reader_.interactive()) {
      Note(Summary(*answers) +
           (answers->choices[0].finish_reason == "cancelled" ? "; stopped" : ""));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Answers> Answer() {
    RETURN_IF_ERROR(FitHistory());
    return responder_.Respond(sampling_, interrupts_, [](std::int32_t, std::string_view text) {
      return WriteStdout(text);
    });
  }

  Responder& responder_;
  engine::SamplingParams sampling_;
  InterruptWatch& interrupts_;
  LineReader reader_;
  std::string system_;
  std::vector<model::ChatMessage> history_;  // User and assistant in turns.
  // What the template is told the time is: one for a conversation, so that its prompts begin alike.
  CivilTime began_{};
  bool leaving_ = false;
  bool good_ = true;
};

absl::StatusOr<int> Chat(const ChatFlags& flags) {
  InterruptWatch interrupts;
  // Checked against the vocabulary by who answers.
  ASSIGN_OR_RETURN(engine::SamplingParams sampling,
                   MakeSampling(flags.sampling, std::numeric_limits<std::int32_t>::max()));
  ASSIGN_OR_RETURN(const std::unique_ptr<Responder> responder,
                   flags.model.server.empty() ? MakeLocalResponder(flags.model, flags.sampling)
                                              : MakeRemoteResponder(flags.model, flags.sampling));
  ChatSession session(flags, *responder, std::move(sampling), interrupts);
  const bool good = session.Run();
  return good || StdinIsTerminal() ? kExitOk : kExitFailed;
}

}  // namespace

void RegisterChat(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<ChatFlags>();
  flags->sampling.max_tokens = 2048;
  CLI::App* chat = app.add_subcommand("chat", "Talk with a model");
  chat->add_option("--system", flags->system, "A system message, such as \"Be brief.\"");
  AddModelFlag(*chat, flags->model);
  AddServerFlag(*chat, flags->model);
  AddEngineFlags(*chat, flags->model);
  AddGpuFlags(*chat, flags->model);
  AddSplitFlags(*chat, flags->model);
  ServerExcludesTheRest(*chat);
  AddSamplingFlags(*chat, flags->sampling);
  chat->footer(
      "Examples:\n"
      "  penstock chat\n"
      "  penstock chat --system \"You are a patient teacher.\" --temperature 0.3\n"
      "  printf 'Name a fruit.\\nAnother one.\\n' | penstock chat --seed 1\n\n"
      "While talking:\n" +
      std::string(kHelp));
  chat->callback([flags, &run] { run = [flags] { return Chat(*flags); }; });
}

}  // namespace penstock::cli
