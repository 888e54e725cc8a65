// SPDX-License-Identifier: Apache-2.0
#include "model/model_file.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "base/file.h"
#include "base/status.h"
#include "model/gguf_model.h"
#include "model/hf_model.h"
#include "model/loaded_model.h"

namespace penstock::model {
namespace {

class OpenModelFile final : public ModelFile {
 public:
  OpenModelFile(std::string path, std::vector<MappedFile> files, LoadedModel model)
      : path_(std::move(path)), files_(std::move(files)), model_(std::move(model)) {}

  const std::string& path() const override { return path_; }
  std::string format() const override { return model_.format; }
  const Architecture& architecture() const override { return model_.architecture; }
  const ModelTensors& tensors() const override { return model_.tensors; }
  const std::vector<Tensor>& all_tensors() const override { return model_.all_tensors; }
  const VocabularyData& vocabulary() const override { return model_.vocabulary; }
  const std::optional<std::string>& chat_template() const override { return model_.chat_template; }

  void Drop(std::span<const std::byte> part) const override {
    for (const MappedFile& file : files_) {
      const std::span<const std::byte> all = file.bytes();
      if (part.data() >= all.data() && part.data() < all.data() + all.size()) {
        file.Drop(part);
        return;
      }
    }
  }

 private:
  const std::string path_;
  const std::vector<MappedFile> files_;
  const LoadedModel model_;
};

absl::StatusOr<LoadedModel> ReadModel(const std::string& path, std::vector<MappedFile>* files) {
  std::error_code ignored;  // What is no directory is opened, and fails there with its reason.
  if (std::filesystem::is_directory(path, ignored)) return ReadHfFolder(path, files);
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  files->push_back(std::move(file));
  return ReadGgufModel(files->back().bytes());
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelFile>> ModelFile::Open(const std::string& path) {
  std::vector<MappedFile> files;
  absl::StatusOr<LoadedModel> model = ReadModel(path, &files);
  if (!model.ok()) {
    return absl::Status(model.status().code(), absl::StrCat(path, ": ", model.status().message()));
  }
  return std::make_unique<OpenModelFile>(path, std::move(files), *std::move(model));
}

}  // namespace penstock::model
