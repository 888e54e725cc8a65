#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A prefill and a decode worker, two processes that join a coordinator played here, which with a gateway
played here drives them:

    tests/worker_pair_test.py PENSTOCK

The tokens and log-probabilities of random requests must be those of `penstock generate` alone, over
shared memory, TCP and UCX; a prefill worker that is stopped or killed in the middle of a handoff must
cost its request and nothing else. Needs grpcio and grpcio-tools; exits with 77 where they are missing.
"""

import concurrent.futures
import queue
import random
import signal
import sys
import tempfile
import threading
import unittest

try:
    import grpc
    import grpc_tools  # noqa: F401
except ImportError:
    sys.exit(77)

import processes
from processes import MODEL, WAIT_S

PENSTOCK = None
VOCAB = 256  # Ids below exist in every tiny model.
LONGEST = 440  # Of what fits a tiny model's context, with room for an answer.
ONE_SEQUENCE = str(18 * 12288)  # Bytes of KV: blocks of the tiny model, fewer than two times LONGEST.


def load_stubs(folder):
    processes.load_stubs(folder)
    from penstock.v1 import (cluster_pb2, cluster_pb2_grpc, common_pb2, worker_pb2, worker_pb2_grpc)
    return common_pb2, worker_pb2, worker_pb2_grpc, cluster_pb2, cluster_pb2_grpc


def make_coordinator():
    """A Cluster service that does what the test says, and remembers what workers say."""

    class Coordinator(CLUSTER_GRPC.ClusterServicer):
        def __init__(self):
            self.changed = threading.Condition()
            self.commands = {}  # Name of a worker -> what it is still to be told.
            self.registered = {}
            self.loads = {}
            self.events = {}  # (worker, request, number) -> those that came.
            self.pairs = {}  # (prefill, decode) -> the last result.
            self.blocks = {}  # Worker -> chain -> ends a prefix.
            self.status = CLUSTER.StatusResponse()
            self.next_block = {}
            self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(32))
            CLUSTER_GRPC.add_ClusterServicer_to_server(self, self.server)
            self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
            self.server.start()

        def Join(self, requests, context):
            register = next(requests).register
            name, commands = register.name, queue.Queue()
            joined = CLUSTER.WorkerCommand.Joined(report_every={"nanos": 50_000_000},
                                                  ttl={"seconds": 5})
            commands.put(CLUSTER.WorkerCommand(joined=joined))
            with self.changed:
                self.registered[name] = register
                self.commands[name] = commands
                self.blocks[name], self.next_block[name] = {}, 1
                self.changed.notify_all()
            threading.Thread(target=self.read, args=(name, requests, commands)).start()
            while (command := commands.get()) is not None:
                yield command

        def read(self, name, requests, commands):
            try:
                for message in requests:
                    with self.changed:
                        getattr(self, f"on_{message.WhichOneof('message')}")(name, message)
                        self.changed.notify_all()
            except grpc.RpcError:
                pass  # The worker was killed.
            commands.put(None)

        def on_load(self, name, message):
            self.loads[name] = message.load

        def on_leave(self, name, message):
            del self.registered[name]

        def on_attempt(self, name, message):
            event = message.attempt
            key = (name, event.attempt.request_id, event.attempt.number)
            self.events.setdefault(key, []).append(event)

        def on_preflight(self, name, message):
            self.pairs[name, message.preflight.peer] = message.preflight

        def on_blocks(self, name, message):
            assert message.blocks.first == self.next_block[name], "numbered without holes"
            self.next_block[name] += len(message.blocks.events)
            known = self.blocks[name]
            for event in message.blocks.events:
                if event.kind == CLUSTER.BlockEvent.KIND_STORED:
                    known[event.chain] = event.ends_prefix
                elif event.kind == CLUSTER.BlockEvent.KIND_REMOVED:
                    del known[event.chain]

        def wait(self, what):
            """The first true value of `what`, which is asked after every message."""
            with self.changed:
                value = self.changed.wait_for(what, WAIT_S)
            assert value, "nothing came in time"
            return value

        def tell(self, name, **command):
            self.wait(lambda: name in self.commands)
            self.commands[name].put(CLUSTER.WorkerCommand(**command))

        def said(self, name, attempt, *kinds):
            """What a worker says of an attempt that is one of `kinds`."""
            key = (name, attempt.request_id, attempt.number)
            return self.wait(lambda: next(
                (e for e in self.events.get(key, []) if e.kind in kinds), None))

        def Status(self, request, context):
            return self.status

        def stop(self):
            self.server.stop(None)
            for commands in self.commands.values():
                commands.put(None)

    return Coordinator()


class Worker(processes.Process):
    """One worker process, ready."""

    def __init__(self, role, folder, coordinator, *flags):
        super().__init__(folder, role, [
            PENSTOCK, role, "--coordinator", coordinator, "--model", MODEL, "--model-name", "tiny",
            "--socket-folder", folder, *flags, *([] if "--threads" in flags else ["--threads", "1"])])
        self.info = self.ready()
        self.name = self.info["name"]
        self.channel = grpc.insecure_channel(self.info["grpc"])
        self.stub = WORKER_GRPC.WorkerStub(self.channel)

    def end(self, how=signal.SIGTERM):
        self.channel.close()
        return super().end(how)


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


class Refused(Exception):
    """A worker's error, as it told the coordinator."""

    def __init__(self, error):
        super().__init__(error.message)
        self.code = error.code


def reserve(coordinator, decode, prompt, hold_s=30, local=False):
    """(attempt, grant) of a new request. Raises Refused."""
    attempt = COMMON.Attempt(request_id=f"request-{next(NUMBER)}", number=1)
    coordinator.tell(decode.name, reserve=dict(
        attempt=attempt, prompt_tokens=len(prompt), chains=b"".join(chains(prompt)), local=local,
        hold_for={"seconds": hold_s}))
    kinds = CLUSTER.AttemptEvent
    event = coordinator.said(decode.name, attempt, kinds.KIND_GRANTED, kinds.KIND_REFUSED)
    if event.kind == kinds.KIND_REFUSED:
        raise Refused(event.error)
    return attempt, event.grant


def ask(coordinator, prefill, decode, request, timeout_s=30, local=False, amid_prefill=None):
    """(tokens with log-probabilities, Done) of one request over both workers."""
    prompt, sampling, max_tokens = request
    kinds = CLUSTER.AttemptEvent
    attempt, grant = reserve(coordinator, decode, prompt, timeout_s, local)
    first = decode if local else prefill
    start = dict(
        attempt=attempt, grant=dict(epoch=decode.info["epoch"], number=grant),
        decode_name=decode.name, decode_transfer_address=decode.info["transfer"],
        prompt_tokens=len(prompt), hold_for={"seconds": timeout_s},
        last_chain=b"".join(chains(prompt[:-1])[-1:]))
    if local:  # Else it may come before or after the tokens.
        coordinator.tell(first.name, start=start)
        coordinator.said(first.name, attempt, kinds.KIND_ACCEPTED)
    stream = decode.stub.Decode(WORKER.DecodeRequest(
        attempt=attempt, prompt=prompt, sampling=sampling, n=1, max_tokens=max_tokens,
        ignore_eos=True))
    if not local:
        coordinator.tell(first.name, start=start)
    if not local:
        done = prefill.stub.Prefill.future(WORKER.PrefillRequest(
            attempt=attempt, tokens=prompt[:-1], timeout={"seconds": timeout_s}), timeout=timeout_s)
        if amid_prefill:
            amid_prefill()
    tokens, last = [], WORKER.DecodeResponse.Done()
    for response in stream:
        tokens += [(o.token.token, o.token.logprob) for o in response.outputs]
        last.MergeFrom(response.done)
    if not local:
        done.result()
        coordinator.said(prefill.name, attempt, kinds.KIND_COMPUTED)
    # The whole story, in order.
    coordinator.said(decode.name, attempt, kinds.KIND_FINISHED)
    story = coordinator.events[decode.name, attempt.request_id, 1]
    want = [kinds.KIND_GRANTED, *([kinds.KIND_ACCEPTED] if local else []), kinds.KIND_ADOPTED,
            kinds.KIND_FINISHED]
    assert [e.kind for e in story] == want, story
    return tokens, last


class WorkerPairTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.workers = []
        self.coordinator = make_coordinator()

    def tearDown(self):
        for worker in self.workers:
            if worker.process.poll() is None:
                self.assertEqual(worker.end(), 0, worker.log)
                self.assertNotIn(worker.name, self.coordinator.registered)
        self.coordinator.stop()
        self.folder.cleanup()

    def start(self, role, *flags):
        self.workers.append(Worker(role, self.folder.name, self.coordinator.address, *flags))
        return self.workers[-1]

    def alone(self, decode, requests):
        """The same requests on one worker, without a handoff."""
        return [ask(self.coordinator, None, decode, r, local=True)[0] for r in requests]

    def check_pair(self, transfer, seed):
        print(f"{transfer}: seed {seed}", flush=True)  # Should it hang.
        rng = random.Random(seed)
        requests = [make_request(rng) for _ in range(24)]
        prefill = self.start("prefill", "--transfer", transfer, "--chunk-tokens", "64")
        decode = self.start("decode", "--transfer", transfer)
        single = self.start("decode", "--transfer", transfer, "--threads", "2")
        want = self.alone(single, requests)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            got = list(pool.map(lambda r: ask(self.coordinator, prefill, decode, r), requests))
        self.assertEqual([tokens for tokens, _ in got], want)
        self.assertTrue(any(done.handoff.bytes > 0 for _, done in got))
        self.assertEqual({done.handoff.transport for _, done in got if done.handoff.bytes},
                         {transfer})
        self.assertTrue(all(done.handoff.peer in ("", prefill.name) for _, done in got))
        # Both know what they hold, and nothing is held for anyone.
        longest = max((prompt for prompt, _, _ in requests), key=len)
        for worker in (prefill, decode):
            known = self.coordinator.blocks[worker.name]
            self.coordinator.wait(lambda: all(known.get(c) for c in chains(longest[:-1])))
            self.at_rest(worker)

    def at_rest(self, worker):
        """Some report from here on says so."""
        loads = self.coordinator.loads
        before = loads[worker.name]
        self.coordinator.wait(lambda: loads[worker.name] is not before and not (
            loads[worker.name].live or loads[worker.name].bytes_held or
            loads[worker.name].bytes_draining))

    def preflight(self, prefill, decode):
        pair = (prefill.name, decode.name)
        self.coordinator.tell(prefill.name, preflight=dict(
            peer=decode.name, peer_epoch=decode.info["epoch"],
            peer_transfer_address=decode.info["transfer"]))
        return self.coordinator.wait(lambda: self.coordinator.pairs.get(pair))

    def test_preflight_moves_bytes(self):
        decode = self.start("decode")
        for transport in ("shm", "tcp"):
            prefill = self.start("prefill", "--transfer", transport)
            result = self.preflight(prefill, decode)
            self.assertEqual(result.error.code, 0, result)
            self.assertEqual(result.transport, transport)
            self.assertGreater(result.round_trip.ToNanoseconds(), 0)
            self.assertGreater(result.bytes_per_s, 0)
            # Asked again, by another coordinator say, it does not measure again.
            with self.coordinator.changed:
                del self.coordinator.pairs[prefill.name, decode.name]
            self.assertEqual(self.preflight(prefill, decode), result)
            self.at_rest(prefill)
        self.at_rest(decode)

    def test_shared_memory(self):
        self.check_pair("shm", 1)

    def test_tcp(self):
        self.check_pair("tcp", 2)

    def test_ucx(self):
        try:
            self.check_pair("ucx", 3)
        except AssertionError as error:
            if "built without UCX" not in str(error):
                raise
            self.skipTest("built without UCX")

    def test_describe_names_what_must_agree(self):
        prefill, decode = self.start("prefill"), self.start("decode", "--activations", "f32")
        mine, other = ({f.name: f.value for f in answer.identity.fields} for answer in
                       (w.stub.Describe(WORKER.DescribeRequest()) for w in (prefill, decode)))
        self.assertEqual(list(mine), ["protocol", "model", "weights", "kv format", "numerics"])
        self.assertEqual(mine["weights"], other["weights"])
        self.assertEqual(len(mine["weights"]), 64)
        self.assertNotEqual(mine["numerics"], other["numerics"])
        result = self.preflight(prefill, decode)
        self.assertEqual(result.error.code, grpc.StatusCode.FAILED_PRECONDITION.value[0])
        for value in ("numerics", mine["numerics"], other["numerics"]):
            self.assertIn(value, result.error.message)
        with self.assertRaises(grpc.RpcError) as failed:
            ask(self.coordinator, prefill, decode, make_request(random.Random(3)), timeout_s=5)
        self.assertIn(failed.exception.code(), (grpc.StatusCode.DEADLINE_EXCEEDED,
                                                grpc.StatusCode.FAILED_PRECONDITION))

    def test_a_killed_prefill_worker_costs_its_request_alone(self):
        decode = self.start("decode", "--kv-bytes", ONE_SEQUENCE)  # Its pages are all of it.
        single = self.start("decode")
        rng = random.Random(5)
        request = ([rng.randrange(3, VOCAB) for _ in range(LONGEST)],) + make_request(rng)[1:]
        want = self.alone(single, [request])
        for how in (signal.SIGKILL, signal.SIGSTOP):
            self.strike_amid_handoff(decode, request, how, want)
            # The next attempt, with another prefill worker, gives the tokens there always were.
            tokens, _ = ask(self.coordinator, self.start("prefill"), decode, request)
            self.assertEqual([tokens], want)

    def strike_amid_handoff(self, decode, request, how, want):
        """Sends the signal to a prefill worker at random moments of a handoff, until it hits one."""
        rng = random.Random(6)
        for _ in range(20):
            # Small chunks make it last.
            victim = self.start("prefill", "--chunk-tokens", "16")
            wait_s = rng.uniform(0, 0.02)
            try:
                tokens, _ = ask(self.coordinator, victim, decode, request, timeout_s=3,
                                amid_prefill=lambda: (threading.Event().wait(wait_s),
                                                        victim.process.send_signal(how)))
            except grpc.RpcError as failed:
                self.assertIn(failed.code(), (grpc.StatusCode.UNAVAILABLE,
                                              grpc.StatusCode.DEADLINE_EXCEEDED))
                if how == signal.SIGSTOP:
                    self.wake_amid_another(victim, decode)
                return
            finally:
                victim.process.send_signal(signal.SIGCONT)
                if how == signal.SIGKILL:
                    victim.end(signal.SIGKILL)
            self.assertEqual([tokens], want)  # It was done before the signal came.
        self.fail("no signal came during a handoff")

    def wake_amid_another(self, victim, decode):
        """The victim's grant has ended; it goes on while another request fills the same pages."""
        rng = random.Random(7)
        other = ([rng.randrange(3, VOCAB) for _ in range(LONGEST)],) + make_request(rng)[1:]
        want = self.alone(self.workers[1], [other])
        tokens, _ = ask(self.coordinator, self.start("prefill", "--chunk-tokens", "16"), decode, other,
                        amid_prefill=lambda: victim.process.send_signal(signal.SIGCONT))
        self.assertEqual([tokens], want)

    def test_a_prompt_of_other_tokens_is_refused(self):
        """Else their KV would be kept under the names of those that were planned for."""
        prefill, decode = self.start("prefill"), self.start("decode")
        prompt = list(range(5, 75))
        attempt, grant = reserve(self.coordinator, decode, prompt)
        self.coordinator.tell(prefill.name, start=dict(
            attempt=attempt, grant=dict(epoch=decode.info["epoch"], number=grant),
            decode_name=decode.name, decode_transfer_address=decode.info["transfer"],
            prompt_tokens=len(prompt), hold_for={"seconds": 10},
            last_chain=chains(prompt)[-1]))
        with self.assertRaises(grpc.RpcError) as failed:
            prefill.stub.Prefill(WORKER.PrefillRequest(
                attempt=attempt, tokens=[9] + prompt[1:-1], timeout={"seconds": 10}))
        self.assertEqual(failed.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("69 tokens, is not the one that was planned for", failed.exception.details())
        self.coordinator.tell(decode.name, release=dict(attempt=attempt))
        self.at_rest(decode)

    def test_bad_requests_name_field_and_numbers(self):
        decode = self.start("decode")
        attempt = COMMON.Attempt(request_id="few-chains", number=1)
        kinds = CLUSTER.AttemptEvent
        self.coordinator.tell(decode.name, reserve=dict(attempt=attempt, prompt_tokens=65,
                                                        hold_for={"seconds": 1}))
        refused = self.coordinator.said(decode.name, attempt, kinds.KIND_REFUSED)
        self.assertEqual(refused.error.code, grpc.StatusCode.INVALID_ARGUMENT.value[0])
        self.assertIn("chains must name the 2 full blocks", refused.error.message)
        with self.assertRaises(Refused):
            reserve(self.coordinator, decode, [5])  # Nothing could come of one token.
        with self.assertRaises(grpc.RpcError) as failed:
            list(decode.stub.Decode(WORKER.DecodeRequest()))
        self.assertEqual(failed.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("length of attempt.request_id must be from 1 to 64, got 0",
                      failed.exception.details())
        with self.assertRaises(grpc.RpcError) as failed:
            list(decode.stub.Decode(WORKER.DecodeRequest(attempt={"request_id": "b", "number": 1})))
        self.assertEqual(failed.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        for n in (2**31 - 1, -1):
            attempt, _ = reserve(self.coordinator, decode, [5, 6], local=True)
            with self.assertRaises(grpc.RpcError) as failed:
                list(decode.stub.Decode(WORKER.DecodeRequest(attempt=attempt, prompt=[5, 6], n=n,
                                                             max_tokens=1)))
            self.assertEqual(failed.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertEqual(failed.exception.details(), f"n must be from 1 to 64, got {n}")
            # Wrong here is wrong everywhere: no other worker is to be tried.
            ended = self.coordinator.said(decode.name, attempt, kinds.KIND_FINISHED)
            self.assertEqual(ended.error.code, grpc.StatusCode.INVALID_ARGUMENT.value[0])
        self.at_rest(decode)


if __name__ == "__main__":
    PENSTOCK = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as stubs:
        COMMON, WORKER, WORKER_GRPC, CLUSTER, CLUSTER_GRPC = load_stubs(stubs)
        SHARED = [random.Random(7).randrange(3, VOCAB) for _ in range(120)]
        unittest.main(verbosity=2)
