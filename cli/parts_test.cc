// SPDX-License-Identifier: Apache-2.0
// The small parts of the commands.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/flags.h"
#include "cli/model_fetch.h"
#include "cli/model_store.h"
#include "cli/prompt.h"
#include "cli/suggest.h"
#include "cli/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace penstock::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(SuggestTest, Nearest) {
  const std::vector<std::string> flags = {"--temperature", "--top-k", "--top-p", "--max-tokens"};
  struct Case {
    const char* typed;
    std::optional<std::string> want;
  };
  const std::vector<Case> cases = {
      {"--temprature", "--temperature"}, {"--temp", "--temperature"}, {"--topk", "--top-k"},
      {"--max_tokens", "--max-tokens"},  {"--colour", std::nullopt},  {"", std::nullopt},
  };
  for (const Case& c : cases) EXPECT_EQ(Nearest(c.typed, flags), c.want) << c.typed;
  EXPECT_EQ(Nearest(std::string(1 << 20, 'x'), flags), std::nullopt);
  EXPECT_EQ(Nearest("genrate", {"generate", "chat"}), "generate");
}

TEST(FlagsTest, CpuLists) {
  EXPECT_THAT(*ParseCpuList("3"), ElementsAre(3));
  EXPECT_THAT(*ParseCpuList("0,2,4-6"), ElementsAre(0, 2, 4, 5, 6));
  for (const char* bad : {"", "a", "1,", "-1", "2-1", "1-", "0-99999", "1-2-3", "1 2", "4294967296",
                          "0-1023,0-1023"}) {
    EXPECT_EQ(ParseCpuList(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(FlagsTest, ThreadsMustAgreeWithCpus) {
  ModelFlags flags;
  flags.cpus = "0,1";
  EXPECT_TRUE(MakeOptions(flags).ok());
  flags.threads = 3;
  EXPECT_THAT(std::string(MakeOptions(flags).status().message()),
              testing::AllOf(HasSubstr("--threads is 3"), HasSubstr("names 2")));
}

TEST(FlagsTest, SamplingListsEveryFault) {
  SamplingFlags flags;
  flags.params.temperature = -1;
  flags.params.top_p = 2;
  const std::string message(MakeSampling(flags, 100).status().message());
  EXPECT_THAT(message, HasSubstr("temperature is -1"));
  EXPECT_THAT(message, HasSubstr("top_p is 2"));
  for (const char* bad : {"5", "=1", "x=1", "5=", "5=y", "200=1"}) {
    SamplingFlags biased;
    biased.logit_bias = {bad};
    EXPECT_EQ(MakeSampling(biased, 100).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  SamplingFlags good;
  good.logit_bias = {"5=-100", "6=1.5"};
  good.seed = 7;
  const absl::StatusOr<engine::SamplingParams> params = MakeSampling(good, 100);
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->seed, 7u);
  EXPECT_EQ(params->logit_bias.at(5), -100);
  EXPECT_EQ(params->logit_bias.at(6), 1.5);
}

TEST(PromptTest, Check) {
  EXPECT_TRUE(CheckPrompt("h\xC3\xA9", "the prompt").ok());
  EXPECT_THAT(std::string(CheckPrompt("", "the prompt").message()), "the prompt is empty");
  EXPECT_THAT(std::string(CheckPrompt("ab\xFFz", "the prompt").message()),
              HasSubstr("byte 3 of 4 is 0xff"));
}

TEST(PromptTest, OneSource) {
  EXPECT_EQ(*ReadText("text", std::nullopt, "the prompt"), "text");
  EXPECT_EQ(ReadText("text", "file", "the prompt").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadText(std::nullopt, "/no/such/file", "the prompt").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(ModelStoreTest, TheTableIsSound) {
  for (const KnownModel& model : KnownModels()) {
    SCOPED_TRACE(model.name);
    EXPECT_EQ(FindKnownModel(model.name), &model);
    EXPECT_EQ(model.sha256.size(), 64u);
    EXPECT_FALSE(model.parts.empty());
    for (const ModelPart& part : model.parts) {
      EXPECT_NE(part.package.find("=="), std::string_view::npos) << "the version is pinned";
    }
  }
  EXPECT_EQ(FindKnownModel("no-such"), nullptr);
  EXPECT_THAT(std::string(ResolveModel("no-such").status().message()), HasSubstr("no such file"));
}

TEST(ModelFetchTest, JoinsInOrderAndHashes) {
  const std::string folder = testing::TempDir() + "penstock_join";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/a") << "a";
  std::ofstream(folder + "/b") << "bc";
  // SHA-256("abc"), from FIPS 180-2.
  EXPECT_EQ(*JoinFiles({folder + "/a", folder + "/b"}, folder + "/ab"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(std::filesystem::file_size(folder + "/ab"), 3u);
  EXPECT_FALSE(JoinFiles({folder + "/none"}, folder + "/x").ok());
  EXPECT_FALSE(JoinFiles({folder + "/a"}, folder + "/none/x").ok());
  std::filesystem::remove_all(folder);
}

// A model that is there is not fetched again; one of another size is not taken for it.
TEST(ModelFetchTest, IsIdempotent) {
  const std::string folder = testing::TempDir() + "penstock_fetch";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/file") << "12345";
  const KnownModel model = {"x", "file", "", "", {}, 5, "0"};
  const absl::StatusOr<std::string> path = FetchModel(model, folder);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, folder + "/file");
  std::filesystem::remove_all(folder);
}

TEST(ModelFetchTest, ProgramsThatFail) {
  EXPECT_TRUE(RunProgram({"true"}, true).ok());
  EXPECT_THAT(std::string(RunProgram({"false"}, true).message()), HasSubstr("exit code 1"));
  EXPECT_THAT(std::string(RunProgram({"penstock-no-such-program", "x"}, true).message()),
              HasSubstr("penstock-no-such-program"));
}

TEST(TerminalTest, Bytes) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(98362432), "98.4 MB");
  EXPECT_EQ(FormatBytes(2500000000), "2.50 GB");
}

}  // namespace
}  // namespace penstock::cli
