#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A prefill and a decode worker, two processes, driven as a coordinator and a gateway would:

    tests/worker_pair_test.py PENSTOCK

The tokens and log-probabilities of random requests must be those of `penstock generate` alone, over
shared memory and over TCP; a prefill worker that is stopped or killed in the middle of a handoff must
cost its request and nothing else. Needs grpcio and grpcio-tools; exits with 77 where they are missing.
"""

import concurrent.futures
import json
import os
import pathlib
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
    from grpc_tools import protoc
except ImportError:
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/golden/tiny/llama3"
PENSTOCK = None
VOCAB = 256  # Ids below exist in every tiny model.
LONGEST = 440  # Of what fits a tiny model's context, with room for an answer.
WAIT_S = 60


def load_stubs(folder):
    """penstock.v1 as Python modules."""
    protos = sorted(str(p) for p in (ROOT / "proto/penstock/v1").glob("*.proto"))
    include = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    code = protoc.main(["protoc", f"-I{ROOT}/proto", f"-I{include}", f"--python_out={folder}",
                        f"--grpc_python_out={folder}", *protos])
    assert code == 0, "protoc failed"
    sys.path.insert(0, str(folder))
    from penstock.v1 import common_pb2, worker_pb2, worker_pb2_grpc
    return common_pb2, worker_pb2, worker_pb2_grpc


class Worker:
    """One worker process."""

    def __init__(self, role, folder, *flags):
        self.ready = pathlib.Path(folder) / f"{role}-{random.getrandbits(64):x}.json"
        self.process = subprocess.Popen(
            [PENSTOCK, role, "--model", MODEL, "--socket-folder", folder, "--ready-file", self.ready,
             *flags, *([] if "--threads" in flags else ["--threads", "1"])],
            stderr=subprocess.PIPE, text=True)
        # Its log is drained, and shown when it does not start.
        self.log = []
        self.drain = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.drain.start()
        seen = threading.Event()
        deadline = time.monotonic() + WAIT_S
        while not self.ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log
            seen.wait(0.01)
        self.info = json.loads(self.ready.read_text())
        self.channel = grpc.insecure_channel(self.info["grpc"])
        self.stub = WORKER_GRPC.WorkerStub(self.channel)

    def end(self, how=signal.SIGTERM):
        self.channel.close()
        self.process.send_signal(how)
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.drain.join()
            self.process.stderr.close()


def chains(tokens, block_tokens=32):
    """As base/key.h specifies."""
    import hashlib
    import struct
    parent = hashlib.sha256(b"penstock.chain.v1" + struct.pack("<II", block_tokens, 0)).digest()[:16]
    result = []
    for begin in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = struct.pack(f"<{block_tokens}i", *tokens[begin:begin + block_tokens])
        parent = hashlib.sha256(parent + block).digest()[:16]
        result.append(parent)
    return result


def make_request(rng):
    prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randrange(2, 200))]
    if rng.random() < 0.5:
        prompt = SHARED[:rng.randrange(1, len(SHARED))] + prompt
    sampling = COMMON.SamplingParams(temperature=rng.choice([0, 0.8]), seed=rng.getrandbits(32),
                                     presence_penalty=0.3, logprobs=1)
    return prompt, sampling, rng.randrange(1, 40)


NUMBER = iter(range(1, 1 << 30))


def ask(prefill, decode, request, timeout_s=30, local=False, amid_prefill=None):
    """(tokens with log-probabilities, Done) of one request over both workers."""
    prompt, sampling, max_tokens = request
    attempt = COMMON.Attempt(request_id=f"request-{next(NUMBER)}", number=1)
    moved = prompt[:-1]
    timeout = dict(timeout={"seconds": timeout_s})
    grant = decode.stub.Reserve(WORKER.ReserveRequest(
        attempt=attempt, tokens=len(moved), chains=chains(moved), local=local, **timeout)).grant
    stream = decode.stub.Decode(WORKER.DecodeRequest(
        attempt=attempt, prompt=prompt, sampling=sampling, n=1, max_tokens=max_tokens,
        ignore_eos=True))
    if not local:
        prefill.stub.StartPrefill(WORKER.StartPrefillRequest(
            attempt=attempt, grant=grant, decode_name=decode.info["name"],
            decode_transfer_address=decode.info["transfer"], **timeout))
        done = prefill.stub.Prefill.future(WORKER.PrefillRequest(
            attempt=attempt, tokens=moved, **timeout), timeout=timeout_s)
        if amid_prefill:
            amid_prefill()
    tokens, last = [], WORKER.DecodeResponse.Done()
    for response in stream:
        tokens += [(o.token.token, o.token.logprob) for o in response.outputs]
        last.MergeFrom(response.done)
    if not local:
        done.result()
    return tokens, last


class WorkerPairTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.workers = []

    def tearDown(self):
        for worker in self.workers:
            if worker.process.poll() is None:
                self.assertEqual(worker.end(), 0, worker.log)
        self.folder.cleanup()

    def start(self, role, *flags):
        self.workers.append(Worker(role, self.folder.name, *flags))
        return self.workers[-1]

    def alone(self, decode, requests):
        """The same requests on one worker, without a handoff."""
        return [ask(None, decode, r, local=True)[0] for r in requests]

    def check_pair(self, transfer, seed):
        rng = random.Random(seed)
        requests = [make_request(rng) for _ in range(24)]
        prefill = self.start("prefill", "--transfer", transfer, "--chunk-tokens", "64")
        decode = self.start("decode", "--transfer", transfer)
        single = self.start("decode", "--transfer", transfer, "--threads", "2")
        want = self.alone(single, requests)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            got = list(pool.map(lambda r: ask(prefill, decode, r), requests))
        self.assertEqual([tokens for tokens, _ in got], want)
        self.assertTrue(any(done.handoff.bytes > 0 for _, done in got))
        self.assertEqual({done.handoff.transport for _, done in got if done.handoff.bytes},
                         {transfer})
        self.assertTrue(all(done.handoff.peer in ("", prefill.info["name"]) for _, done in got))

    def test_shared_memory(self):
        self.check_pair("shm", 1)

    def test_tcp(self):
        self.check_pair("tcp", 2)

    def test_describe_names_what_must_agree(self):
        prefill, decode = self.start("prefill"), self.start("decode", "--activations", "f32")
        mine, other = ({f.name: f.value for f in answer.identity.fields} for answer in
                       (w.stub.Describe(WORKER.DescribeRequest()) for w in (prefill, decode)))
        self.assertEqual(list(mine), ["protocol", "model", "weights", "kv format", "numerics"])
        self.assertEqual(mine["weights"], other["weights"])
        self.assertEqual(len(mine["weights"]), 64)
        self.assertNotEqual(mine["numerics"], other["numerics"])
        with self.assertRaises(grpc.RpcError) as failed:
            ask(prefill, decode, make_request(random.Random(3)), timeout_s=5)
        self.assertIn(failed.exception.code(), (grpc.StatusCode.DEADLINE_EXCEEDED,
                                                grpc.StatusCode.FAILED_PRECONDITION))

    def test_a_killed_prefill_worker_costs_its_request_alone(self):
        decode = self.start("decode")
        single = self.start("decode")
        rng = random.Random(5)
        request = ([rng.randrange(3, VOCAB) for _ in range(LONGEST)],) + make_request(rng)[1:]
        want = self.alone(single, [request])
        for how in (signal.SIGKILL, signal.SIGSTOP):
            self.strike_amid_handoff(decode, request, how, want)
            # The next attempt, with another prefill worker, gives the tokens there always were.
            tokens, _ = ask(self.start("prefill"), decode, request)
            self.assertEqual([tokens], want)

    def strike_amid_handoff(self, decode, request, how, want):
        """Sends the signal to a prefill worker at random moments of a handoff, until it hits one."""
        rng = random.Random(6)
        for _ in range(20):
            # Small chunks make it last.
            victim = self.start("prefill", "--chunk-tokens", "16")
            wait_s = rng.uniform(0, 0.02)
            try:
                tokens, _ = ask(victim, decode, request, timeout_s=3,
                                amid_prefill=lambda: (threading.Event().wait(wait_s),
                                                        victim.process.send_signal(how)))
            except grpc.RpcError as failed:
                self.assertIn(failed.code(), (grpc.StatusCode.UNAVAILABLE,
                                              grpc.StatusCode.DEADLINE_EXCEEDED))
                return
            finally:
                victim.process.send_signal(signal.SIGCONT)
                if how == signal.SIGKILL:
                    victim.end(signal.SIGKILL)
            self.assertEqual([tokens], want)  # It was done before the signal came.
        self.fail("no signal came during a handoff")

    def test_bad_requests_name_field_and_numbers(self):
        decode = self.start("decode")
        for bad, want in (
                (WORKER.ReserveRequest(), "length of attempt.request_id must be from 1 to 64, got 0"),
                (WORKER.ReserveRequest(attempt={"request_id": "a", "number": 1}),
                 "tokens must be from 1 to"),
                (WORKER.ReserveRequest(attempt={"request_id": "a", "number": 1}, tokens=5,
                                       chains=[b"x"]), "length of a chain must be from 16 to 16"),
                (WORKER.ReserveRequest(attempt={"request_id": "a", "number": 1}, tokens=64,
                                       timeout={"seconds": 1}), "chains must name the 2 full blocks")):
            with self.assertRaises(grpc.RpcError) as failed:
                decode.stub.Reserve(bad)
            self.assertEqual(failed.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn(want, failed.exception.details())
        with self.assertRaises(grpc.RpcError) as failed:
            list(decode.stub.Decode(WORKER.DecodeRequest(attempt={"request_id": "b", "number": 1})))
        self.assertEqual(failed.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        for n in (2**31 - 1, -1):
            attempt = COMMON.Attempt(request_id=f"answers{n}", number=1)
            decode.stub.Reserve(WORKER.ReserveRequest(attempt=attempt, tokens=1, local=True,
                                                      timeout={"seconds": 5}))
            with self.assertRaises(grpc.RpcError) as failed:
                list(decode.stub.Decode(WORKER.DecodeRequest(attempt=attempt, prompt=[5, 6], n=n,
                                                             max_tokens=1)))
            self.assertEqual(failed.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertEqual(failed.exception.details(), f"n must be from 1 to 64, got {n}")


if __name__ == "__main__":
    PENSTOCK = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as stubs:
        COMMON, WORKER, WORKER_GRPC = load_stubs(stubs)
        SHARED = [random.Random(7).randrange(3, VOCAB) for _ in range(120)]
        unittest.main(verbosity=2)
