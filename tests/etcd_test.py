#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Coordinators that keep their state in a real etcd, and whoever dies of them:

    tests/etcd_test.py PENSTOCK

Answers have the tokens of `penstock generate` alone throughout. Needs grpcio, grpcio-tools and etcd (Debian:
etcd-server); exits with 77 where one is missing.
"""

import base64
import concurrent.futures
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

import cluster_test as base
from cluster_test import await_true, grpc

if shutil.which("etcd") is None:
    print("no etcd here (Debian: apt-get install etcd-server)")
    sys.exit(77)

SERVE = ["--serve", f"tiny={base.MODEL}"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Etcd:
    """One member, that can be killed and comes back with what it had."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-etcd-")
        self.client, self.peer = free_port(), free_port()
        self.address = f"127.0.0.1:{self.client}"
        self.process = None
        self.start()

    def start(self):
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.client, self.peer))
        self.process = subprocess.Popen(
            ["etcd", "--data-dir", self.folder.name + "/data", "--listen-client-urls", client,
             "--advertise-client-urls", client, "--listen-peer-urls", peer,
             "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await_true("etcd answers", self.healthy)

    def healthy(self):
        assert self.process.poll() is None, "etcd has ended"
        try:
            with urllib.request.urlopen(f"http://{self.address}/health", timeout=5) as answer:
                return json.load(answer)["health"] == "true"
        except (OSError, urllib.error.URLError):
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def keys(self, prefix="/penstock/"):
        """Key without the prefix -> value."""
        def encode(text):
            return base64.b64encode(text.encode()).decode()
        body = json.dumps({"key": encode(prefix), "range_end": encode(prefix[:-1] + "0")}).encode()
        with urllib.request.urlopen(f"http://{self.address}/v3/kv/range", body, timeout=5) as answer:
            found = json.load(answer).get("kvs", [])
        return {base64.b64decode(kv["key"]).decode()[len(prefix):]:
                base64.b64decode(kv.get("value", "")).decode() for kv in found}

    def end(self):
        self.kill()
        self.folder.cleanup()


class Cluster(base.Cluster):
    """Coordinators a, b, ..., of which one leads; a gateway, a prefill and a decode worker that know
    all of them."""

    def __init__(self, etcd, coordinators):
        self.etcd = etcd
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.number = iter(range(1 << 30))
        self.processes, self.channels, self.prefills, self.decodes = [], [], [], []
        self.coordinators = []
        for name in "abc"[:coordinators]:
            self.coordinators.append(self.start_coordinator(name, 0))
            await_true("a leader", self.leader)  # So that the first one leads.
        self.address = ",".join(c.address for c in self.coordinators)
        self.server = self.add("gateway", "gateway", "--coordinator", self.address,
                               *SERVE).ready()["grpc"]
        self.prefills = [self.worker("prefill")]
        self.decodes = [self.worker("decode")]
        self.channels = [grpc.insecure_channel(self.server)]
        self.inference = base.INFERENCE_GRPC.InferenceStub(self.channels[0])
        await_true("all workers and pairs", self.whole)

    def start_coordinator(self, name, port):
        process = self.add(name, "coordinator", "--name", name, "--port", port, "--etcd",
                           self.etcd.address, "--metrics-port", "0")
        info = process.ready()
        process.address, process.metrics = info["grpc"], info["metrics"]
        return process

    def ask_status(self, coordinator):
        with grpc.insecure_channel(coordinator.address) as channel:
            try:
                return base.CLUSTER_GRPC.ClusterStub(channel).Status(base.CLUSTER.StatusRequest(),
                                                                     timeout=5)
            except grpc.RpcError:
                return None

    def leader(self):
        """(coordinator, its status) of the one that leads; None: there is none now."""
        for coordinator in self.coordinators:
            status = self.ask_status(coordinator) if coordinator.process.poll() is None else None
            if status and not status.standby:
                return coordinator, status
        return None

    def whole(self):
        """The gateway, too, attends the one that leads."""
        return len(self.status().gateways) == 1 and super().whole()

    def status(self):
        found = self.leader()
        return found[1] if found else base.CLUSTER.StatusResponse()


def metric(coordinator, name):
    with urllib.request.urlopen(f"http://{coordinator.metrics}/metrics", timeout=5) as page:
        return float(re.search(rf"^{name} (\S+)$", page.read().decode(), re.MULTILINE).group(1))


def health(address):
    """What gRPC's health check says: 1 is SERVING, 2 NOT_SERVING."""
    with grpc.insecure_channel(address) as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
    return answer[1] if answer else 0


class Life:
    """One life of a worker that does nothing: its stream to a coordinator."""

    def __init__(self, address, name, epoch, term=0):
        self.over = threading.Event()
        self.channel = grpc.insecure_channel(address)
        self.stream = base.CLUSTER_GRPC.ClusterStub(self.channel).Join(
            self.messages(name, epoch, term), timeout=base.WAIT_S)

    def messages(self, name, epoch, term):
        register = base.CLUSTER.WorkerMessage.Register(
            name=name, session_epoch=epoch, role=base.CLUSTER.ROLE_DECODE, model="other",
            identity=base.COMMON.Identity(fields=[{"name": "weights", "value": "w"}]), block_tokens=32,
            endpoint="127.0.0.1:1", transfer_address="tcp:127.0.0.1:1", transfer_epoch=1,
            kv_bytes_per_token=1, blocks_total=1, sequences_max=1, term=term)
        yield base.CLUSTER.WorkerMessage(register=register)
        self.over.wait(base.WAIT_S)

    def joined(self):
        """The term that it is welcomed with; or the status code of the stream's end."""
        try:
            for command in self.stream:
                if command.WhichOneof("command") == "joined":
                    return command.joined.term
            return None
        except grpc.RpcError as error:
            return error.code()

    def end(self):
        self.over.set()
        self.stream.cancel()
        self.channel.close()


def make_fake_coordinator(terms):
    """A coordinator that welcomes with one term after another, and ends each stream once it knows
    whether it is followed."""

    class Coordinator(base.CLUSTER_GRPC.ClusterServicer):
        def __init__(self):
            self.left = {"worker": list(terms), "gateway": list(terms)}
            self.seen = {"worker": [], "gateway": []}  # [term, what was followed before, followed?]

        def serve(self, who, requests, context, followed_before, welcome, accepts):
            if not self.left[who]:
                context.abort(grpc.StatusCode.UNAVAILABLE, "enough")
            term = self.left[who].pop(0)
            seen = [term, followed_before, False]
            self.seen[who].append(seen)
            yield welcome(term)  # Who leaves now leaves this function here.
            seen[2] = accepts(requests)
            context.abort(grpc.StatusCode.UNAVAILABLE, "again")

        def Join(self, requests, context):
            def welcome(term):
                joined = base.CLUSTER.WorkerCommand.Joined(term=term)
                joined.report_every.FromMilliseconds(10)
                joined.ttl.FromSeconds(5)
                return base.CLUSTER.WorkerCommand(joined=joined)

            def accepts(messages):  # Who follows says its load at once.
                try:
                    return next(messages).WhichOneof("message") == "load"
                except (StopIteration, grpc.RpcError):
                    return False
            return self.serve("worker", requests, context, next(requests).register.term, welcome,
                              accepts)

        def Attend(self, requests, context):
            def welcome(term):
                return base.CLUSTER.GatewayEvent(attending=base.CLUSTER.GatewayEvent.Attending(
                    term=term, models=[base.CLUSTER.GatewayEvent.Model(
                        name="tiny", ready=True, block_tokens=32, context_tokens=512)]))

            def accepts(messages):  # Who follows asks; who does not ends the stream.
                try:
                    return next(messages).WhichOneof("message") is not None
                except (StopIteration, grpc.RpcError):
                    return False
            return self.serve("gateway", requests, context, next(requests).hello.term, welcome,
                              accepts)

    return Coordinator()


class TermTest(unittest.TestCase):
    """No etcd here: what a worker and a gateway do when coordinators contradict each other."""

    def test_no_lower_term_is_followed(self):
        fake = make_fake_coordinator([5, 4, 5, 0, 9, 8, 9])
        want = [[5, 0, True], [4, 5, False], [5, 5, True], [0, 5, False], [9, 5, True], [8, 9, False],
                [9, 9, True]]
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        base.CLUSTER_GRPC.add_ClusterServicer_to_server(fake, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            worker = base.Process(folder, "w", "prefill", "--coordinator", address, "--model", base.MODEL,
                                  "--model-name", "tiny", "--socket-folder", folder, "--threads", "1")
            gateway = base.Process(folder, "g", "gateway", "--coordinator", address, *SERVE)
            try:
                with grpc.insecure_channel(gateway.ready()["grpc"]) as channel:
                    inference = base.INFERENCE_GRPC.InferenceStub(channel)

                    def asked():
                        try:
                            list(inference.Generate(base.INFERENCE.GenerateRequest(text="x"), timeout=1))
                        except grpc.RpcError:
                            pass
                        return fake.seen["gateway"] == want
                    await_true(f"all terms were offered to the gateway: {fake.seen}", asked)
                await_true("and to the worker", lambda: fake.seen["worker"] == want)
            finally:
                self.assertEqual((worker.end(), gateway.end()), (0, 0))
                server.stop(None).wait()


class EtcdTest(unittest.TestCase):
    def setUp(self):
        self.etcd = Etcd()
        self.clusters, self.lives = [], []

    def tearDown(self):
        for life in self.lives:
            life.end()
        for cluster in self.clusters:
            codes = cluster.end()
            logs = [(p.name, p.log[-10:]) for p in cluster.processes if codes.get(p.name)]
            self.assertEqual(set(codes.values()) - {0}, set(), (codes, logs))
        self.etcd.end()

    def start(self, coordinators):
        cluster = Cluster(self.etcd, coordinators)
        self.clusters.append(cluster)
        return cluster

    def join(self, *args, **kwargs):
        self.lives.append(Life(*args, **kwargs))
        return self.lives[-1].joined()

    def check_answers(self, cluster, seed, count=3):
        for _ in range(count):
            request = base.make_request(random.Random(seed))
            self.assertEqual(base.ask(cluster, request)[0], base.alone(request))

    def check_terms(self, cluster):
        """No process has followed a term below one it followed before."""
        for process in cluster.processes:
            terms = [int(t) for line in process.log for t in re.findall(r"I joined .* term=(\d+)", line)]
            self.assertEqual(terms, sorted(terms), process.log)

    def test_what_is_kept_outlives_the_coordinator(self):
        cluster = self.start(1)
        keys = self.etcd.keys()
        self.assertEqual(json.loads(keys["leader"]),
                         {"name": "a", "address": cluster.coordinators[0].address})
        workers = {name: json.loads(keys[f"workers/{name}"]) for name in ("prefill-0", "decode-1")}
        self.assertEqual([w["role"] for w in workers.values()], ["prefill", "decode"])
        for name, worker in workers.items():
            self.assertEqual(worker["model"], "tiny")
            self.assertEqual(int(keys[f"epochs/{name}"]), worker["session_epoch"] - 1)
        old = cluster.coordinators[0]
        first_term = self.join(old.address, "x", 5)
        self.assertEqual(self.join(old.address, "x", 7), first_term)
        self.assertEqual(self.etcd.keys()["epochs/x"], "6")
        # What was followed elsewhere was followed; what nobody can have followed is not believed.
        self.assertEqual(self.join(old.address, "w", 3, term=first_term + 7), first_term + 8)
        self.assertEqual(self.join(old.address, "w", 3, term=2**64 - 1),
                         grpc.StatusCode.INVALID_ARGUMENT)
        old.end(signal.SIGKILL)
        port = old.address.rsplit(":", 1)[1]
        cluster.coordinators = [cluster.start_coordinator("a", port)]
        await_true("it leads again", cluster.leader)
        listed = {w.name: w.state for w in cluster.leader()[1].workers}
        self.assertEqual(set(listed), {"prefill-0", "decode-1", "w", "x"})
        self.assertEqual(listed["x"], "away")
        # A late message of a life that has ended; and the one that went on.
        self.assertEqual(self.join(old.address, "x", 5), grpc.StatusCode.ABORTED)
        self.assertGreater(self.join(old.address, "x", 7), first_term)
        await_true("all have joined again", cluster.whole)
        self.check_answers(cluster, 1)
        # In order, a worker leaves nothing but the number of its life.
        cluster.decodes.pop().end()
        await_true("its registration is gone", lambda: "workers/decode-1" not in self.etcd.keys())
        self.assertEqual(int(self.etcd.keys()["epochs/decode-1"]), workers["decode-1"]["session_epoch"])

    def test_a_deployment_that_names_it(self):
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            file = pathlib.Path(folder) / "c.yaml"
            file.write_text(f"model: {base.MODEL}\netcd: [{self.etcd.address}]\netcd_prefix: /mine/\n"
                            "prefill: {threads: 1, kv_bytes: 8MiB}\n"
                            "decode: {threads: 1, kv_bytes: 8MiB}\n", encoding="utf-8")
            up = base.Process(folder, "up", "up", file)
            try:
                ready = up.ready()
                self.assertTrue({"leader", "workers/prefill-1", "workers/decode-1"}
                                <= set(self.etcd.keys("/mine/")))
                with grpc.insecure_channel(ready["grpc"]) as channel:
                    models = base.INFERENCE_GRPC.InferenceStub(channel).ListModels(
                        base.INFERENCE.ListModelsRequest(), timeout=base.WAIT_S).models
                self.assertTrue(models[0].ready)
            finally:
                self.assertEqual(up.end(), 0)
            self.assertNotIn("leader", self.etcd.keys("/mine/"))

            def doctor():
                return subprocess.run([base.PENSTOCK, "doctor", file], capture_output=True, text=True,
                                      timeout=base.WAIT_S, check=False).stdout
            self.assertIn(f"etcd at {self.etcd.address} answers, version 3.4", doctor())
            self.etcd.kill()
            self.assertRegex(doctor(), f"fault +etcd at {self.etcd.address}: ")

    def test_a_standby_takes_over(self):
        cluster = self.start(2)
        first, second = cluster.coordinators
        self.assertEqual((health(first.address), health(second.address)), (1, 2))
        self.assertEqual([metric(c, "penstock_coordinator_leader") for c in (first, second)], [1, 0])
        standby = cluster.ask_status(second)
        self.assertTrue(standby.standby)
        self.assertEqual(standby.leader, first.address)
        told = subprocess.run([base.PENSTOCK, "status", "--server", second.address], check=True,
                              capture_output=True, text=True).stdout
        self.assertEqual(told, f"a standby; {first.address} leads\n")
        self.assertEqual(self.join(second.address, "y", 1), grpc.StatusCode.UNAVAILABLE)
        request = base.make_request(random.Random(4)) | {"n": 1, "max_tokens": 400, "stop": []}
        stream = cluster.inference.Generate(base.to_proto(request), timeout=base.WAIT_S)
        begun = [next(stream), next(stream)]  # Started, and a token.
        decode = cluster.decodes[0].process
        decode.send_signal(signal.SIGSTOP)
        first.end(signal.SIGKILL)
        decode.send_signal(signal.SIGCONT)
        self.assertEqual(base.read(iter(begun + list(stream)), 1)[0], base.alone(request))
        await_true("the other one leads all workers", cluster.whole)
        self.assertEqual(cluster.leader()[0], second)
        self.assertEqual(health(second.address), 1)
        self.check_answers(cluster, 2)
        # The first one comes back as a standby, and leads again when the other ends in order.
        cluster.coordinators[0] = cluster.start_coordinator("a", first.address.rsplit(":", 1)[1])
        await_true("it knows who leads",
                   lambda: cluster.ask_status(cluster.coordinators[0]).leader == second.address)
        self.assertEqual(second.end(), 0)
        await_true("the first one leads all workers", cluster.whole)
        self.check_answers(cluster, 3)
        await_true("nothing is held", cluster.at_rest)
        self.check_terms(cluster)

    def test_an_outage_of_etcd(self):
        cluster = self.start(2)
        leader = cluster.coordinators[0]
        rng = random.Random(5)
        requests = [base.make_request(rng) for _ in range(4)]
        wants = [base.alone(r) for r in requests]
        stop, answers = threading.Event(), []

        def traffic():
            while not stop.is_set():
                for request, want in zip(requests, wants):
                    answers.append(base.ask(cluster, request)[0] == want)

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            await_true("traffic", lambda: len(answers) >= 3)
            self.etcd.kill()
            await_true("it is noticed",
                       lambda: metric(leader, "penstock_coordinator_store_errors_total") >= 4)
            # Longer than its lease, for all that it knows; and workers come and go.
            cluster.decodes.append(cluster.worker("decode"))
            await_true("a worker has joined meanwhile", cluster.whole)
            self.assertGreaterEqual(metric(leader, "penstock_coordinator_store_late_total"), 1)
            failures = metric(leader, "penstock_coordinator_store_errors_total")
            await_true("a long outage", lambda: metric(
                leader, "penstock_coordinator_store_errors_total") >= failures + 8)
            seen = len(answers)
            await_true("answers go on", lambda: len(answers) >= seen + 3)
            self.etcd.start()
            await_true("what happened meanwhile is written",
                       lambda: "workers/decode-2" in self.etcd.keys())
            await_true("and what was there before", lambda: {
                "leader", "workers/prefill-0", "workers/decode-1"} <= set(self.etcd.keys()))
        finally:
            stop.set()
            thread.join()
        self.assertTrue(all(answers), answers)
        self.assertEqual(cluster.leader()[0], leader)
        self.assertTrue(cluster.ask_status(cluster.coordinators[1]).standby)
        self.assertEqual(sum("leads term" in line for line in leader.log), 1, leader.log)

    def test_a_store_that_has_lost_everything(self):
        cluster = self.start(1)
        term = cluster.leader()[1].term
        self.etcd.kill()
        shutil.rmtree(self.etcd.folder.name + "/data")
        self.etcd.start()
        await_true("all is written again", lambda: {
            "leader", "workers/prefill-0", "workers/decode-1"} <= set(self.etcd.keys()))
        self.check_answers(cluster, 6)
        # A new coordinator has a term of the new store, below the one that was followed.
        cluster.coordinators[0].end(signal.SIGKILL)
        cluster.coordinators = [
            cluster.start_coordinator("a", cluster.coordinators[0].address.rsplit(":", 1)[1])]
        await_true("all have joined again", cluster.whole)
        self.assertGreaterEqual(cluster.leader()[1].term, term)
        self.check_answers(cluster, 7)
        self.check_terms(cluster)

    def test_a_stopped_leader_leads_no_more(self):
        cluster = self.start(2)
        first, second = cluster.coordinators
        first.process.send_signal(signal.SIGSTOP)
        cluster.coordinators = [second]  # The first one does not answer.
        await_true("the other one leads all workers", cluster.whole)
        term = cluster.leader()[1].term
        self.check_answers(cluster, 8)
        first.process.send_signal(signal.SIGCONT)
        await_true("the first one sees it", lambda: any("leads no more" in line for line in first.log))
        status = cluster.ask_status(first)
        self.assertTrue(status.standby)
        self.assertEqual((status.leader, len(status.workers)), (second.address, 0))
        self.assertEqual(health(first.address), 2)
        self.assertEqual(metric(first, "penstock_coordinator_leader"), 0)
        self.assertEqual(self.join(first.address, "z", 1), grpc.StatusCode.UNAVAILABLE)
        self.assertTrue(cluster.whole(), "nobody has left the one that leads")
        self.assertEqual(cluster.leader()[1].term, term)
        self.check_answers(cluster, 9)
        await_true("nothing is held", cluster.at_rest)
        cluster.coordinators = [first, second]
        self.check_terms(cluster)


if __name__ == "__main__":
    base.PENSTOCK = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as stubs:
        (base.CLUSTER, base.CLUSTER_GRPC, base.COMMON, base.INFERENCE,
         base.INFERENCE_GRPC) = base.load_stubs(stubs)
        unittest.main(verbosity=2)
