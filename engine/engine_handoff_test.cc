// SPDX-License-Identifier: Apache-2.0
// One request over two engines on fake models: whatever moves, the tokens are those of one engine
// alone.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/seed_testing.h"
#include "base/status.h"
#include "engine/engine.h"
#include "engine/fake_worker.h"
#include "gtest/gtest.h"
#include "kernels/kv_encoding.h"

namespace penstock::engine {
namespace {

std::vector<Chain> ChainsOfAllBut1(const std::vector<TokenId>& prompt) {
  return ChainsOf(std::span(prompt).first(prompt.size() - 1), "", kBlockTokens);
}

std::vector<TokenId> RandomTokens(std::mt19937& rng, std::size_t count) {
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(rng() % kVocab);
  return tokens;
}

std::vector<TokenId> Alone(const std::vector<std::int32_t>& windows, const Request& request) {
  Worker worker({.windows = windows, .slabs = 512});
  EXPECT_TRUE(worker.engine->Submit(request).ok());
  std::vector<TokenId> tokens;
  while (!worker.engine->idle()) {
    for (const TokenOutput& output : worker.engine->Step().outputs) {
      if (output.choice == 0) tokens.push_back(output.token->token);
    }
  }
  return tokens;
}

// Copies, layer by layer, what a prefill tells into the blocks reserved for it.
class Mover {
 public:
  Mover(Worker& from, Worker& to) : from_(from), to_(to) {
    from.engine->set_layer_done([this](std::int32_t layer, std::span<const PrefillBlocks> told) {
      for (const PrefillBlocks& blocks : told) Move(layer, blocks);
    });
  }
  void Expect(RequestId prefill, const Reservation& reservation) {
    Target& target = targets_[prefill];
    for (const SequenceInput::Blocks& blocks : reservation.blocks) {
      target.slabs.emplace_back(blocks.slabs.begin(), blocks.slabs.end());
      target.first.push_back(blocks.first_block);
    }
    target.first_missing = reservation.reused_tokens / kBlockTokens;
  }

 private:
  struct Target {
    std::vector<std::vector<SlabRef>> slabs;
    std::vector<std::int32_t> first;
    std::int32_t first_missing = 0;
  };

  void Move(std::int32_t layer, const PrefillBlocks& told) {
    const auto it = targets_.find(told.request);
    if (it == targets_.end()) return;
    const auto g = static_cast<std::size_t>(layer);  // One layer a group.
    const Target& target = it->second;
    from_.pool->WaitForCopy(from_.pool->last_copy());
    const SequenceInput::Blocks& source = told.blocks[g];
    const std::int32_t begin =
        std::max({told.first_block, told.first_needed[g], target.first_missing});
    for (std::int32_t b = begin; b < told.end_block; ++b) {
      const SlabRef from = source.slabs[static_cast<std::size_t>(b - source.first_block)];
      const SlabRef to = target.slabs[g][static_cast<std::size_t>(b - target.first[g])];
      std::memcpy(to_.pool->Address(layer, to), from_.pool->Address(layer, from), kSlabBytes);
    }
  }

  Worker& from_;
  Worker& to_;
  std::map<RequestId, Target> targets_;
};

struct Flight {
  Request request = {};
  std::vector<TokenId> want = {};
  ReservationId reservation{};
  std::optional<RequestId> decode = {};
  std::vector<TokenId> got = {};
};

// Random requests, prefixes shared at will, with every ending: answered, given up on either side,
// refused for lack of room.
TEST(EngineHandoffTest, TokensAreThoseOfOneEngine) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 rng(seed);
    const std::vector<std::int32_t> windows =
        std::vector<std::vector<std::int32_t>>{{0}, {0, 12}, {20}}[seed % 3];
    const std::int32_t step_tokens = std::vector<std::int32_t>{512, 21, 5}[rng() % 3];
    Worker prefill({.windows = windows,
                    .slabs = 40,
                    .options = {.step_tokens = step_tokens, .sequences_max = 4},
                    .far = rng() % 2 == 0});
    Worker decode({.windows = windows,
                   .slabs = 48,
                   .options = {.step_tokens = 64, .sequences_max = 5},
                   .far = rng() % 2 == 0});
    Mover mover(prefill, decode);
    const std::vector<TokenId> system = RandomTokens(rng, 40);
    std::map<RequestId, Flight> prefilling;
    std::vector<Flight> decoding;
    int started = 0, answered = 0;
    for (int round = 0; round < 4000 && (started < 25 || !prefilling.empty() || !decoding.empty());
         ++round) {
      if (started < 25 && rng() % 3 == 0) {
        std::vector<TokenId> prompt = RandomTokens(rng, 1 + rng() % 50);
        prompt.insert(prompt.begin(), system.begin(),
                      system.begin() + static_cast<std::ptrdiff_t>(rng() % 41));
        if (prompt.size() < 2) continue;
        Flight flight{.request = Greedy(prompt, 1 + static_cast<std::int32_t>(rng() % 20))};
        flight.want = Alone(windows, flight.request);
        const auto reservation = decode.engine->Reserve(
            static_cast<std::int32_t>(prompt.size()) - 1, ChainsOfAllBut1(prompt));
        if (!reservation.ok()) {
          ASSERT_EQ(reservation.status().code(), absl::StatusCode::kResourceExhausted)
              << reservation.status();
        } else {
          ++started;
          flight.reservation = reservation->id;
          prompt.pop_back();
          // The decode worker has what it reuses, said or not.
          const std::int32_t reused = reservation->reused_tokens / kBlockTokens;
          const RequestId id = *prefill.engine->SubmitPrefill(
              {.tokens = prompt, .first_missing = rng() % 2 == 0 ? reused : 0});
          mover.Expect(id, *reservation);
          prefilling.emplace(id, std::move(flight));
        }
      }
      for (const RequestId id : prefill.engine->Step().prefilled) {
        Flight flight = std::move(prefilling.at(id));
        prefilling.erase(id);
        prefill.engine->EndPrefill(id);
        if (rng() % 8 == 0) {  // The request is gone: its KV may serve others.
          decode.engine->EndReservation(
              flight.reservation, static_cast<std::int32_t>(flight.request.prompt.size()) - 1);
          continue;
        }
        if (rng() % 2 == 0) decode.engine->Fill(flight.reservation, [] {});
        const auto adopted = decode.engine->Adopt(flight.reservation, flight.request);
        ASSERT_TRUE(adopted.ok()) << adopted.status();
        flight.decode = *adopted;
        decoding.push_back(std::move(flight));
      }
      if (!prefilling.empty() && rng() % 40 == 0) {  // Given up in the middle: nothing is valid.
        prefill.engine->EndPrefill(prefilling.begin()->first);
        decode.engine->EndReservation(prefilling.begin()->second.reservation, 0);
        prefilling.erase(prefilling.begin());
      }
      for (const TokenOutput& output : decode.engine->Step().outputs) {
        const auto flight = std::ranges::find_if(
            decoding, [&](const Flight& f) { return f.decode == output.request; });
        ASSERT_NE(flight, decoding.end());
        flight->got.push_back(output.token->token);
        if (!output.finish.has_value()) continue;
        EXPECT_EQ(flight->got, flight->want);
        ++answered;
        decoding.erase(flight);
      }
    }
    EXPECT_TRUE(prefilling.empty() && decoding.empty());
    EXPECT_GT(answered, 10);
    EXPECT_TRUE(prefill.engine->idle() && decode.engine->idle());
    EXPECT_EQ(prefill.bytes_held(), 0u);
    EXPECT_EQ(decode.bytes_held(), 0u);
  }
}

// The last tokens of a prompt count as the answer's, to penalties and the random draw.
TEST(EngineHandoffTest, AnAnswerGoesOnOnAnotherEngine) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 rng(seed);
    Request request = Greedy(RandomTokens(rng, 1 + rng() % 40), 30);
    request.n = 1 + static_cast<std::int32_t>(rng() % 3);
    request.sampling.temperature = seed % 4 == 0 ? 0 : 1.5;
    request.sampling.presence_penalty = 1;
    request.sampling.frequency_penalty = -0.5;
    request.sampling.repetition_penalty = 1.3;
    request.sampling.seed = seed;
    const auto run = [](const Request& r, std::int32_t choice) {
      Worker worker({.slabs = 512});
      EXPECT_TRUE(worker.engine->Submit(r).ok());
      std::vector<TokenId> tokens;
      while (!worker.engine->idle()) {
        for (const TokenOutput& output : worker.engine->Step().outputs) {
          if (output.choice == choice) tokens.push_back(output.token->token);
        }
      }
      return tokens;
    };
    const auto choice = static_cast<std::int32_t>(rng() % static_cast<unsigned>(request.n));
    const std::vector<TokenId> want = run(request, choice);
    ASSERT_EQ(want.size(), 30u);
    const std::size_t emitted = 1 + rng() % 29;
    Request rest = request;
    rest.prompt.insert(rest.prompt.end(), want.begin(),
                       want.begin() + static_cast<std::ptrdiff_t>(emitted));
    rest.emitted_tokens = static_cast<std::int32_t>(emitted);
    rest.first_choice = choice;
    rest.n = 1;
    rest.max_tokens -= rest.emitted_tokens;
    EXPECT_EQ(run(rest, 0), std::vector<TokenId>(
                                want.begin() + static_cast<std::ptrdiff_t>(emitted), want.end()));
  }
}

TEST(EngineHandoffTest, AFullPoolRefusesWithBothNumbers) {
  Worker worker({.slabs = 4});
  const std::vector<TokenId> prompt(17, 1);
  ASSERT_TRUE(worker.engine->Reserve(16, ChainsOfAllBut1(prompt)).ok());
  const absl::Status status = worker.engine->Reserve(16, ChainsOfAllBut1(prompt)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ToStd(status.message()),
            "16 tokens need 12288 bytes of KV, of which 4096 are left, and one of 64 places, of "
            "which 1 are taken");
}

TEST(EngineHandoffTest, AdoptRefusesAnotherPrompt) {
  Worker worker({});
  std::vector<TokenId> prompt(20, 1);
  const Reservation reservation = *worker.engine->Reserve(19, ChainsOfAllBut1(prompt));
  EXPECT_EQ(worker.engine->Adopt(reservation.id, Greedy(std::vector<TokenId>(19, 1), 1))
                .status()
                .message(),
            "a reservation of 19 tokens is for a prompt of one more, got 19");
  prompt[3] = 2;
  EXPECT_EQ(worker.engine->Adopt(reservation.id, Greedy(prompt, 1)).status().message(),
            "the prompt is not the one that the reservation's chains name");
  EXPECT_EQ(worker.engine->reservations(), 1);
  worker.engine->EndReservation(reservation.id, 0);
  EXPECT_EQ(worker.engine->Adopt(reservation.id, Greedy(prompt, 1)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(worker.bytes_held(), 0u);
}

TEST(EngineHandoffTest, WhatTheOtherWorkerHasIsNotToldOf) {
  const std::vector<TokenId> tokens(5 * kBlockTokens + 3, 1);
  struct Case {
    std::int32_t window, first_missing, first_told;
  };
  for (const Case& c : {Case{0, 0, 0}, Case{0, 3, 3}, Case{0, 5, 5}, Case{0, 6, 5}, Case{12, 1, 4},
                        Case{12, 5, 5}}) {
    SCOPED_TRACE(c.first_missing);
    Worker worker({.windows = {c.window}, .far = true});
    std::vector<std::int32_t> told;
    worker.engine->set_layer_done([&](std::int32_t, std::span<const PrefillBlocks> prefills) {
      for (const PrefillBlocks& prefill : prefills) {
        for (std::int32_t b = std::max(prefill.first_block, prefill.first_needed[0]);
             b < prefill.end_block; ++b) {
          told.push_back(b);
        }
      }
    });
    const RequestId id =
        *worker.engine->SubmitPrefill({.tokens = tokens, .first_missing = c.first_missing});
    while (!worker.engine->idle()) worker.engine->Step();
    std::vector<std::int32_t> want;
    for (std::int32_t b = c.first_told; b < 6; ++b) want.push_back(b);
    EXPECT_EQ(told, want);
    worker.engine->EndPrefill(id);
    EXPECT_EQ(worker.bytes_held(), 0u);
  }
}

TEST(EngineHandoffTest, WhatCameIsBroughtOnceAndTogether) {
  Worker worker({.windows = {0, 0}, .far = true});
  const Reservation reservation =
      *worker.engine->Reserve(40, ChainsOfAllBut1(std::vector<TokenId>(41, 1)));
  const auto fill = [&] {
    std::promise<void> filled;
    worker.engine->Fill(reservation.id, [&] { filled.set_value(); });
    return filled.get_future().wait_for(std::chrono::minutes(1)) == std::future_status::ready;
  };
  worker.engine->SealReserved(reservation.id, 1, 3);
  EXPECT_EQ(worker.pool->last_copy(), 1u);
  ASSERT_TRUE(fill());
  EXPECT_EQ(worker.pool->last_copy(), 3u) << "the other blocks of each of the two groups";
  ASSERT_TRUE(fill());
  worker.engine->SealReserved(reservation.id, 0, 3);
  EXPECT_EQ(worker.pool->last_copy(), 3u) << "all is there";
  worker.engine->EndReservation(reservation.id, 0);
  ASSERT_TRUE(fill()) << "an unknown reservation";
  EXPECT_EQ(worker.pool->last_copy(), 3u);
}

// Memory that others hold makes answers wait; it does not break them.
// Blocks that came encoded are decoded on the device, in the place of being brought; the slabs that the
// host has for them are not looked at.
TEST(EngineHandoffTest, WhatCameEncodedIsDecodedOnTheDevice) {
  constexpr kernels::KvEncoding kInt8 = {};
  Worker worker({.windows = {0, 0}, .far = true});
  const std::vector<Chain> chains = ChainsOfAllBut1(std::vector<TokenId>(41, 1));
  const Reservation reservation = *worker.engine->Reserve(40, chains);
  const PageLayout& layout = worker.pool->layout(0);
  std::mt19937 random(1);
  const auto encoded = [&] {
    kernels::EncodedBlock block = {.encoding = kInt8, .bytes = {}};
    block.bytes.resize(kernels::KvPlanes(kInt8, layout).layer_bytes());
    for (std::byte& b : block.bytes) b = static_cast<std::byte>(random() % 100);
    return std::make_shared<const kernels::EncodedBlock>(std::move(block));
  };
  const auto expect = [&](std::int32_t group, std::int32_t block,
                          const kernels::EncodedBlock& from) {
    const SlabRef slab =
        reservation.blocks[static_cast<std::size_t>(group)].slabs[static_cast<std::size_t>(block)];
    std::vector<std::byte> want(layout.block_bytes());
    std::vector<std::byte> got(want.size());
    kernels::DecodeBlock(kInt8, layout, from.bytes, want.data());
    worker.pool->Save(group, slab, got.data());
    EXPECT_EQ(got, want) << "group " << group << " block " << block;
  };
  // One that is to be found as soon as it is there.
  const auto first = encoded();
  worker.engine->DecodeReserved(reservation.id, 1, 3, first);
  EXPECT_EQ(worker.pool->last_copy(), 0u);
  worker.engine->SealReserved(reservation.id, 1, 3);
  EXPECT_EQ(worker.pool->last_copy(), 1u);
  worker.pool->WaitForCopy(1);
  expect(1, 3, *first);
  // Two of a group, among others that the host has: each by itself, and the others together.
  const auto second = encoded(), third = encoded();
  worker.engine->DecodeReserved(reservation.id, 0, 0, second);
  worker.engine->DecodeReserved(reservation.id, 0, 2, third);
  worker.engine->DecodeReserved(reservation.id, 0, 77, encoded());  // No place of it.
  worker.engine->DecodeReserved(ReservationId{12345}, 0, 1, encoded());
  std::promise<void> filled;
  worker.engine->Fill(reservation.id, [&] { filled.set_value(); });
  ASSERT_EQ(filled.get_future().wait_for(std::chrono::minutes(1)), std::future_status::ready);
  EXPECT_EQ(worker.pool->last_copy(), 5u);
  expect(0, 0, *second);
  expect(0, 2, *third);
  expect(1, 3, *first);
  worker.engine->EndReservation(reservation.id, 0);
  EXPECT_EQ(worker.bytes_held(), 0u);
}

TEST(EngineHandoffTest, AnswersWaitForReservedMemory) {
  Worker worker({.slabs = 4});
  const std::vector<TokenId> prompt(17, 1);
  const Request request = Greedy(std::vector<TokenId>(6, 2), 20);
  ASSERT_TRUE(worker.engine->Submit(request).ok());
  std::vector<TokenId> tokens;
  const auto step = [&] {
    const StepReport report = worker.engine->Step();
    for (const TokenOutput& output : report.outputs) tokens.push_back(output.token->token);
    return report.outputs.size();
  };
  step();
  const auto reservation = worker.engine->Reserve(8, ChainsOfAllBut1(std::vector<TokenId>(9, 1)));
  ASSERT_TRUE(reservation.ok());
  for (int i = 0; i < 30; ++i) step();
  EXPECT_EQ(tokens.size(), 11u);  // Two blocks: 6 + 10 positions written, one token more drawn.
  EXPECT_FALSE(worker.engine->idle());
  worker.engine->EndReservation(reservation->id, 0);
  while (!worker.engine->idle()) ASSERT_EQ(step(), 1u);
  EXPECT_EQ(tokens, Alone({0}, request));
}

}  // namespace
}  // namespace penstock::engine
