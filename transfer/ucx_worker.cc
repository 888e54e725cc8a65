// SPDX-License-Identifier: Apache-2.0
#include "transfer/ucx_worker.h"

#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {
namespace {

constexpr unsigned kMessageId = 0;
constexpr int kStepsPerTurn = 64;
// Closing without the peer takes a step or two; a worker is destroyed with what is left.
constexpr int kStepsToClose = 1000;
constexpr std::size_t kPooledBytesMin = 4096;  // Smaller ones are malloc's.
constexpr std::size_t kPooledMax = 64;

}  // namespace

struct UcxWorker::Connection {
  UcxWorker* worker = nullptr;
  std::uint64_t number = 0;
  Receiver* receiver = nullptr;  // Null once closed.
  ucp_ep_h endpoint = nullptr;
  std::uint64_t peer_link = 0;
  std::uint64_t sequence = 0;  // Of the next frame sent.
};

UcxWorker::UcxWorker(EpollLoop& loop) : loop_(loop) {}

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Make(EpollLoop& loop,
                                                           const UcxDevices& devices) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker(loop));
  RETURN_IF_ERROR(worker->Init(devices));
  return worker;
}

UcxWorker::~UcxWorker() {
  if (event_fd_ >= 0) loop_.Unwatch(event_fd_);
  for (const auto& [number, connection] : connections_) CHECK(connection->receiver == nullptr);
  if (worker_ != nullptr) {
    for (int step = 0; step < kStepsToClose && !connections_.empty(); ++step) {
      (void)ucp_worker_progress(worker_);
    }
    ucp_worker_destroy(worker_);
  }
  if (context_ != nullptr) ucp_cleanup(context_);
}

absl::Status UcxWorker::Init(const UcxDevices& devices) {
  devices_ = devices.Describe();
  ASSIGN_OR_RETURN(ucp_config_t* const config, MakeUcxConfig(devices));
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  const ucs_status_t status = ucp_init(&params, config, &context_);
  ucp_config_release(config);
  RETURN_IF_ERROR(FromUcs(status, "starting UCX"));
  RETURN_IF_ERROR(InitWorker());
  return WatchWorker();
}

absl::Status UcxWorker::InitWorker() {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  RETURN_IF_ERROR(FromUcs(ucp_worker_create(context_, &params, &worker_), "making a UCX worker"));
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.cb = ActiveMessage;
  handler.arg = this;
  RETURN_IF_ERROR(
      FromUcs(ucp_worker_set_am_recv_handler(worker_, &handler), "setting UCX's handler"));
  ucp_worker_attr_t attributes{};
  attributes.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS;
  RETURN_IF_ERROR(FromUcs(ucp_worker_query(worker_, &attributes), "asking UCX for its address"));
  const auto* const bytes = reinterpret_cast<const std::byte*>(attributes.address);
  address_.assign(bytes, bytes + attributes.address_length);
  ucp_worker_release_address(worker_, attributes.address);
  return absl::OkStatus();
}

absl::Status UcxWorker::WatchWorker() {
  int fd = -1;
  RETURN_IF_ERROR(FromUcs(ucp_worker_get_efd(worker_, &fd), "asking UCX for its descriptor"));
  RETURN_IF_ERROR(loop_.Watch(fd, EPOLLIN, [this](auto) { Turn(); }));
  event_fd_ = fd;
  Kick();
  return absl::OkStatus();
}

// ---- Its turns.

void UcxWorker::Kick() {
  if (scheduled_) return;
  scheduled_ = true;
  loop_.Post(life_.Guard([this] {
    scheduled_ = false;
    Turn();
  }));
}

void UcxWorker::Turn() {
  if (!Progress()) return Kick();
  // Armed, its descriptor tells of everything from here on.
  const ucs_status_t status = ucp_worker_arm(worker_);
  if (status == UCS_ERR_BUSY) Kick();
}

bool UcxWorker::Progress() {
  for (int step = 0; step < kStepsPerTurn; ++step) {
    if (ucp_worker_progress(worker_) == 0) return true;
  }
  return false;
}

// ---- Connections.

UcxWorker::Connection* UcxWorker::Open(Receiver& receiver) {
  const std::uint64_t number = ++next_;
  auto connection = std::make_unique<Connection>();
  connection->worker = this;
  connection->number = number;
  connection->receiver = &receiver;
  return (connections_[number] = std::move(connection)).get();
}

std::uint64_t UcxWorker::number(const Connection& connection) { return connection.number; }

UcxWorker::Receiver* UcxWorker::Find(std::uint64_t link) const {
  const auto found = connections_.find(link);
  return found == connections_.end() ? nullptr : found->second->receiver;
}

absl::Status UcxWorker::Connect(Connection& connection, std::span<const std::byte> peer,
                                std::uint64_t peer_link) {
  connection.peer_link = peer_link;
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(peer.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = Failed;
  params.err_handler.arg = &connection;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &connection.endpoint);
  Kick();
  return FromUcs(status, "connecting by UCX");
}

void UcxWorker::Close(Connection* connection) {
  connection->receiver = nullptr;
  if (connection->endpoint == nullptr) return Forget(connection);
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  param.cb.send = Closed;
  param.user_data = connection;
  // Its failure releases the endpoint, too.
  const ucs_status_ptr_t request = ucp_ep_close_nbx(connection->endpoint, &param);
  if (!UCS_PTR_IS_PTR(request)) Forget(connection);
  Kick();
}

void UcxWorker::Forget(Connection* connection) { connections_.erase(connection->number); }

void UcxWorker::Closed(void* request, ucs_status_t, void* connection) {
  auto* const closed = static_cast<Connection*>(connection);
  ucp_request_free(request);
  closed->worker->Forget(closed);
}

void UcxWorker::Failed(void* connection, ucp_ep_h, ucs_status_t status) {
  auto* const failed = static_cast<Connection*>(connection);
  if (failed->receiver != nullptr) failed->receiver->OnBroken(FromUcs(status, "UCX"));
}

// ---- Frames that go.

std::list<UcxWorker::Operation>::iterator UcxWorker::AddOperation(std::uint64_t link,
                                                                  UcxBuffer buffer) {
  operations_.emplace_front();
  const auto operation = operations_.begin();
  operation->worker = this;
  operation->link = link;
  operation->buffer = std::move(buffer);
  operation->self = operation;
  return operation;
}

void UcxWorker::Send(Connection& connection, UcxHeader header, UcxBuffer payload) {
  header.link = connection.peer_link;
  header.sequence = connection.sequence++;
  header.payload_bytes = static_cast<std::uint32_t>(payload.size);
  Operation& operation = *AddOperation(connection.number, std::move(payload));
  operation.bytes = operation.buffer.size + kUcxMessageCost;
  operation.header = EncodeUcxHeader(header);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = Sent;
  param.user_data = &operation;
  const ucs_status_ptr_t request = ucp_am_send_nbx(
      connection.endpoint, kMessageId, operation.header.data(), operation.header.size(),
      operation.buffer.memory.get(), operation.buffer.size, &param);
  Kick();
  if (!UCS_PTR_IS_PTR(request)) EndSend(operation, UCS_PTR_RAW_STATUS(request));
}

void UcxWorker::Sent(void* request, ucs_status_t status, void* operation) {
  ucp_request_free(request);
  auto& sent = *static_cast<Operation*>(operation);
  sent.worker->EndSend(sent, status);
}

void UcxWorker::EndSend(Operation& operation, ucs_status_t status) {
  Give(std::move(operation.buffer));
  const std::size_t bytes = operation.bytes;
  Receiver* const receiver = Find(operation.link);
  operations_.erase(operation.self);
  if (receiver == nullptr) return;
  if (status == UCS_OK) {
    receiver->OnSent(bytes);
  } else {
    receiver->OnBroken(FromUcs(status, "sending by UCX"));
  }
}

// ---- Frames that come.

ucs_status_t UcxWorker::ActiveMessage(void* self, const void* header, std::size_t header_bytes,
                                      void* data, std::size_t length,
                                      const ucp_am_recv_param_t* param) {
  return static_cast<UcxWorker*>(self)->OnActiveMessage(
      {static_cast<const std::byte*>(header), header_bytes}, data, length, *param);
}

ucs_status_t UcxWorker::OnActiveMessage(std::span<const std::byte> bytes, void* data,
                                        std::size_t length, const ucp_am_recv_param_t& param) {
  // Without a number there is nobody to blame; a link that is gone is not to blame.
  if (bytes.size() != kUcxHeaderBytes) return UCS_OK;
  const auto fixed = bytes.first<kUcxHeaderBytes>();
  Receiver* const receiver = Find(UcxLinkNumber(fixed));
  if (receiver == nullptr) return UCS_OK;
  const absl::StatusOr<UcxHeader> header = DecodeUcxHeader(fixed);
  if (!header.ok() || header->payload_bytes != length) {
    receiver->OnBroken(header.ok()
                           ? absl::InvalidArgumentError(absl::StrCat(
                                 "a frame of ", length, " bytes that says ", header->payload_bytes))
                           : header.status());
    return UCS_OK;
  }
  if ((param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) {
    return Announce(*receiver, *header, data);
  }
  receiver->OnFrame(*header, {static_cast<const std::byte*>(data), length});
  return UCS_OK;
}

ucs_status_t UcxWorker::Announce(Receiver& receiver, const UcxHeader& header, void* data) {
  if (!receiver.OnAnnounced(header)) return UCS_OK;
  Operation& operation = *AddOperation(header.link, Take(header.payload_bytes));
  operation.sequence = header.sequence;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = Received;
  param.user_data = &operation;
  const ucs_status_ptr_t request = ucp_am_recv_data_nbx(
      worker_, data, operation.buffer.memory.get(), operation.buffer.size, &param);
  if (!UCS_PTR_IS_PTR(request)) EndReceive(operation, UCS_PTR_RAW_STATUS(request));
  return UCS_INPROGRESS;
}

void UcxWorker::Received(void* request, ucs_status_t status, std::size_t, void* operation) {
  ucp_request_free(request);
  auto& received = *static_cast<Operation*>(operation);
  received.worker->EndReceive(received, status);
}

void UcxWorker::EndReceive(Operation& operation, ucs_status_t status) {
  UcxBuffer buffer = std::move(operation.buffer);
  const std::uint64_t sequence = operation.sequence;
  Receiver* const receiver = Find(operation.link);
  operations_.erase(operation.self);
  if (receiver != nullptr && status == UCS_OK) {
    receiver->OnPayload(sequence, std::move(buffer));
  } else {
    Give(std::move(buffer));
    if (receiver != nullptr) receiver->OnBroken(FromUcs(status, "receiving by UCX"));
  }
}

// ---- Buffers.

UcxBuffer UcxWorker::Take(std::size_t bytes) {
  const bool pooled = bytes >= kPooledBytesMin && bytes <= kUcxDataBytesMax;
  if (pooled && !free_.empty()) {
    UcxBuffer buffer = std::move(free_.back());
    free_.pop_back();
    buffer.size = bytes;
    return buffer;
  }
  const std::size_t capacity = pooled ? kUcxDataBytesMax : bytes;
  return {.memory = std::make_unique_for_overwrite<std::byte[]>(capacity),
          .size = bytes,
          .capacity = capacity};
}

void UcxWorker::Give(UcxBuffer buffer) {
  if (buffer.capacity == kUcxDataBytesMax && free_.size() < kPooledMax) {
    free_.push_back(std::move(buffer));
  }
}

}  // namespace penstock::transfer
