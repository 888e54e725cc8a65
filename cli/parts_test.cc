// SPDX-License-Identifier: Apache-2.0
// The small parts of the commands.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/suggest.h"
#include "cli/flags.h"
#include "cli/model_fetch.h"
#include "cli/model_store.h"
#include "cli/prompt.h"
#include "cli/run_program.h"
#include "cli/terminal.h"
#include "cli/worker_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace penstock::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Tests run side by side, in processes of their own.
std::string FreshFolder() {
  std::string folder = testing::TempDir() + "penstock_parts_test_XXXXXX";
  EXPECT_NE(::mkdtemp(folder.data()), nullptr);
  return folder;
}

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

TEST(FlagsTest, AGpuOnlyWhereItIsAskedForOrWorks) {
  ModelFlags flags;
  flags.cuda_plugin = "/nowhere/plugin.so";
  EXPECT_EQ(MakeOptions(flags)->cuda, nullptr);  // Not even looked for.
  flags.device = "auto";
  EXPECT_EQ(MakeOptions(flags)->cuda, nullptr);
  flags.device = "cuda";
  EXPECT_EQ(MakeOptions(flags).status().message(),
            "there is no CUDA plug-in at /nowhere/plugin.so");
  flags.device = "cuda:0,1";
  flags.tp = 4;
  EXPECT_EQ(MakeOptions(flags).status().message(),
            "device cuda:0,1 names 2 GPUs, and tp is 4: each shard takes one");
  flags.pp = 2;
  EXPECT_EQ(
      MakeOptions(flags).status().message(),
      "device cuda:0,1 names 2 GPUs, and tp is 4 and pp 2: each shard of each stage takes one");
}

TEST(WorkerMemoryTest, OfAGpuThatCanBeUsed) {
  CudaSystem two;
  two.gpus = {{.name = "New", .memory_bytes = 7, .compute_major = 9, .compute_minor = 0},
              {.name = "Old", .memory_bytes = 8, .compute_major = 7, .compute_minor = 5}};
  const absl::StatusOr<CudaSystem> none = absl::NotFoundError("no plug-in");
  struct Case {
    const char* device;
    std::int64_t tp;
    const absl::StatusOr<CudaSystem>& gpus;
    absl::StatusOr<std::size_t> want;
    std::int64_t pp = 1;
  };
  const absl::StatusOr<CudaSystem> found = two;
  CudaSystem new_ones = two;
  new_ones.gpus[1] = {.name = "Newer", .memory_bytes = 6, .compute_major = 10, .compute_minor = 0};
  const absl::StatusOr<CudaSystem> good = new_ones;
  const absl::Status one =
      absl::InvalidArgumentError("device cuda:1 names 1 GPU, and tp is 2: each shard takes one");
  for (const Case& c :
       {Case{"cpu", 1, none, 9}, Case{"cpu", 2, none, 4}, Case{"paced", 1, none, 9},
        Case{"cuda", 1, found, 7}, Case{"cuda", 1, none, none.status()},
        Case{"cuda:1", 1, found, CheckGpu(two, 1)}, Case{"cuda:2", 1, found, CheckGpu(two, 2)},
        Case{"cuda", 2, good, 6}, Case{"cuda", 2, found, CheckGpu(two, 1)},
        Case{"cuda:1", 2, good, one}, Case{"cpu", 2, none, 1, 3}, Case{"cuda", 1, good, 6, 2}}) {
    launch::Worker worker;
    worker.device = c.device;
    worker.tp = c.tp;
    worker.pp = c.pp;
    EXPECT_EQ(ShardBytes(worker, c.gpus, 9), c.want) << c.device;
  }
  EXPECT_THAT(CheckGpu(two, 1).message(), HasSubstr("is too old"));
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
    std::size_t wheels_bytes = 0;
    for (const ModelPart& part : model.parts) wheels_bytes += part.wheel_bytes;
    EXPECT_LT(wheels_bytes, model.bytes);  // Compressed, but there is not much to compress.
    EXPECT_GT(wheels_bytes, model.bytes / 2);
    for (const ModelPart& part : model.parts) {
      EXPECT_NE(part.package.find("=="), std::string_view::npos) << "the version is pinned";
    }
  }
  EXPECT_EQ(FindKnownModel("no-such"), nullptr);
  EXPECT_THAT(std::string(ResolveModel("no-such").status().message()), HasSubstr("no such file"));
}

TEST(ModelFetchTest, JoinsInOrderAndHashes) {
  const std::string folder = FreshFolder();
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
  const std::string folder = FreshFolder();
  std::ofstream(folder + "/file") << "12345";
  const KnownModel model = {"x", "file", "", "", {}, 5, "0"};
  const absl::StatusOr<std::string> path = FetchModel(model, folder);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, folder + "/file");
  std::filesystem::remove_all(folder);
}

// A python3 whose pip makes a wheel that is the package's name, and whose zipfile unpacks that as
// "member"; or, where `fails`, one that says five lines and fails.
class FakePython {
 public:
  explicit FakePython(bool fails) : folder_(FreshFolder()) {
    std::ofstream(folder_ + "/python3")
        << "#!/bin/sh\n"
           "case \"$*\" in\n"
           "  *pip\\ --version) exit 0;;\n"
        << (fails
                ? "  *) for i in 1 2 3 4 5; do echo \"words $i of $TMPDIR/x\" >&2; done; exit 7;;\n"
                : "  *pip\\ download*)\n"
                  "    while [ $# -gt 2 ]; do shift; done\n"
                  "    mkdir -p \"$1\"; printf %s \"$2\" > \"$1/p.whl\";;\n"
                  "  *zipfile*) mkdir \"$5\"; cp \"$4\" \"$5/member\";;\n")
        << "esac\n";
    std::filesystem::permissions(folder_ + "/python3", std::filesystem::perms::owner_all);
    ::setenv("PATH", (folder_ + ":" + path_).c_str(), 1);
  }
  ~FakePython() {
    ::setenv("PATH", path_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }

 private:
  const std::string folder_;
  const std::string path_ = "/usr/bin:/bin";
};

TEST(ModelFetchTest, FetchesAndJoinsTheParts) {
  const FakePython python(/*fails=*/false);
  const std::string folder = FreshFolder();
  KnownModel model = {"x", "file", "", "", {{"a", "member", 1}, {"bc", "member", 2}}, 3, "0"};
  EXPECT_EQ(FetchModel(model, folder).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  model.sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";  // Of "abc".
  const absl::StatusOr<std::string> path = FetchModel(model, folder);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, folder + "/file");
  EXPECT_EQ(std::filesystem::file_size(*path), 3u);
  model.file = "other";
  model.parts[1].member = "none";
  EXPECT_THAT(std::string(FetchModel(model, folder).status().message()),
              HasSubstr("bc does not contain none"));
  std::filesystem::remove_all(folder);
}

TEST(ModelFetchTest, SaysWhatPipSaidLast) {
  const FakePython python(/*fails=*/true);
  const std::string folder = FreshFolder();
  const KnownModel model = {"x", "file", "", "", {{"a==1", "member", 1}}, 3, "0"};
  const absl::Status status = FetchModel(model, folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("cannot fetch the package a==1"));
  EXPECT_THAT(message, HasSubstr("HTTPS_PROXY"));
  EXPECT_THAT(message, HasSubstr("put file into " + folder));
  EXPECT_THAT(message, HasSubstr("\n  words 3 of (temporary folder)/coming/x\n"));
  EXPECT_THAT(message, testing::EndsWith("\n  words 5 of (temporary folder)/coming/x"));
  EXPECT_THAT(message, testing::Not(HasSubstr("words 2")));
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove_all(folder);
}

TEST(RunProgramTest, OutputAndEndings) {
  std::string output;
  EXPECT_TRUE(RunProgram({"sh", "-c", "echo out; echo err >&2"}, {}, &output).ok());
  EXPECT_EQ(output, "out\nerr\n");
  EXPECT_TRUE(RunProgram({"sh", "-c", "echo $A; cat"}, {.environment = {{"A", "b c"}}, .watch = {}},
                         &output)
                  .ok());
  EXPECT_EQ(output, "b c\n");  // And nothing to read.
  EXPECT_TRUE(RunProgram({"seq", "100000"}, {}, &output).ok());
  EXPECT_EQ(output.size(), 16384u);
  EXPECT_THAT(output, testing::EndsWith("99999\n100000\n"));
  EXPECT_THAT(std::string(RunProgram({"false"}, {}, &output).message()),
              "false ended with exit code 1");
  EXPECT_THAT(std::string(RunProgram({"sh", "-c", "kill -9 $$"}, {}, &output).message()),
              "sh ended with signal 9");
  EXPECT_THAT(std::string(RunProgram({"penstock-no-such-program", "x"}, {}, &output).message()),
              HasSubstr("cannot run penstock-no-such-program"));
  EXPECT_EQ(output, "");
  const absl::Status ended = RunProgram(
      {"tail", "-f", "/dev/null"}, {.environment = {}, .watch = [] { return false; }}, &output);
  EXPECT_EQ(ended.code(), absl::StatusCode::kCancelled);
}

TEST(TerminalTest, Bytes) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(98362432), "98.4 MB");
  EXPECT_EQ(FormatBytes(2500000000), "2.50 GB");
}

}  // namespace
}  // namespace penstock::cli
