// SPDX-License-Identifier: Apache-2.0
// The table of keys alone.
#include "launch/schema.h"

namespace penstock::launch {
namespace {

constexpr std::int64_t kTokensMax = 1 << 24;

// `least` and `most` of what has none are 0.
constexpr Key kKeys[] = {
    {.section = Section::kTop,
     .name = "model",
     .kind = ValueKind::kText,
     .about =
         "The one model: a GGUF file, a Hugging Face folder, or a name that `penstock model get` "
         "fetched. Requests know it by this name, without folders and `.gguf`"},
    {.section = Section::kTop,
     .name = "models",
     .kind = ValueKind::kStructure,
     .about = "Several models, instead of `model`: a list of the keys below"},
    {.section = Section::kTop,
     .name = "prefill",
     .kind = ValueKind::kStructure,
     .default_value = "1",
     .about = "Prefill workers of each model: their count, or the keys of a group of workers, or a "
              "list of groups. 0: decode workers compute the prompts themselves"},
    {.section = Section::kTop,
     .name = "decode",
     .kind = ValueKind::kStructure,
     .default_value = "1",
     .about = "Decode workers, likewise"},
    {.section = Section::kTop,
     .name = "kvstore",
     .kind = ValueKind::kStructure,
     .default_value = "0",
     .about =
         "Store nodes, which keep the KV of prompts and answers in memory and on disk, for every "
         "worker to reuse: how many on each host that has workers, or the keys of a group of "
         "nodes, or a list of groups. 0: none, and blocks are reused where they were computed"},
    {.section = Section::kTop,
     .name = "gateway",
     .kind = ValueKind::kStructure,
     .default_value = "inside",
     .about = "`inside` the coordinator's process, or the count of gateways of their own (their "
              "running streams outlive a coordinator), or the keys of a group of gateways"},
    {.section = Section::kTop,
     .name = "coordinator_host",
     .kind = ValueKind::kName,
     .about = "Where the coordinator runs; the first of `hosts` where absent"},
    {.section = Section::kTop,
     .name = "hosts",
     .kind = ValueKind::kStructure,
     .about =
         "Names of machines and the numeric addresses where their processes listen, such as "
         "`a: 10.0.0.1`. Without it all runs on this machine, and nothing listens beyond loopback"},
    {.section = Section::kTop,
     .name = "secret_file",
     .kind = ValueKind::kText,
     .about =
         "For `kvstore`: a file with the cluster's secret, 16 to 4,096 bytes that its user alone "
         "may read, by which its processes know each other's frames. It must be there, with the "
         "same bytes, on every host; relative to this file's folder. On one host `penstock up` "
         "makes one where this is absent"},
    {.section = Section::kTop,
     .name = "policy",
     .kind = ValueKind::kWord,
     .words = "cost least-loaded round-robin",
     .default_value = "cost",
     .about = "How the coordinator chooses workers"},
    {.section = Section::kTop,
     .name = "transfer",
     .kind = ValueKind::kWordList,
     .words = "nccl shm ucx tcp",
     .default_value = "[nccl, shm, tcp]",
     .about = "How KV may move between workers, best first. `nccl` is for workers on GPUs, others "
              "pass over it; `shm` works within a host only; `ucx` needs a build with UCX. `nccl` "
              "and `ucx` want a network of trusted machines"},
    {.section = Section::kTop,
     .name = "block_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 1024,
     .default_value = "32",
     .about = "Tokens of a block, what is reused and moved as one: a power of two"},
    {.section = Section::kTop,
     .name = "ports",
     .kind = ValueKind::kStructure,
     .about = "Where clients find the cluster: the keys below"},
    {.section = Section::kTop,
     .name = "etcd",
     .kind = ValueKind::kStructure,
     .about =
         "Addresses `HOST:PORT` of etcd's members, one or a list. The coordinator keeps there who "
         "the workers are; without it nothing outlives the coordinator"},
    {.section = Section::kTop,
     .name = "etcd_prefix",
     .kind = ValueKind::kText,
     .default_value = "/penstock/",
     .about = "Of this deployment's keys in etcd; each that shares an etcd needs its own"},
    {.section = Section::kTop,
     .name = "standby",
     .kind = ValueKind::kStructure,
     .about =
         "Addresses of further coordinators, one or a list, that are started by hand and take over "
         "when the first one ends: gateways and workers know them too. Needs `etcd`"},
    {.section = Section::kTop,
     .name = "slo",
     .kind = ValueKind::kStructure,
     .about = "What answers should keep to, for the metrics; nothing is refused for its sake: the "
              "keys below"},
    {.section = Section::kModel,
     .name = "name",
     .kind = ValueKind::kName,
     .about = "As requests know it; must be there"},
    {.section = Section::kModel,
     .name = "path",
     .kind = ValueKind::kText,
     .about =
         "As `model` above; must be there. Relative to this file's folder where it is there, else "
         "to the current one"},
    {.section = Section::kWorkers,
     .name = "count",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 256,
     .default_value = "1",
     .about = "Workers of this group"},
    {.section = Section::kWorkers,
     .name = "model",
     .kind = ValueKind::kName,
     .about = "Of which model; of each where absent"},
    {.section = Section::kWorkers,
     .name = "host",
     .kind = ValueKind::kName,
     .about = "Where they run; the first of `hosts` where absent"},
    {.section = Section::kWorkers,
     .name = "device",
     .kind = ValueKind::kDevice,
     .words = "cpu cuda paced",
     .default_value = "cpu",
     .about =
         "`cuda` are NVIDIA GPUs of the host, one, or `tp` times `pp`, that `penstock up` chooses, "
         "near to each other and to the workers that they exchange KV with, and none twice while "
         "there are others; `--dry-run` says which and why. `cuda:1` is the second one, and "
         "`cuda:2,3` are for two shards or stages, or for two workers that divide them evenly; "
         "GPUs give the answers of `cpu`, and may serve a model together with it. `paced` takes "
         "the time of a model "
         "without computing it, to try clusters larger than the machine; its answers are "
         "nonsense, and all workers of a model are"},
    {.section = Section::kWorkers,
     .name = "threads",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 1024,
     .about = "Of each worker; an equal share of the host's CPUs where absent"},
    {.section = Section::kWorkers,
     .name = "cpus",
     .kind = ValueKind::kCpus,
     .about =
         "CPUs such as `0,2,4-7` that the workers of this group divide evenly among themselves, "
         "one thread on each; instead of `threads`"},
    {.section = Section::kWorkers,
     .name = "kv_bytes",
     .kind = ValueKind::kBytes,
     .about =
         "KV pool of each worker, such as `512MiB`; where absent what a context needs, at most "
         "1 GiB or half of the memory that is free"},
    {.section = Section::kWorkers,
     .name = "kv_dtype",
     .kind = ValueKind::kWord,
     .words = "f16 bf16 f32 int8",
     .default_value = "f16",
     .about =
         "Type of the KV cache; equal for all workers of a model. `int8` has a scale per token "
         "and head, takes about half of the memory, and is kept in stores by `codec: raw` alone"},
    {.section = Section::kWorkers,
     .name = "numerics",
     .kind = ValueKind::kWord,
     .words = "exact fast",
     .default_value = "exact",
     .about =
         "`exact`: an answer depends on its request alone, whichever workers it ran on and "
         "whatever ran beside it. `fast`, with `device: cuda` alone: products by whichever "
         "algorithm cuBLASLt picks for a batch, prompts attended to by cuDNN where it is found; "
         "the "
         "same request may get another answer in other company, or after a worker was lost; no KV "
         "is shared with `exact`. Equal for all workers of a model"},
    {.section = Section::kWorkers,
     .name = "pp",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 64,
     .default_value = "1",
     .about =
         "Pipeline parallel: stages of consecutive layers of the model in each worker, one after "
         "the other, each of `tp` shards; at most as many as layers. It changes no answer, and "
         "workers of a model may differ"},
    {.section = Section::kWorkers,
     .name = "tp",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 64,
     .default_value = "1",
     .about =
         "Tensor parallel: shards of the model in each worker, side by side, each on a GPU of its "
         "own, or with its share of the threads; workers of a model may differ. It divides the "
         "model's heads"},
    {.section = Section::kWorkers,
     .name = "tp_sum",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 64,
     .about =
         "Partial sums that products over what shards split are made of, a multiple of `tp`, which "
         "it is where absent: workers give the answers of `penstock generate` with the same "
         "`--tp-sum`; equal for all workers of a model"},
    {.section = Section::kWorkers,
     .name = "page_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 1024,
     .about =
         "Tokens of a page, a divisor of `block_tokens`; 32, or the block where that is smaller, "
         "where absent. Workers of a model may differ"},
    {.section = Section::kWorkers,
     .name = "context_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = kTokensMax,
     .about =
         "Longest prompt and answer together; the model's, or what the pool holds, where absent"},
    {.section = Section::kWorkers,
     .name = "chunk_tokens",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = kTokensMax,
     .default_value = "512",
     .about = "Prompt tokens computed at once; changes speed, never the answer"},
    {.section = Section::kWorkers,
     .name = "sequences",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 4096,
     .default_value = "16",
     .about = "Requests that run together in one worker at most"},
    {.section = Section::kStore,
     .name = "count",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 16,
     .default_value = "1",
     .about = "Nodes of this group on each of its hosts"},
    {.section = Section::kStore,
     .name = "host",
     .kind = ValueKind::kName,
     .about = "Where they run; every host that has workers where absent"},
    {.section = Section::kStore,
     .name = "host_bytes",
     .kind = ValueKind::kBytes,
     .about = "Memory of each node, such as `4GiB`, which the workers of its host map; 1 GiB, or "
              "half of what is free where that is less, where absent"},
    {.section = Section::kStore,
     .name = "disk",
     .kind = ValueKind::kText,
     .about =
         "Directory of the disk tier, made where it is not there; relative to this file's folder. "
         "Each node has a folder of its name in it, and finds its blocks there when it starts "
         "again. Without it there is no disk tier"},
    {.section = Section::kStore,
     .name = "disk_bytes",
     .kind = ValueKind::kBytes,
     .default_value = "8GiB",
     .about = "Of each node's files at most; 320MiB or more"},
    {.section = Section::kStore,
     .name = "policy",
     .kind = ValueKind::kWord,
     .words = "lru s3-fifo hybrid reuse-density",
     .default_value = "reuse-density",
     .about = "What a full tier lets go of first"},
    {.section = Section::kStore,
     .name = "write",
     .kind = ValueKind::kWord,
     .words = "through back",
     .default_value = "through",
     .about = "When blocks are written to disk: as they come (`through`), or as memory lets go of "
              "them (`back`)"},
    {.section = Section::kStore,
     .name = "admit",
     .kind = ValueKind::kWord,
     .words = "all second-use",
     .default_value = "all",
     .about = "Which blocks are kept: `all`, or those that were asked for before"},
    {.section = Section::kStore,
     .name = "codec",
     .kind = ValueKind::kWord,
     .words = "raw planes planes+zstd auto none",
     .default_value = "raw",
     .about = "How workers pack blocks, all without loss: `planes` are smaller and cost CPU time; "
              "`auto` by what each has measured to get a block to its readers soonest; "
              "`none` where only copies with a loss are kept; equal for all groups"},
    {.section = Section::kStore,
     .name = "lossy",
     .kind = ValueKind::kWord,
     .words = "none int8 k8v4 kivi4 kivi2 ans-fine ans-medium ans-coarse",
     .default_value = "none",
     .about = "A smaller copy of each block, with a loss, for requests that accept one (`reuse`); "
              "the models need a quality record (`penstock quality`); equal for all groups"},
    {.section = Section::kStore,
     .name = "max_kl",
     .kind = ValueKind::kText,
     .default_value = "0",
     .about = "A number from 0 to 0.05: copies with a loss are used up to this mean KL divergence, "
              "as the model's quality record has it; equal for all groups"},
    {.section = Section::kStore,
     .name = "worker_write",
     .kind = ValueKind::kWord,
     .words = "through back",
     .default_value = "through",
     .about = "When workers offer blocks to the node: as they are full (`through`), or as they "
              "leave the worker's memory (`back`); equal for all groups"},
    {.section = Section::kStore,
     .name = "remote",
     .kind = ValueKind::kText,
     .about =
         "A server that speaks the Redis protocol, `HOST:PORT` or `unix:PATH`: it takes what "
         "memory "
         "and disk let go of, for all nodes that name it. Needs `secret_file`. Without it there is "
         "no remote tier"},
    {.section = Section::kStore,
     .name = "remote_user",
     .kind = ValueKind::kText,
     .about = "Of the server's ACL; its default user where absent"},
    {.section = Section::kStore,
     .name = "remote_password_file",
     .kind = ValueKind::kText,
     .about = "A file with the password, that its user alone may read, on every host with such a "
              "node; relative to this file's folder"},
    {.section = Section::kStore,
     .name = "remote_write",
     .kind = ValueKind::kWord,
     .words = "through back",
     .default_value = "back",
     .about =
         "When blocks are put there: as they come (`through`), or as memory and disk let go of "
         "them (`back`)"},
    {.section = Section::kStore,
     .name = "tenants",
     .kind = ValueKind::kStructure,
     .about =
         "Limits of some tenants: a list of the keys below. Where memory or disk is full, who is "
         "over its limit loses blocks first"},
    {.section = Section::kTenant,
     .name = "salt_file",
     .kind = ValueKind::kText,
     .about =
         "A file with the salt that this tenant's requests have (`cache_salt`), 1 to 64 bytes that "
         "its user alone may read, on every host with such a node; relative to this file's folder. "
         "The salt stays with `penstock up` and the gateways: nodes are told a number made of it. "
         "Without it: requests that have no salt"},
    {.section = Section::kTenant,
     .name = "bytes",
     .kind = ValueKind::kBytes,
     .about = "Of each node's memory, and as much of its disk; must be there"},
    {.section = Section::kGateway,
     .name = "count",
     .kind = ValueKind::kCount,
     .least = 1,
     .most = 256,
     .default_value = "1",
     .about = "Gateways of this group"},
    {.section = Section::kGateway,
     .name = "host",
     .kind = ValueKind::kName,
     .about = "Where they run; the coordinator's host where absent"},
    {.section = Section::kPorts,
     .name = "grpc",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about =
         "gRPC of the gateway. 0, here and below, finds a free one. Several gateways of one host "
         "take this and those that follow"},
    {.section = Section::kPorts,
     .name = "http",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about = "OpenAI-compatible HTTP of the gateway, likewise"},
    {.section = Section::kPorts,
     .name = "metrics",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about =
         "Prometheus metrics of the coordinator's process; those of the others are found free, and "
         "are in the ready file"},
    {.section = Section::kPorts,
     .name = "coordinator",
     .kind = ValueKind::kCount,
     .least = 0,
     .most = 65535,
     .default_value = "0",
     .about =
         "gRPC of a coordinator whose gateways have processes of their own. With a gateway inside "
         "it is `grpc`. Must be given where there are several `hosts`"},
    {.section = Section::kSlo,
     .name = "ttft",
     .kind = ValueKind::kDuration,
     .about = "Arrival to first token, such as `500ms`"},
    {.section = Section::kSlo,
     .name = "tpot",
     .kind = ValueKind::kDuration,
     .about = "Between tokens, such as `50ms`"},
};

}  // namespace

std::span<const Key> Keys() { return kKeys; }

}  // namespace penstock::launch
