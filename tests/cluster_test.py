#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A whole cluster on this machine, asked as clients ask:

    tests/cluster_test.py PENSTOCK

Whatever dies in between, an answer has the tokens and log-probabilities of `penstock generate` alone, or
ends with a clear status. Needs grpcio and grpcio-tools; exits with 77 where they are missing.
"""

import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

try:
    import grpc
    import grpc_tools  # noqa: F401
except ImportError:
    sys.exit(77)

import processes
from processes import MODEL, WAIT_S, await_true

PENSTOCK = None
WORDS = "a river of stone and light, 7 birds; The end? no: (begin) x=1 wheel turns under water".split()


def load_stubs(folder):
    processes.load_stubs(folder)
    from penstock.v1 import (cluster_pb2, cluster_pb2_grpc, common_pb2, inference_pb2,
                             inference_pb2_grpc)
    return cluster_pb2, cluster_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc


class Process(processes.Process):
    def __init__(self, folder, name, *command):
        super().__init__(folder, name, [PENSTOCK, *command])


class Cluster:
    """A coordinator, workers, and a gateway: within the coordinator, or a process of its own."""

    def __init__(self, prefills, decodes, separate_gateway=False):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.number = iter(range(1 << 30))
        self.processes = []
        serve = ["--serve", f"tiny={MODEL}"]
        self.coordinator = self.add("coordinator", "coordinator", *([] if separate_gateway else serve))
        self.address = self.coordinator.ready()["grpc"]
        self.server = self.address
        if separate_gateway:
            self.server = self.add("gateway", "gateway", "--coordinator", self.address,
                                   *serve).ready()["grpc"]
        self.prefills = [self.worker("prefill", *flags) for flags in prefills]
        self.decodes = [self.worker("decode", *flags) for flags in decodes]
        self.channels = [grpc.insecure_channel(a) for a in (self.server, self.address)]
        self.inference = INFERENCE_GRPC.InferenceStub(self.channels[0])
        self.cluster = CLUSTER_GRPC.ClusterStub(self.channels[1])
        await_true("all workers and pairs", self.whole)

    def add(self, name, *command):
        self.processes.append(Process(self.folder.name, name, *command))
        return self.processes[-1]

    def worker(self, role, *flags):
        name = f"{role}-{next(self.number)}"
        return self.add(name, role, "--coordinator", self.address, "--model", MODEL, "--model-name",
                        "tiny", "--name", name, "--socket-folder", self.folder.name,
                        "--threads", "1", *flags)

    def status(self):
        return self.cluster.Status(CLUSTER.StatusRequest(), wait_for_ready=True, timeout=WAIT_S)

    def whole(self):
        status = self.status()
        ready = [w.name for w in status.workers if w.state == "ready"]
        pairs = [p for p in status.pairs if p.transport]
        return (len(ready) == len(self.prefills) + len(self.decodes)
                and len(pairs) == len(self.prefills) * len(self.decodes)
                and any(m.ready for m in self.models()))

    def models(self):
        return self.inference.ListModels(INFERENCE.ListModelsRequest(), wait_for_ready=True,
                                         timeout=WAIT_S).models

    def at_rest(self):
        """Nobody holds anything of any request."""
        status = self.status()
        live = [w for w in status.workers if w.state == "ready"]
        return not status.requests and not any(
            w.bytes_held or w.bytes_draining or w.sequences or w.prefills for w in live)

    def end(self):
        for channel in self.channels:
            channel.close()
        codes = {}
        for process in reversed(self.processes):
            if process.process.poll() is None:
                codes[process.name] = process.end()
        self.folder.cleanup()
        return codes


def make_request(rng, prompt_words=60, max_tokens=60):
    """A request as keywords that both ask() and alone() take."""
    return dict(prompt=" ".join(rng.choices(WORDS, k=rng.randrange(1, prompt_words))),
                n=rng.choice([1, 1, 1, 2, 3]), max_tokens=rng.randrange(1, max_tokens),
                temperature=rng.choice([0, 0.8]), seed=rng.getrandbits(32),
                stop=rng.choice([[], [], ["e", "zz"]]))


def alone(request, *flags):
    """The choices by `penstock generate`: (tokens with log-probabilities, text, why it ended)."""
    stops = [f"--stop={s}" for s in request["stop"]]
    printed = subprocess.run(
        [PENSTOCK, "generate", "--model", MODEL, "--raw", "--json", "--logprobs", "1", "--threads",
         "1", "--ignore-eos", "--presence-penalty", "0.3", "--top-k", "0", "--top-p", "1", "--min-p",
         "0", "--temperature", str(request["temperature"]), "--seed", str(request["seed"]), "-n",
         str(request["n"]), "--max-tokens", str(request["max_tokens"]), *stops, *flags, "--",
         request["prompt"]], check=True, stdout=subprocess.PIPE).stdout
    answer = json.loads(printed)
    return [([(t["token"], t["logprob"]) for t in c["logprobs"]], c["text"], c["finish_reason"])
            for c in answer.get("choices", [answer])]


def to_proto(request, **more):
    options = INFERENCE.GenerateOptions(
        sampling=COMMON.SamplingParams(temperature=request["temperature"], seed=request["seed"],
                                       presence_penalty=0.3, logprobs=1),
        n=request["n"], max_tokens=request["max_tokens"], stop=request["stop"], ignore_eos=True)
    return INFERENCE.GenerateRequest(text=request["prompt"], options=options, **more)


def read(stream, n, on_delta=None):
    """(choices as of alone(), usage) of a stream."""
    tokens, text, ends, usage = [[] for _ in range(n)], [""] * n, [None] * n, None
    for response in stream:
        kind = response.WhichOneof("event")
        if kind == "delta":
            delta = response.delta
            tokens[delta.choice] += [(t.token, t.logprob) for t in delta.tokens]
            text[delta.choice] += delta.text
            now_ns = time.time_ns()  # Of this host, as the worker's.
            assert (0 < delta.sampled_unix_ns < now_ns) == (len(delta.tokens) > 0), delta
            if on_delta:
                on_delta()
        elif kind == "finished":
            assert ends[response.finished.choice] is None
            ends[response.finished.choice] = {1: "stop", 2: "length"}[response.finished.reason]
        elif kind == "usage":
            usage = response.usage
    return list(zip(tokens, text, ends)), usage


def ask(cluster, request, on_delta=None, **more):
    return read(cluster.inference.Generate(to_proto(request, **more), timeout=WAIT_S), request["n"],
                on_delta)


class ClusterTest(unittest.TestCase):
    def start(self, *args, **kwargs):
        cluster = Cluster(*args, **kwargs)
        self.clusters.append(cluster)
        return cluster

    def setUp(self):
        self.clusters = []

    def tearDown(self):
        all_codes = [cluster.end() for cluster in self.clusters]  # Whatever one of them says.
        for cluster, codes in zip(self.clusters, all_codes):
            logs = [p.log[-10:] for p in cluster.processes if codes.get(p.name)]
            self.assertEqual(set(codes.values()) - {0}, set(), (codes, logs))

    def run_while(self, cluster, requests, strike):
        """All requests at once, with strike() called amid them; all must be as if alone. Returns by
        how many attempts they were answered."""
        wants = [alone(r) for r in requests]
        begun = threading.Semaphore(0)
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            answers = [pool.submit(ask, cluster, r, begun.release) for r in requests]
            begun.acquire()
            strike()
            got = [a.result() for a in answers]
        for (choices, _), want in zip(got, wants):
            self.assertEqual(choices, want)
        return [usage.attempts for _, usage in got]

    def test_answers_are_those_of_one_engine(self):
        """Clusters of random shapes: workers, chunks, pages, transports; some requests are cancelled."""
        for seed, dtype, pages in ((0, "f16", [1, 4, 8, 16, 32]), (1, "f16", [1, 4, 8, 16, 32]),
                                   (2, "f16", [1, 4, 8, 16, 32]), (3, "int8", [4, 8, 16, 32])):
            rng = random.Random(seed)

            def worker():
                return ["--chunk-tokens", rng.choice([16, 48, 64, 512]),
                        "--page-tokens", rng.choice(pages), "--kv-dtype", dtype]

            prefills = [worker() + ["--transfer", rng.choice(["shm,tcp", "tcp"])]
                        for _ in range(rng.randint(1, 3))]
            decodes = [worker() for _ in range(rng.randint(1, 3))]
            with self.subTest(seed=seed, prefills=prefills, decodes=decodes):
                self.check_answers(self.start(prefills, decodes), rng, "--kv-dtype", dtype)

    def check_answers(self, cluster, rng, *flags):
        requests = [make_request(rng) for _ in range(20)]
        wants = [alone(r, *flags) for r in requests]

        def run(index):
            if index % 4 != 3:
                return ask(cluster, requests[index])[0]
            stream = cluster.inference.Generate(to_proto(requests[index]), timeout=WAIT_S)
            left = rng.randrange(6)
            for count, _ in enumerate(stream):
                if count >= left:
                    stream.cancel()
                    return None
            return None

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            got = list(pool.map(run, range(len(requests))))
        for choices, want in zip(got, wants):
            if choices is not None:
                self.assertEqual(choices, want)
        await_true("nothing is held", cluster.at_rest)

    def test_a_worker_of_another_kv_type_is_refused(self):
        cluster = self.start([[]], [[]])
        for flags, want in ((["--kv-dtype", "int8"], r"kv format.* int8.* f16"),
                            (["--kv-dtype", "int8", "--store-codec", "planes"],
                             "--store-codec with --kv-dtype int8: codec planes takes no int8 KV; raw does"),
                            (["--kv-dtype", "int8", "--page-tokens", "2"],
                             "page_tokens must be a multiple of 4 with int8 KV, got 2")):
            with self.subTest(flags=flags):
                refused = subprocess.run(
                    [PENSTOCK, "prefill", "--coordinator", cluster.address, "--model", MODEL, "--model-name",
                     "tiny", "--name", "other", "--socket-folder", cluster.folder.name, "--threads", "1",
                     *flags], capture_output=True, text=True, timeout=WAIT_S)
                self.assertEqual(refused.returncode, 1, refused.stderr)
                self.assertRegex(refused.stderr, want)

    def test_a_killed_decode_worker(self):
        cluster = self.start([[], []], [[], []])
        rng = random.Random(2)
        for strike in (signal.SIGKILL, signal.SIGSTOP):
            for _ in range(10):
                victim = cluster.decodes[0]

                def hit():
                    for process in cluster.decodes:
                        process.process.send_signal(signal.SIGSTOP)
                    victim.process.send_signal(strike)
                    for process in cluster.decodes[1:]:
                        process.process.send_signal(signal.SIGCONT)

                requests = [make_request(rng, max_tokens=200) | {"max_tokens": 300, "stop": []}
                            for _ in range(4)]
                attempts = self.run_while(cluster, requests, hit)
                victim.end(signal.SIGKILL)
                cluster.decodes = [cluster.decodes[1], cluster.worker("decode")]
                await_true("a new decode worker", cluster.whole)
                if max(attempts) > 1:
                    break
            else:
                self.fail("no signal came amid a stream")
        await_true("nothing is held", cluster.at_rest)

    def test_a_killed_prefill_worker(self):
        cluster = self.start([["--chunk-tokens", "16"]] * 2, [[], []])
        rng = random.Random(3)
        for strike in (signal.SIGKILL, signal.SIGSTOP):
            victim = cluster.prefills[0]
            requests = [make_request(rng, prompt_words=90) for _ in range(12)]
            self.run_while(cluster, requests, lambda: victim.process.send_signal(strike))
            requests = [make_request(rng, prompt_words=90) for _ in range(4)]
            self.run_while(cluster, requests, lambda: None)
            victim.end(signal.SIGKILL)
            cluster.prefills = [cluster.prefills[1], cluster.worker("prefill", "--chunk-tokens", "16")]
            await_true("a new prefill worker", cluster.whole)
        await_true("nothing is held", cluster.at_rest)

    def test_a_killed_coordinator(self):
        cluster = self.start([[]], [[]], separate_gateway=True)
        rng = random.Random(4)
        request = make_request(rng) | {"n": 1, "max_tokens": 400, "stop": []}
        stream = cluster.inference.Generate(to_proto(request), timeout=WAIT_S)
        first = [next(stream), next(stream)]  # Started, and a token.
        decode = cluster.decodes[0].process
        decode.send_signal(signal.SIGSTOP)
        cluster.coordinator.end(signal.SIGKILL)
        await_true("the gateway has seen it", lambda: not any(m.ready for m in cluster.models()))
        with self.assertRaises(grpc.RpcError) as failed:
            ask(cluster, request)
        self.assertEqual(failed.exception.code(), grpc.StatusCode.UNAVAILABLE)
        decode.send_signal(signal.SIGCONT)
        self.assertEqual(read(iter(first + list(stream)), 1)[0], alone(request))
        cluster.coordinator = cluster.add("coordinator", "coordinator", "--port",
                                          cluster.address.rsplit(":", 1)[1])
        await_true("all have joined again", cluster.whole)
        self.assertEqual(ask(cluster, request)[0], alone(request))
        await_true("nothing is held", cluster.at_rest)

    def test_no_worker_left_is_said_at_once(self):
        cluster = self.start([[]], [[]])
        request = make_request(random.Random(5)) | {"n": 1, "max_tokens": 400, "stop": []}
        stream = cluster.inference.Generate(to_proto(request), timeout=WAIT_S)
        next(stream)
        cluster.decodes[0].end(signal.SIGKILL)
        for call in (stream, cluster.inference.Generate(to_proto(request), timeout=WAIT_S)):
            with self.assertRaises(grpc.RpcError) as failed:
                list(call)
                ask(cluster, request)  # It was done before the signal came.
            self.assertEqual(failed.exception.code(), grpc.StatusCode.UNAVAILABLE)

    def test_hostile_requests_hurt_nobody(self):
        cluster = self.start([[]], [[]])
        good = make_request(random.Random(6))
        wrong = grpc.StatusCode.INVALID_ARGUMENT

        def message(**more):
            return INFERENCE.GenerateRequest(text="x", **more)

        def options(**more):
            return message(options=INFERENCE.GenerateOptions(**more))

        cases = [
            (INFERENCE.GenerateRequest(), wrong, "prompt must be text or tokens, got none"),
            (message(model="none"), grpc.StatusCode.NOT_FOUND, "no model 'none'; there is: tiny"),
            (message(request_id="a b"), wrong, "request_id must be printable ASCII"),
            (message(request_id="r" * 65), wrong, "length of request_id must be from 1 to 64, got 65"),
            (options(n=65), wrong, "n must be from 1 to 64, got 65"),
            (options(n=-1), wrong, "n must be from 1 to 64, got -1"),
            (options(max_tokens=-5), wrong, "max_tokens must be from 0"),
            (options(stop=["x"] * 17), wrong, "number of stop strings must be from 0 to 16, got 17"),
            (options(stop=[""]), wrong, "length of stop[0] must be from 1 to 256, got 0"),
            (options(sampling=COMMON.SamplingParams(temperature=float("nan"))), wrong,
             "temperature must be from 0 to 100, got nan"),
            (options(sampling=COMMON.SamplingParams(logit_bias={999999: 1})), wrong,
             "logit_bias must be token ids from 0 to"),
            (INFERENCE.GenerateRequest(tokens=INFERENCE.TokenList(ids=[1, -7])), wrong,
             "prompt must be token ids from 0 to"),
            (INFERENCE.GenerateRequest(text="long " * 1000), wrong,
             "tokens, the context of model 'tiny' is 512"),
            (INFERENCE.GenerateRequest(text="x" * ((16 << 20) + 1)), wrong,
             "length of prompt must be from 0 to 16777216, got 16777217"),
        ]
        for request, code, words in cases:
            with self.subTest(words), self.assertRaises(grpc.RpcError) as failed:
                list(cluster.inference.Generate(request, timeout=WAIT_S))
            self.assertEqual(failed.exception.code(), code)
            self.assertIn(words, failed.exception.details())
        with self.assertRaises(grpc.RpcError) as failed:
            list(cluster.inference.Chat(INFERENCE.ChatRequest(
                messages=[INFERENCE.ChatMessage(role="root", content="x")])))
        self.assertEqual(failed.exception.code(), wrong)
        self.assertIn("role must be system, user, assistant or tool, got 'root'",
                      failed.exception.details())
        # Bytes that are no message at all.
        raw = cluster.channels[0].unary_stream("/penstock.v1.Inference/Generate",
                                               request_serializer=lambda b: b)
        for junk in (b"\xff" * 100, b"\x0a\x05ab", os.urandom(1000)):
            with self.assertRaises(grpc.RpcError):
                list(raw(junk, timeout=WAIT_S))
        self.assertEqual(ask(cluster, good)[0], alone(good))
        await_true("nothing is held", cluster.at_rest)

    def test_commands_with_a_server(self):
        cluster = self.start([[]], [[]])

        def run(*command, text=None):
            return subprocess.run([PENSTOCK, *command], input=text, capture_output=True, text=True,
                                  check=False)

        here, there = ["--model", MODEL], ["--server", cluster.server]
        for command in (["generate", "--raw", "--seed", "5", "--max-tokens", "30", "a river"],
                        ["generate", "--seed", "5", "--max-tokens", "30", "--system", "be", "brief"],
                        ["generate", "--raw", "-n", "2", "--seed", "6", "--max-tokens", "9", "x"],
                        ["tokenize", "--pieces", "a river, <|begin_of_text|>"],
                        ["tokenize", "--json", "--no-special", "--no-bos", "<|begin_of_text|>"]):
            local, remote = run(*command, *here), run(*command, *there)
            self.assertEqual((remote.returncode, remote.stdout), (local.returncode, local.stdout),
                             remote.stderr)
            self.assertEqual(remote.returncode, 0, remote.stderr)
        both = [json.loads(run("generate", "--raw", "--json", "--logprobs", "2", "--seed", "1",
                               "--max-tokens", "20", "x y", *where).stdout) for where in (here, there)]
        for answer in both:
            del answer["ttft_ms"], answer["tokens_per_s"]
        self.assertEqual(*both)
        chat = ["chat", "--seed", "3", "--max-tokens", "12"]
        talk = "hello\n/retry\nand again\n"
        self.assertEqual(run(*chat, *there, text=talk).stdout, run(*chat, *here, text=talk).stdout)
        wrong = run("generate", "--model", "other", "x", *there)
        self.assertEqual(wrong.returncode, 1)
        self.assertIn("the server has no model 'other'; it has: tiny", wrong.stderr)
        split = run("generate", "x", *there, "--tp", "3")
        self.assertEqual(split.returncode, 2)
        self.assertRegex(split.stderr, "--server.*--tp|--tp.*--server")
        nobody = run("generate", "x", "--server", "127.0.0.1:1")
        self.assertEqual(nobody.returncode, 1)
        self.assertIn("127.0.0.1:1: ", nobody.stderr)


if __name__ == "__main__":
    PENSTOCK = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as stubs:
        CLUSTER, CLUSTER_GRPC, COMMON, INFERENCE, INFERENCE_GRPC = load_stubs(stubs)
        unittest.main(verbosity=2)
