// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_service.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "grpcpp/grpcpp.h"
#include "kvstore/node/store_chores.h"
#include "kvstore/node/store_proto_service.h"
#include "penstock/v1/store.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/reply.h"

namespace penstock::kvstore {
namespace {

constexpr std::size_t kListPiece = 512;  // Copies looked at in one turn of the loop.

// All copies of that name: two of them would need chains that were made for it.
std::vector<BlockKey> KeysNamed(const TierSet& tiers, const CopyName& name) {
  std::vector<BlockKey> keys;
  std::optional<BlockKey> after;
  while (true) {
    const std::vector<TierSet::Listed> listed = tiers.ListFrom(name, after, 1);
    if (listed.empty() || NameOf(listed[0].copy.key) != name) return keys;
    keys.push_back(listed[0].copy.key);
    after = keys.back();
  }
}

// A unary call that takes long; deletes itself when gRPC is done with it.
class LongCall final : public grpc::ServerUnaryReactor {
 public:
  std::function<bool()> wanted() const {
    return [cancelled = cancelled_] { return !cancelled->load(); };
  }

 private:
  void OnCancel() override { cancelled_->store(true); }
  void OnDone() override { delete this; }

  // Shared with the chore.
  const std::shared_ptr<std::atomic<bool>> cancelled_ = std::make_shared<std::atomic<bool>>(false);
};

// One List call; deletes itself when gRPC is done with it. The next message is made, on the loop, when
// the last has been taken.
class ListCall final : public grpc::ServerWriteReactor<v1::ListResponse> {
 public:
  ListCall(EpollLoop& loop, TierSet& tiers, absl::StatusOr<ListFilter> filter)
      : loop_(loop), tiers_(tiers), filter_(std::move(filter)) {
    if (filter_.ok()) {
      loop_.Post([this] { Look(); });
    } else {
      Finish(rpc::ToGrpc(filter_.status()));
    }
  }

 private:
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "nobody reads"));
    loop_.Post([this] { Look(); });
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

  void Look() {
    if (cancelled_) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "nobody reads"));
    message_.Clear();
    const std::vector<TierSet::Listed> piece =
        over_ ? std::vector<TierSet::Listed>()
              : tiers_.ListFrom(filter_->begin, after_, kListPiece);
    over_ = over_ || piece.size() < kListPiece;
    for (const TierSet::Listed& listed : piece) {
      after_ = listed.copy.key;
      if (told_ == filter_->most || !filter_->HasPrefix(NameOf(listed.copy.key))) {
        over_ = true;
        break;
      }
      if (!filter_->Wants(listed)) continue;
      ToProto(listed, message_.add_copies());
      ++told_;
    }
    if (message_.copies_size() > 0) return StartWrite(&message_);
    if (over_) return Finish(grpc::Status::OK);
    loop_.Post([this] { Look(); });
  }

  EpollLoop& loop_;
  TierSet& tiers_;
  const absl::StatusOr<ListFilter> filter_;
  std::atomic<bool> cancelled_ = false;
  // On the loop.
  std::optional<BlockKey> after_;
  std::uint64_t told_ = 0;
  bool over_ = false;
  v1::ListResponse message_;
};

// One Verify call; likewise. Progress that comes while some is being written takes its place.
class VerifyCall final : public grpc::ServerWriteReactor<v1::VerifyResponse> {
 public:
  VerifyCall(EpollLoop& loop, StoreChores& chores) : loop_(loop) {
    loop_.Post([this, &chores] {
      chores.Verify({.wanted = [this] { return !cancelled_; },
                     .on_progress = [this](const StoreChores::Sum& sum) { Tell(sum); },
                     .done =
                         [this](const absl::Status& status, const StoreChores::Sum& sum) {
                           over_ = true;
                           status_ = status;
                           Tell(sum);
                         }});
    });
  }

 private:
  void OnWriteDone(bool ok) override {
    if (!ok) cancelled_ = true;
    loop_.Post([this] {
      writing_ = false;
      Write();
    });
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

  void Tell(const StoreChores::Sum& sum) {
    waiting_ = sum;
    Write();
  }
  void Write() {
    if (writing_) return;
    if (!waiting_.has_value() || cancelled_ || !status_.ok()) {
      if (over_) Finish(rpc::ToGrpc(status_));
      return;
    }
    ToProto(*waiting_, &message_);
    waiting_.reset();
    writing_ = true;
    StartWrite(&message_);
  }

  EpollLoop& loop_;
  std::atomic<bool> cancelled_ = false;
  // On the loop.
  std::optional<StoreChores::Sum> waiting_;
  bool writing_ = false;
  bool over_ = false;
  absl::Status status_;
  v1::VerifyResponse message_;
};

class StoreService final : public v1::Store::CallbackService {
 public:
  explicit StoreService(StoreNode& node) : node_(node), began_(node.loop().Now()) {
    node_.loop().Run(
        [this] { chores_ = std::make_unique<StoreChores>(node_.loop(), node_.tiers()); });
  }
  ~StoreService() override {
    node_.loop().Run([this] { chores_.reset(); });
  }

  grpc::ServerUnaryReactor* Stat(grpc::CallbackServerContext* context, const v1::StatRequest*,
                                 v1::StatResponse* response) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    node_.loop().Post([this, response, reactor] {
      ToProto(node_, response);
      rpc::ToProto(node_.loop().Now() - began_, response->mutable_up());
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

  grpc::ServerWriteReactor<v1::ListResponse>* List(grpc::CallbackServerContext*,
                                                   const v1::ListRequest* request) override {
    return new ListCall(node_.loop(), node_.tiers(), FromProto(*request));
  }

  grpc::ServerUnaryReactor* Pin(grpc::CallbackServerContext* context, const v1::PinRequest* request,
                                v1::PinResponse* response) override {
    const absl::StatusOr<std::vector<CopyName>> names = NamesFromProto(request->names());
    if (!names.ok()) return rpc::Reply(context, names.status());
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    node_.loop().Post([this, names = *names, unpin = request->unpin(), response, reactor] {
      std::uint32_t changed = 0;
      for (const CopyName& name : names) {
        bool any = false;
        for (const BlockKey& key : KeysNamed(node_.tiers(), name)) {
          any = (unpin ? node_.tiers().Unpin(key) : node_.tiers().Pin(key)) || any;
        }
        changed += any ? 1 : 0;
      }
      response->set_changed(changed);
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const v1::DeleteRequest* request,
                                   v1::DeleteResponse* response) override {
    if (request->all()) {
      if (request->names().empty()) return DeleteAll(response);
      return rpc::Reply(context,
                        absl::InvalidArgumentError("all copies, or those named: not both"));
    }
    const absl::StatusOr<std::vector<CopyName>> names = NamesFromProto(request->names());
    if (!names.ok()) return rpc::Reply(context, names.status());
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    node_.loop().Post([this, names = *names, response, reactor] {
      struct Open {
        std::size_t left = 1;
        absl::Status status;
      };
      const auto open = std::make_shared<Open>();
      const auto end = [open, reactor](const absl::Status& status) {
        if (!absl::IsNotFound(status)) open->status.Update(status);
        if (--open->left == 0) reactor->Finish(rpc::ToGrpc(open->status));
      };
      for (const CopyName& name : names) {
        for (const BlockKey& key : KeysNamed(node_.tiers(), name)) {
          ++open->left;
          node_.tiers().Delete(key, [response, end](const absl::Status& status) {
            if (status.ok()) response->set_deleted(response->deleted() + 1);
            end(status);
          });
        }
      }
      end(absl::OkStatus());
    });
    return reactor;
  }

  grpc::ServerUnaryReactor* Flush(grpc::CallbackServerContext*, const v1::FlushRequest*,
                                  v1::FlushResponse* response) override {
    auto* const call = new LongCall;
    node_.loop().Post([this, call, response] {
      chores_->Flush(
          {.wanted = call->wanted(),
           .done = [call, response](const absl::Status& status, const StoreChores::Sum& sum) {
             response->set_bytes(sum.bytes);
             call->Finish(rpc::ToGrpc(status));
           }});
    });
    return call;
  }

  grpc::ServerWriteReactor<v1::VerifyResponse>* Verify(grpc::CallbackServerContext*,
                                                       const v1::VerifyRequest*) override {
    return new VerifyCall(node_.loop(), *chores_);
  }

 private:
  grpc::ServerUnaryReactor* DeleteAll(v1::DeleteResponse* response) {
    auto* const call = new LongCall;
    node_.loop().Post([this, call, response] {
      chores_->DeleteAll(
          {.wanted = call->wanted(),
           .done = [call, response](const absl::Status& status, const StoreChores::Sum& sum) {
             response->set_deleted(sum.deleted);
             call->Finish(rpc::ToGrpc(status));
           }});
    });
    return call;
  }

  StoreNode& node_;
  const MonoTime began_;
  std::unique_ptr<StoreChores> chores_;  // On the loop.
};

}  // namespace

std::unique_ptr<grpc::Service> MakeStoreService(StoreNode& node) {
  return std::make_unique<StoreService>(node);
}

}  // namespace penstock::kvstore
