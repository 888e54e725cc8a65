// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_plugin.h"

#include <dlfcn.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock {
namespace {

constexpr int kComputeMajorMin = 8;

// Where the running program lies; empty where the system does not tell.
std::filesystem::path ProgramFolder() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::filesystem::path() : program.parent_path();
}

std::string DlError() {
  const char* const text = ::dlerror();
  return text == nullptr ? "unknown error" : text;
}

// The file that a function lies in.
std::string FileOf(CudaPluginEntry entry) {
  Dl_info info = {};
  if (::dladdr(reinterpret_cast<void*>(entry), &info) == 0 || info.dli_fname == nullptr) return "";
  return info.dli_fname;
}

absl::StatusOr<LoadedCudaPlugin> TableOf(void* library, const std::string& path) {
  const auto entry = reinterpret_cast<CudaPluginEntry>(::dlsym(library, kCudaPluginEntry));
  if (entry == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is no plug-in of this program: it has no ", kCudaPluginEntry));
  }
  const CudaPlugin* const plugin = entry();
  if (plugin->version != kCudaPluginVersion || plugin->plugin_bytes != sizeof(CudaPlugin)) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is of another version: its tables are version ", plugin->version, " with ",
        plugin->plugin_bytes, " bytes, this program's version ", kCudaPluginVersion, " with ",
        sizeof(CudaPlugin), "; take both from one build"));
  }
  return LoadedCudaPlugin{plugin, FileOf(entry)};
}

absl::StatusOr<LoadedCudaPlugin> OpenFile(const std::string& path) {
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot load ", path, ": ", DlError()));
  }
  return TableOf(library, path);
}

}  // namespace

absl::StatusOr<LoadedCudaPlugin> LoadCudaPlugin(const std::string& path) {
  std::error_code error;
  if (!path.empty()) {
    if (!std::filesystem::exists(path, error)) {
      return absl::NotFoundError(absl::StrCat("there is no CUDA plug-in at ", path));
    }
    // Without a slash, dlopen would look elsewhere.
    return OpenFile(std::filesystem::absolute(path).string());
  }
  const std::filesystem::path beside = ProgramFolder() / kCudaPluginFile;
  if (std::filesystem::exists(beside, error)) return OpenFile(beside.string());
  void* const library = ::dlopen(kCudaPluginFile, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::NotFoundError(absl::StrCat("no CUDA plug-in: neither ", beside.string(),
                                            " nor on the system's path (", DlError(),
                                            "); a build of all makes it where nvcc is"));
  }
  return TableOf(library, kCudaPluginFile);
}

absl::StatusOr<const NcclLibrary*> FindNccl(const CudaPlugin& plugin) {
  const NcclLibrary* const nccl = plugin.nccl == nullptr ? nullptr : plugin.nccl();
  if (nccl != nullptr && nccl->api != nullptr) return nccl;
  return absl::UnimplementedError(
      absl::StrCat("no NCCL: ", nccl == nullptr ? "the plug-in looks for none" : nccl->why_not));
}

std::string NcclVersionText(int version) {  // As NCCL_VERSION has it from 2.9 on.
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::StatusOr<const CublasLtLibrary*> FindCublasLt(const CudaPlugin& plugin) {
  const CublasLtLibrary* const lt = plugin.cublas_lt == nullptr ? nullptr : plugin.cublas_lt();
  if (lt != nullptr && lt->api != nullptr) return lt;
  return absl::UnimplementedError(
      absl::StrCat("numerics fast need cuBLASLt, and there is none: ",
                   lt == nullptr ? "the plug-in looks for none" : lt->why_not));
}

// As CUBLAS_VERSION has it, as NCCL_VERSION does.
std::string CublasLtVersionText(int version) { return NcclVersionText(version); }

std::string CudaVersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

bool Alike(const CudaGpu& a, const CudaGpu& b) {
  return a.compute_major == b.compute_major && a.compute_minor == b.compute_minor &&
         a.multiprocessors == b.multiprocessors && a.memory_bytes == b.memory_bytes;
}

std::string Describe(const CudaGpu& gpu) {
  return absl::StrFormat("%s, compute %d.%d, %.1f GiB", gpu.name, gpu.compute_major,
                         gpu.compute_minor, static_cast<double>(gpu.memory_bytes) / (1u << 30));
}

std::string CudaErrorText(const CudaPlugin& plugin, int error) {
  return absl::StrCat(plugin.runtime.get_error_name(error), " (", error, ")");
}

absl::StatusOr<CudaSystem> FindGpus(const CudaPlugin& plugin) {
  const CudaRuntime& cuda = plugin.runtime;
  CudaSystem system;
  int error = cuda.runtime_get_version(&system.runtime_version);
  if (error == kCudaSuccess) error = cuda.driver_get_version(&system.driver_version);
  int count = 0;
  if (error == kCudaSuccess) error = cuda.get_device_count(&count);
  const std::string text = CudaErrorText(plugin, error);
  if (error == kCudaInsufficientDriver && system.driver_version != 0) {
    return absl::UnavailableError(
        absl::StrCat("the NVIDIA driver is for CUDA ", CudaVersionText(system.driver_version),
                     ", the plug-in needs ", CudaVersionText(system.runtime_version),
                     ": install a newer driver; ", text));
  }
  if (error == kCudaInsufficientDriver || error == kCudaStubLibrary) {
    return absl::UnavailableError(absl::StrCat("no NVIDIA driver: ", text));
  }
  if (error == kCudaNoDevice || (error == kCudaSuccess && count == 0)) {
    return absl::UnavailableError("the NVIDIA driver shows no GPU to this process");
  }
  if (error != kCudaSuccess)
    return absl::UnavailableError(absl::StrCat("CUDA does not start: ", text));
  for (int i = 0; i < count; ++i) {
    CudaGpu gpu;
    if (error = cuda.get_device_properties(&gpu, i); error != kCudaSuccess) {
      return absl::UnavailableError(
          absl::StrCat("GPU ", i, " does not answer: ", CudaErrorText(plugin, error)));
    }
    system.gpus.push_back(gpu);
  }
  return system;
}

absl::Status CheckGpu(const CudaSystem& system, int gpu) {
  CHECK_GE(gpu, 0);
  if (static_cast<std::size_t>(gpu) >= system.gpus.size()) {
    return absl::UnavailableError(absl::StrCat("there is no GPU ", gpu,
                                               ": the NVIDIA driver shows this process ",
                                               system.gpus.size(), ", of which the first is 0"));
  }
  const CudaGpu& wanted = system.gpus[static_cast<std::size_t>(gpu)];
  if (wanted.compute_major >= kComputeMajorMin) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(Describe(wanted), " is too old: compute capability ",
                                             kComputeMajorMin, ".0 is needed"));
}

}  // namespace penstock
