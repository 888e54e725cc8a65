// SPDX-License-Identifier: Apache-2.0
// What the simulated model answers: the next token is a hash of all before it, the seed and the
// choice. So the answer of a request is known when it is asked, whoever computes which part of it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/key.h"

namespace penstock::sim {

inline std::uint64_t Mix(std::uint64_t x) {  // splitmix64's finalizer.
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline bool IsEos(TokenId token) { return token % 16 == 0; }

class TokenSource {
 public:
  // `before`: the prompt, and what of the answer is known.
  TokenSource(std::span<const TokenId> before, std::uint64_t seed, std::int32_t choice)
      : salt_(Mix(seed + 0x9e3779b97f4a7c15u * static_cast<std::uint64_t>(choice + 1))) {
    for (const TokenId token : before) Take(token);
  }
  TokenId Next() {
    const auto token = static_cast<TokenId>(Mix(state_ ^ salt_) % 256);
    Take(token);
    return token;
  }

 private:
  void Take(TokenId token) { state_ = Mix(state_ + static_cast<std::uint64_t>(token) + 1); }

  std::uint64_t salt_;
  std::uint64_t state_ = 0x50656e73746f636b;
};

// A client's request, and what is to be answered.
struct Ask {
  std::string id = {};  // Without dots: parts of it are called "ID.3".
  std::vector<TokenId> prompt = {};
  std::int32_t answers = 1;
  std::int32_t max_tokens = 1;
  bool ignore_eos = true;
  std::uint64_t seed = 0;
  std::vector<std::vector<TokenId>> right = {};  // Of each answer.

  void Answer() {
    for (std::int32_t i = 0; i < answers; ++i) {
      TokenSource source(prompt, seed, i);
      std::vector<TokenId>& tokens = right.emplace_back();
      do {
        tokens.push_back(source.Next());
      } while (static_cast<std::int32_t>(tokens.size()) < max_tokens &&
               (ignore_eos || !IsEos(tokens.back())));
    }
  }
};

// All requests of a run: what the tokens behind a coordinator's order are, which it never sees.
class Oracle {
 public:
  const Ask& Add(Ask ask) {
    ask.Answer();
    return asks_[ask.id] = std::move(ask);
  }
  // The first `tokens` of a request, or of the part of it that one answer is; empty when it has not
  // so many.
  std::vector<TokenId> Tokens(const std::string& id, std::size_t tokens) const;

 private:
  std::map<std::string, Ask> asks_;
};

inline std::vector<TokenId> Oracle::Tokens(const std::string& id, std::size_t tokens) const {
  const std::size_t dot = id.find('.');
  const auto found = asks_.find(id.substr(0, dot));
  if (found == asks_.end()) return {};
  const Ask& ask = found->second;
  std::size_t choice = 0;
  if (dot != std::string::npos) choice = static_cast<std::size_t>(id[dot + 1] - '0');
  std::vector<TokenId> all = ask.prompt;
  all.insert(all.end(), ask.right[choice].begin(), ask.right[choice].end());
  if (all.size() < tokens) return {};
  all.resize(tokens);
  return all;
}

}  // namespace penstock::sim
