// SPDX-License-Identifier: Apache-2.0
#include "kvstore/replay_trace.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "absl/container/flat_hash_map.h"
#include "base/check.h"

namespace penstock::kvstore {
namespace {

// System prompts, in tokens: of products that share nothing.
constexpr std::int32_t kSystemTokens[] = {700, 1300, 2600, 5200};
constexpr double kSystemWeights[] = {0.4, 0.3, 0.2, 0.1};

// Medians and spreads (standard deviation of the logarithm). A turn is what a user adds; now and then
// something is pasted. The thinking of a person differs from one conversation to the next, and less
// from one turn to the next.
constexpr double kTurnTokens = 120, kTurnSpread = 1.2;
constexpr double kPasteShare = 0.15, kPasteTokens = 5000, kPasteSpread = 1.0;
constexpr double kAnswerTokens = 350, kAnswerSpread = 0.7;
constexpr double kThinkSeconds = 70, kThinkSpread = 0.7, kPersonSpread = 0.7;
constexpr double kDocumentTokens = 14000, kDocumentSpread = 0.9;
// Whether one goes on after the first turn, and after each later one.
constexpr double kGoOnFirst = 0.45, kGoOnLater = 0.78, kGoOnDocument = 0.5;
constexpr std::int32_t kPromptTokensMax = 128 * 1024;
constexpr double kTokensPerSecond = 40;  // Of an answer: the user reads on as it comes.

// The standard library's distributions differ from one to the next; these do not.
class Chance {
 public:
  explicit Chance(std::uint64_t seed) : random_(seed) {}
  double Unit() { return static_cast<double>(random_() >> 11) * 0x1p-53; }
  double Exponential(double mean) { return -mean * std::log1p(-Unit()); }
  double LogNormal(double median, double spread) {
    const double radius = std::sqrt(-2 * std::log1p(-Unit()));
    return median * std::exp(spread * radius * std::cos(2 * std::numbers::pi * Unit()));
  }
  std::int32_t Tokens(double median, double spread) {
    return std::clamp(static_cast<std::int32_t>(LogNormal(median, spread)), 8, kPromptTokensMax);
  }

 private:
  std::mt19937_64 random_;
};

// A text is pieces; a block's id is that of the tokens up to its end, so that equal beginnings have
// equal ids and nothing else has.
struct Piece {
  std::uint64_t content;
  std::int32_t tokens;
};

class BlockIds {
 public:
  std::vector<std::uint64_t> Of(const std::vector<Piece>& text, std::int32_t tokens) {
    std::vector<std::uint64_t> ids;
    std::uint64_t chain = 0;
    std::size_t piece = 0;
    std::int32_t used = 0;  // Of it.
    for (std::int32_t left = tokens; left > 0;) {
      std::int32_t room = std::min(left, kMadeBlockTokens);
      left -= room;
      while (room > 0) {
        const std::int32_t part = std::min(room, text[piece].tokens - used);
        chain = Next(chain, text[piece].content, used, part);
        room -= part;
        used += part;
        if (used == text[piece].tokens) {
          ++piece;
          used = 0;
        }
      }
      ids.push_back(numbers_.try_emplace(chain, numbers_.size()).first->second);
    }
    return ids;
  }

 private:
  static std::uint64_t Mix(std::uint64_t x) {  // splitmix64's.
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  static std::uint64_t Next(std::uint64_t chain, std::uint64_t content, std::int32_t from,
                            std::int32_t tokens) {
    return Mix(Mix(Mix(chain) ^ content) ^ (static_cast<std::uint64_t>(from) << 32) ^
               static_cast<std::uint64_t>(tokens));
  }

  absl::flat_hash_map<std::uint64_t, std::uint64_t> numbers_;
};

std::int32_t TokensOf(const std::vector<Piece>& text) {
  std::int32_t tokens = 0;
  for (const Piece& piece : text) tokens += piece.tokens;
  return tokens;
}

struct Document {
  std::uint64_t content = 0;
  std::int32_t tokens = 0;
  double ends_s = 0;
};

class Maker {
 public:
  explicit Maker(const MadeTraceOptions& options)
      : options_(options),
        chance_(options.seed),
        documents_(static_cast<std::size_t>(options.documents)) {
    double sum = 0;
    for (std::size_t k = 0; k < documents_.size(); ++k) {
      sum += std::pow(static_cast<double>(k + 1), -options.zipf);
      popularity_.push_back(sum);
    }
  }

  std::vector<MadeRequest> Make() {
    // Turns per conversation on average, so that there are as many requests as asked for.
    const double chat = 1 + kGoOnFirst / (1 - kGoOnLater);
    const double document = 1 / (1 - kGoOnDocument);
    const double turns = options_.document_share * document + (1 - options_.document_share) * chat;
    const double gap_s = turns / options_.requests_per_second;
    for (double at = 0; at < options_.seconds; at += chance_.Exponential(gap_s)) Conversation(at);
    std::ranges::stable_sort(made_, {}, [](const MadeRequest& r) { return r.request.arrival; });
    // Ids in the order in which they are met would tell nothing more: they are names.
    return std::move(made_);
  }

 private:
  void Conversation(double at) {
    const bool about_document = chance_.Unit() < options_.document_share;
    std::vector<Piece> text = {System()};
    if (about_document) text.push_back(DocumentAt(at));
    const double think_s = chance_.LogNormal(kThinkSeconds, kPersonSpread);
    for (int turn = 0; at < options_.seconds; ++turn) {
      const bool pastes = !about_document && chance_.Unit() < kPasteShare;
      text.push_back({++content_, pastes ? chance_.Tokens(kPasteTokens, kPasteSpread)
                                         : chance_.Tokens(kTurnTokens, kTurnSpread)});
      const std::int32_t tokens = TokensOf(text);
      if (tokens > kPromptTokensMax) return;
      const std::int32_t answer = chance_.Tokens(kAnswerTokens, kAnswerSpread);
      made_.push_back(
          {.request = {.arrival = std::chrono::milliseconds(static_cast<std::int64_t>(at * 1000)),
                       .prompt_tokens = tokens,
                       .blocks = ids_.Of(text, tokens)},
           .output_tokens = answer});
      text.push_back({++content_, answer});
      const double go_on = about_document ? kGoOnDocument : turn == 0 ? kGoOnFirst : kGoOnLater;
      if (chance_.Unit() >= go_on) return;
      at += answer / kTokensPerSecond + chance_.LogNormal(think_s, kThinkSpread);
    }
  }

  Piece System() {
    const double draw = chance_.Unit();
    std::size_t which = 0;
    double sum = kSystemWeights[0];
    while (draw >= sum && which + 1 < std::size(kSystemTokens)) sum += kSystemWeights[++which];
    return {which + 1, kSystemTokens[which]};
  }

  Piece DocumentAt(double at) {
    const auto place = std::ranges::lower_bound(popularity_, chance_.Unit() * popularity_.back());
    Document& document = documents_[std::min<std::size_t>(
        static_cast<std::size_t>(place - popularity_.begin()), documents_.size() - 1)];
    if (document.content == 0 || at >= document.ends_s) {
      document = {.content = ++content_,
                  .tokens = chance_.Tokens(kDocumentTokens, kDocumentSpread),
                  .ends_s = at + chance_.Exponential(options_.document_life_s)};
    }
    return {document.content, document.tokens};
  }

  const MadeTraceOptions options_;
  Chance chance_;
  std::vector<Document> documents_;
  std::vector<double> popularity_;  // Sums.
  std::uint64_t content_ = 1000;    // The last one given out; system prompts have lower ones.
  BlockIds ids_;
  std::vector<MadeRequest> made_;
};

}  // namespace

std::vector<MadeRequest> MakeChatsAndDocuments(const MadeTraceOptions& options) {
  CHECK(options.seconds > 0 && options.requests_per_second > 0);
  CHECK(options.documents > 0 && options.document_share >= 0 && options.document_share <= 1);
  return Maker(options).Make();
}

}  // namespace penstock::kvstore
