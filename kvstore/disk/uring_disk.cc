// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/uring_disk.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace penstock::kvstore {
namespace {

constexpr char kSuffix[] = ".segment";

std::string NameOf(std::uint64_t segment) { return absl::StrFormat("%016x%s", segment, kSuffix); }

std::optional<std::uint64_t> SegmentOf(const std::string& name) {
  if (name.size() != 16 + sizeof(kSuffix) - 1 || !name.ends_with(kSuffix)) return std::nullopt;
  std::uint64_t segment = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + 16, segment, 16);
  if (error != std::errc() || end != name.data() + 16 || NameOf(segment) != name) {
    return std::nullopt;
  }
  return segment;
}

// Of a negative or positive errno.
absl::Status StatusOf(int error, std::string_view what) {
  error = std::abs(error);
  const std::string text = absl::StrCat(ToAbsl(what), ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
      return absl::ResourceExhaustedError(text);
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    default:
      return absl::DataLossError(text);
  }
}

class UringDisk final : public DiskIo {
 public:
  UringDisk(EpollLoop& loop, const UringDiskOptions& options) : loop_(loop), options_(options) {}
  ~UringDisk() override;
  absl::Status Start();

  absl::StatusOr<std::vector<File>> List() override;
  absl::Status ReadNow(std::uint64_t segment, std::uint64_t offset,
                       std::span<std::byte> to) override;
  absl::Status SyncNow(std::uint64_t segment) override;
  absl::Status Create(std::uint64_t segment, std::uint64_t bytes) override;
  void Remove(std::uint64_t segment) override;
  void Write(std::uint64_t segment, std::uint64_t offset, std::vector<DiskBytes> parts,
             Done done) override {
    Add(segment, {.kind = Operation::Kind::kWrite,
                  .offset = offset,
                  .parts = std::move(parts),
                  .done = std::move(done)});
  }
  void Read(std::uint64_t segment, std::uint64_t offset, DiskBytes to, Done done) override {
    Add(segment, {.kind = Operation::Kind::kRead,
                  .offset = offset,
                  .parts = {std::move(to)},
                  .done = std::move(done)});
  }
  void Sync(std::uint64_t segment, Done done) override {
    Add(segment, {.kind = Operation::Kind::kSync, .done = std::move(done)});
  }

 private:
  // What the kernel is asked.
  struct Operation {
    enum class Kind : std::uint8_t { kRead, kWrite, kSync } kind = Kind::kSync;
    std::shared_ptr<UniqueFd> file = {};
    std::uint64_t offset = 0;
    std::vector<DiskBytes> parts = {};
    std::vector<iovec> left = {};  // Of the parts.
    Done done;
  };
  void Add(std::uint64_t segment, Operation operation);
  absl::StatusOr<std::shared_ptr<UniqueFd>> OpenFile(std::uint64_t segment, int flags);
  absl::StatusOr<std::shared_ptr<UniqueFd>> FileOf(std::uint64_t segment);
  void Submit();
  void OnReady();
  void OnEnd(std::unique_ptr<Operation> operation, int result);
  void Answer(Operation& operation, absl::Status status);

  EpollLoop& loop_;
  const UringDiskOptions options_;
  UniqueFd directory_;
  UniqueFd lock_;
  UniqueFd event_;
  io_uring ring_{};
  bool ring_made_ = false;
  bool watched_ = false;
  bool direct_ = true;
  std::map<std::uint64_t, std::shared_ptr<UniqueFd>> files_;
  std::deque<std::unique_ptr<Operation>> waiting_;
  std::size_t running_ = 0;  // With the kernel.
  std::shared_ptr<int> life_ = std::make_shared<int>(0);
};

absl::Status UringDisk::Start() {
  const std::string& path = options_.directory;
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return StatusOf(errno, absl::StrCat("cannot make the directory ", path));
  }
  directory_.Reset(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_) return StatusOf(errno, absl::StrCat("cannot open the directory ", path));
  lock_.Reset(::openat(directory_.get(), "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock_) return StatusOf(errno, absl::StrCat("cannot make ", path, "/lock"));
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("the directory ", path, " is another process's; each store needs its own"));
  }
  event_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_) return absl::ResourceExhaustedError("no descriptor for the disk's answers");
  const int made = ::io_uring_queue_init(options_.operations, &ring_, 0);
  if (made < 0) {
    return absl::UnimplementedError(absl::StrCat("no io_uring here: ", std::strerror(-made)));
  }
  ring_made_ = true;
  if (const int on = ::io_uring_register_eventfd(&ring_, event_.get()); on < 0) {
    return absl::UnimplementedError(absl::StrCat("no events of io_uring: ", std::strerror(-on)));
  }
  RETURN_IF_ERROR(loop_.Watch(event_.get(), EPOLLIN, [this](std::uint32_t) { OnReady(); }));
  watched_ = true;
  return absl::OkStatus();
}

UringDisk::~UringDisk() {
  life_.reset();
  waiting_.clear();
  // The kernel writes to memory that it was given until it says that it has ended.
  while (running_ > 0) {
    io_uring_cqe* entry = nullptr;
    // What it could not take at once it is offered again.
    if (::io_uring_submit(&ring_) < 0 || ::io_uring_wait_cqe(&ring_, &entry) < 0) continue;
    delete static_cast<Operation*>(::io_uring_cqe_get_data(entry));
    ::io_uring_cqe_seen(&ring_, entry);
    --running_;
  }
  if (watched_) loop_.Unwatch(event_.get());
  if (ring_made_) ::io_uring_queue_exit(&ring_);
}

absl::StatusOr<std::vector<DiskIo::File>> UringDisk::List() {
  std::vector<File> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(options_.directory, error)) {
    const std::optional<std::uint64_t> segment = SegmentOf(entry.path().filename().string());
    if (!segment.has_value() || !entry.is_regular_file(error)) continue;
    files.push_back({.segment = *segment, .bytes = entry.file_size(error)});
    if (error) break;
  }
  if (error) return StatusOf(error.value(), absl::StrCat("cannot list ", options_.directory));
  return files;
}

absl::StatusOr<std::shared_ptr<UniqueFd>> UringDisk::OpenFile(std::uint64_t segment, int flags) {
  const std::string name = NameOf(segment);
  flags |= O_RDWR | O_CLOEXEC | O_NOFOLLOW;
  int fd = direct_ ? ::openat(directory_.get(), name.c_str(), flags | O_DIRECT, 0600) : -1;
  if (fd < 0 && (!direct_ || errno == EINVAL)) {
    // A file that was made before O_DIRECT was refused is there.
    fd = ::openat(directory_.get(), name.c_str(), flags & ~O_EXCL, 0600);
    direct_ = direct_ && fd < 0;
  }
  if (fd < 0) return StatusOf(errno, absl::StrCat("cannot open ", name));
  return std::make_shared<UniqueFd>(fd);
}

absl::StatusOr<std::shared_ptr<UniqueFd>> UringDisk::FileOf(std::uint64_t segment) {
  std::shared_ptr<UniqueFd>& file = files_[segment];
  if (file == nullptr) {
    auto opened = OpenFile(segment, 0);
    if (!opened.ok()) {
      files_.erase(segment);
      return opened.status();
    }
    file = *std::move(opened);
  }
  return file;
}

absl::Status UringDisk::ReadNow(std::uint64_t segment, std::uint64_t offset,
                                std::span<std::byte> to) {
  ASSIGN_OR_RETURN(const std::shared_ptr<UniqueFd> file, FileOf(segment));
  while (!to.empty()) {
    const ssize_t n = ::pread(file->get(), to.data(), to.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return StatusOf(errno, absl::StrCat("cannot read ", NameOf(segment)));
    if (n == 0) return absl::DataLossError(absl::StrCat(NameOf(segment), " ends at ", offset));
    to = to.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status UringDisk::SyncNow(std::uint64_t segment) {
  ASSIGN_OR_RETURN(const std::shared_ptr<UniqueFd> file, FileOf(segment));
  if (::fdatasync(file->get()) == 0) return absl::OkStatus();
  return StatusOf(errno, absl::StrCat("cannot sync ", NameOf(segment)));
}

absl::Status UringDisk::Create(std::uint64_t segment, std::uint64_t bytes) {
  ASSIGN_OR_RETURN(std::shared_ptr<UniqueFd> file, OpenFile(segment, O_CREAT | O_EXCL));
  const int failed = ::posix_fallocate(file->get(), 0, static_cast<off_t>(bytes));
  // The name must outlive a loss of power as the blocks in the file do.
  if (failed != 0 || ::fsync(directory_.get()) != 0) {
    const int error = failed != 0 ? failed : errno;
    ::unlinkat(directory_.get(), NameOf(segment).c_str(), 0);
    return StatusOf(error, absl::StrCat("no room for ", bytes, " bytes in ", options_.directory));
  }
  files_[segment] = std::move(file);
  return absl::OkStatus();
}

void UringDisk::Remove(std::uint64_t segment) {
  files_.erase(segment);  // Operations have it open as long as they run.
  ::unlinkat(directory_.get(), NameOf(segment).c_str(), 0);
}

void UringDisk::Add(std::uint64_t segment, Operation operation) {
  auto added = std::make_unique<Operation>(std::move(operation));
  absl::StatusOr<std::shared_ptr<UniqueFd>> file = FileOf(segment);
  if (!file.ok()) return Answer(*added, file.status());
  added->file = *std::move(file);
  for (const DiskBytes& part : added->parts) {
    added->left.push_back({.iov_base = part.bytes.data(), .iov_len = part.bytes.size()});
  }
  waiting_.push_back(std::move(added));
  Submit();
}

// Not from inside the call.
void UringDisk::Answer(Operation& operation, absl::Status status) {
  loop_.Post(
      [done = std::move(operation.done), status = std::move(status), life = std::weak_ptr(life_)] {
        if (!life.expired()) done(status);
      });
}

void UringDisk::Submit() {
  // No more than the ring of answers holds, or some would be lost.
  while (!waiting_.empty() && running_ < options_.operations) {
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
    if (entry == nullptr) break;
    Operation* const operation = waiting_.front().release();
    waiting_.pop_front();
    const int fd = operation->file->get();
    const auto pieces = static_cast<unsigned>(operation->left.size());
    switch (operation->kind) {
      case Operation::Kind::kRead:
        ::io_uring_prep_readv(entry, fd, operation->left.data(), pieces, operation->offset);
        break;
      case Operation::Kind::kWrite:
        ::io_uring_prep_writev(entry, fd, operation->left.data(), pieces, operation->offset);
        break;
      case Operation::Kind::kSync:
        ::io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC);
        break;
    }
    ::io_uring_sqe_set_data(entry, operation);
    ++running_;
  }
  ::io_uring_submit(&ring_);
}

void UringDisk::OnReady() {
  std::uint64_t count = 0;
  (void)!::read(event_.get(), &count, sizeof(count));
  io_uring_cqe* entry = nullptr;
  while (::io_uring_peek_cqe(&ring_, &entry) == 0) {
    std::unique_ptr<Operation> operation(static_cast<Operation*>(::io_uring_cqe_get_data(entry)));
    const int result = entry->res;
    ::io_uring_cqe_seen(&ring_, entry);
    --running_;
    OnEnd(std::move(operation), result);
  }
  Submit();
}

void UringDisk::OnEnd(std::unique_ptr<Operation> operation, int result) {
  if (result == -EINTR || result == -EAGAIN) return waiting_.push_back(std::move(operation));
  if (result < 0) return Answer(*operation, StatusOf(result, "the disk"));
  // A part may have been done: the rest is asked for again.
  auto moved = static_cast<std::size_t>(result);
  operation->offset += moved;
  std::vector<iovec>& left = operation->left;
  while (!left.empty() && moved >= left.front().iov_len) {
    moved -= left.front().iov_len;
    left.erase(left.begin());
  }
  if (left.empty()) return Answer(*operation, absl::OkStatus());
  if (result == 0) {
    return Answer(*operation, absl::DataLossError("the file is shorter than it was"));
  }
  left.front().iov_base = static_cast<std::byte*>(left.front().iov_base) + moved;
  left.front().iov_len -= moved;
  waiting_.push_back(std::move(operation));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DiskIo>> OpenUringDisk(EpollLoop& loop,
                                                      const UringDiskOptions& options) {
  auto disk = std::make_unique<UringDisk>(loop, options);
  RETURN_IF_ERROR(disk->Start());
  return disk;
}

}  // namespace penstock::kvstore
