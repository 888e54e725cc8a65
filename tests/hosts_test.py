#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One deployment on several hosts, each a network namespace of this machine:

    tests/hosts_test.py PENSTOCK

`penstock up FILE --host NAME` on each, asked from one more. Whichever host is cut off or dies, an answer
has the tokens of `penstock generate` alone, or ends with a clear status. Needs grpcio and grpcio-tools,
iproute2, and the right to make network namespaces; exits with 77 where they are missing.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

import cluster_test
import namespaces
from cluster_test import alone, make_request, read, to_proto
from processes import MODEL, WAIT_S, Process, await_true

import grpc  # cluster_test has seen that it is there.

PENSTOCK = None
NETWORK = None
HOSTS = ("a", "b", "c")
PORT = 7070
GROUP = {"threads": 1, "kv_bytes": "8MiB", "sequences": 8}


def deployment(hosts, **more):
    """A prefill and a decode worker on each of the hosts; the coordinator with its gateway on the first."""
    groups = [{"host": name, **GROUP} for name in hosts]
    return {"model": str(MODEL), "hosts": {name: NETWORK.addresses[name] for name in hosts},
            "ports": {"grpc": PORT}, "prefill": groups, "decode": groups, **more}


def penstock(*arguments, within=()):
    return subprocess.run([*within, PENSTOCK, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=WAIT_S, check=False)


class Host(Process):
    """`penstock up FILE --host NAME` there."""

    def __init__(self, folder, name, *flags, stdin=subprocess.DEVNULL):
        folder = pathlib.Path(folder)
        # Its files, too, are nobody else's, so that there is no shared memory between hosts; `ip netns
        # exec` makes what we mount visible to its command alone.
        temporary = folder / f"{name}-{random.getrandbits(64):x}"
        temporary.mkdir()
        super().__init__(
            folder, name,
            NETWORK.inside(name, "sh", "-c", 'mount -t tmpfs none "$TMPDIR" && exec "$@"', "sh", PENSTOCK, "up",
                           folder / "c.yaml", "--host", name, *flags),
            stdin=stdin, stdout=subprocess.DEVNULL, env=dict(os.environ, TMPDIR=str(temporary)))

    def end(self, how=signal.SIGINT):
        return super().end(how)


class Deployment:
    """One file on several hosts, whole, and a client's channels to it."""

    def __init__(self, hosts, *flags, **more):
        self.names = hosts
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.file = pathlib.Path(self.folder.name) / "c.yaml"
        text = deployment(hosts, **more)
        self.workers = [len(text[role]) for role in ("prefill", "decode")]
        self.file.write_text(json.dumps(text), encoding="utf-8")
        # The one with the coordinator last: none needs another to be there.
        self.hosts = {name: Host(self.folder.name, name, *flags) for name in reversed(hosts)}
        self.server = f"{NETWORK.addresses[hosts[0]]}:{PORT}"
        self.channel = grpc.insecure_channel(self.server)
        self.inference = cluster_test.INFERENCE_GRPC.InferenceStub(self.channel)
        self.cluster = cluster_test.CLUSTER_GRPC.ClusterStub(self.channel)
        await_true("all workers and pairs", self.whole)

    def status(self):
        return self.cluster.Status(cluster_test.CLUSTER.StatusRequest(), wait_for_ready=True, timeout=WAIT_S)

    def whole(self):
        """Every worker is ready, every pair of them verified."""
        assert all(host.process.poll() is None for host in self.hosts.values()), \
            [host.log for host in self.hosts.values()]
        status = self.status()
        ready = {w.name for w in status.workers if w.state == "ready"}
        pairs = {(p.prefill, p.decode) for p in status.pairs if p.transport and not p.error.message}
        return (len(ready) == sum(self.workers) and len(pairs) == self.workers[0] * self.workers[1]
                and all({p, d} <= ready for p, d in pairs) and any(m.ready for m in status.models))

    def at_rest(self):
        status = self.status()
        return not status.requests and not any(
            w.bytes_held or w.bytes_draining or w.sequences or w.prefills for w in status.workers)

    def ask(self, request, on_delta=None, **more):
        return read(self.inference.Generate(to_proto(request, **more), timeout=WAIT_S), request["n"], on_delta)

    def ask_whom(self, request):
        """The answer, and the workers that gave it, as a text with their names."""
        name = f"{random.getrandbits(64):x}"
        answer = self.ask(request, request_id=name)
        text = self.cluster.Explain(cluster_test.CLUSTER.ExplainRequest(request_id=name), timeout=WAIT_S).text
        return answer, [line for line in text.splitlines() if line.startswith("* ")][-1]

    def end(self):
        self.channel.close()
        codes = {name: host.end() for name, host in self.hosts.items()}
        logs = {name: host.log[-20:] for name, host in self.hosts.items() if codes[name]}
        self.folder.cleanup()
        return codes, logs


def long_request(rng):
    return make_request(rng, prompt_words=60) | {"n": 1, "max_tokens": 300, "stop": []}


class HostsTest(unittest.TestCase):
    @contextlib.contextmanager
    def deployed(self, *args, **kwargs):
        it = Deployment(*args, **kwargs)
        try:
            yield it
        finally:
            codes, logs = it.end()
        self.assertEqual(set(codes.values()), {0}, logs)

    def test_one_file_on_three_hosts(self):
        with self.deployed(HOSTS, policy="round-robin") as whole:
            ready = {name: host.ready() for name, host in whole.hosts.items()}
            self.assertEqual(ready["a"]["grpc"], whole.server)
            for number, name in enumerate(HOSTS, 1):
                processes = ready[name]["processes"]
                names = [f"prefill-{number}", f"decode-{number}"]
                self.assertEqual([p["name"] for p in processes], ["coordinator"] * (name == "a") + names)
                for process in processes:
                    self.assertTrue(process["grpc"].startswith(NETWORK.addresses[name] + ":"), process)
                self.assertEqual("grpc" in ready[name], name == "a")
                # What listens there does so on the file's address alone.
                listening = NETWORK.listening(name)
                self.assertGreaterEqual(len(listening), 2 * len(processes))
                self.assertEqual({address for address, _ in listening}, {NETWORK.addresses[name]})
            transports = {(p.prefill, p.decode): p.transport for p in whole.status().pairs}
            for p in range(1, 4):
                for d in range(1, 4):
                    self.assertEqual(transports[f"prefill-{p}", f"decode-{d}"], "shm" if p == d else "tcp")
            # Doctor, on whichever host, has figures of all of them.
            for name in ("a", "c"):
                done = penstock("doctor", whole.file, "--host", name, within=NETWORK.inside(name))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                found = re.findall(r"ok +pair (\S+) -> (\S+): (\S+), (\S+) GB/s verified, round trip (\d+) us\n",
                                   done.stdout)
                self.assertEqual({(p, d): t for p, d, t, _, _ in found}, transports, done.stdout)
                for _, _, _, rate, round_trip in found:
                    self.assertGreater(float(rate), 0)
                    self.assertGreater(int(round_trip), 0)
                self.assertEqual(f"port {PORT} of the coordinator is taken by this cluster" in done.stdout,
                                 name == "a")
            for seed in range(6):
                request = make_request(random.Random(seed))
                self.assertEqual(whole.ask(request)[0], alone(request))
        with self.subTest("nothing listens any more"):
            self.assertEqual([NETWORK.listening(name) for name in HOSTS], [[]] * 3)

    def test_prefill_here_and_decode_there(self):
        kinds = [["shm", "tcp"]]
        if re.search(r"\| `transfer` .*\bucx\b", penstock("up", "--help-file").stdout):
            kinds.append(["ucx", "tcp"])
        for transfer in kinds:
            with self.subTest(transfer), self.deployed(("a", "b"), prefill=[{"host": "a", **GROUP}],
                                                       decode=[{"host": "b", **GROUP}], transfer=transfer,
                                                       policy="round-robin") as whole:
                wanted = "tcp" if transfer[0] == "shm" else transfer[0]
                for seed in range(10):
                    request = make_request(random.Random(seed), prompt_words=90) | {"stop": []}
                    choices, usage = whole.ask(request)
                    choices, usage = whole.ask(request)
                    self.assertEqual(choices, alone(request))
                    self.assertEqual((usage.handoff.peer, usage.handoff.transport), ("prefill-1", wanted))
                    self.assertGreater(usage.handoff.bytes, 0)
                # The same by the command, and where its time went.
                prompt = ["--raw", "--json", "--temperature", "0", "--max-tokens", "6", "a river of stone"]
                here, there = (json.loads(penstock("generate", *where, *prompt).stdout)["tokens"]
                               for where in (("--model", MODEL), ("--server", whole.server)))
                self.assertEqual(here, there)
                trace = penstock("trace", "--server", whole.server)
                self.assertNotIn("without the spans of", trace.stderr)
                self.assertRegex(trace.stdout, rf"prefill-1 +(-> +)?decode-1.* {wanted}")

    def test_a_store_node_on_another_host(self):
        # Slow enough that fetching pays.
        slow = ("--device", "paced", "--pace-prefill-tokens-per-s", "500")
        prompt = ["--raw", "--json", "--temperature", "0", "--max-tokens", "4", "the quick brown fox jumps over it " * 15]
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            secret = pathlib.Path(folder) / "secret"
            secret.write_bytes(os.urandom(32))
            secret.chmod(0o600)
            with self.deployed(("a", "b"), *slow, prefill=[{"host": "b", **GROUP}], decode=[{"host": "b", **GROUP}],
                               kvstore={"host": "a", "host_bytes": "16MiB"}, secret_file=str(secret)) as whole:
                def ask():
                    done = penstock("generate", "--server", whole.server, *prompt)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    return json.loads(done.stdout)["tokens"]

                want = ask()
                await_true("the store has all 13 blocks", lambda: [s.copies_known for s in whole.status().stores] == [13])
                before = {p["pid"] for p in whole.hosts["b"].ready()["processes"]}
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
                await_true("others are there", lambda: before.isdisjoint(
                    {p["pid"] for p in whole.hosts["b"].ready()["processes"]}) and whole.whole())
                self.assertEqual(ask(), want)
                trace = penstock("trace", "--server", whole.server, "--last").stdout
                self.assertRegex(trace, r"fetch +(prefill|decode)-1 .*kvstore-1, by tcp, host raw")

    def run_while(self, whole, count, strike, rng):
        """Long requests, and strike() amid them: what came is as if alone, or a clear status in time.
        How many attempts each took; None where it failed."""
        requests = [long_request(rng) for _ in range(count)]
        wants = [alone(r) for r in requests]
        begun = threading.Semaphore(0)

        def run(request):
            try:
                return whole.ask(request, begun.release)
            except grpc.RpcError as error:
                # DEADLINE_EXCEEDED would be our own: it hung.
                self.assertIn(error.code(), (grpc.StatusCode.UNAVAILABLE,
                                             grpc.StatusCode.RESOURCE_EXHAUSTED), error)
                return None

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            answers = [pool.submit(run, r) for r in requests]
            for _ in range(count):
                begun.acquire()
            strike()
            got = [a.result() for a in answers]
        for answer, want in zip(got, wants):
            if answer is not None:
                self.assertEqual(answer[0], want)
        return [answer and answer[1].attempts for answer in got]

    def freeze(self, whole, name):
        """Stops that host's decode worker, so that what is in it is surely not over; how to go on."""
        pids = [p["pid"] for host in whole.hosts.values() if host.name == name
                for p in host.ready()["processes"] if p["role"] == "decode"]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return lambda: [os.kill(pid, signal.SIGCONT) for pid in pids]

    def moved(self, whole, strike, heal, rng):
        """Strikes until a request was in the middle of its answer on the host that was struck."""
        for _ in range(10):
            attempts = self.run_while(whole, 6, strike, rng)
            # Others are served while it is away.
            request = make_request(rng)
            self.assertEqual(whole.ask(request)[0], alone(request))
            heal()
            await_true("all are there again", whole.whole)
            if any(a is None or a > 1 for a in attempts):
                self.assertEqual([a for a in attempts if a is None], [], "another decode worker was there")
                break
        else:
            self.fail("nothing was amid an answer on the struck host")
        await_true("nothing is held", whole.at_rest)
        # It has its share of the work again.
        used = set()
        for _ in range(8):
            request = make_request(rng)
            (choices, _), workers = whole.ask_whom(request)
            self.assertEqual(choices, alone(request))
            used |= set(re.findall(r"(?:prefill|decode)-\d", workers))
        self.assertEqual(used, {"prefill-1", "prefill-2", "decode-1", "decode-2"})

    def test_a_host_that_is_cut_off(self):
        rng = random.Random(2)
        with self.deployed(("a", "b"), policy="round-robin") as whole:
            for cut in (NETWORK.plug, NETWORK.interface):
                with self.subTest(cut.__name__):
                    def strike(cut=cut):
                        go_on = self.freeze(whole, "b")
                        cut("b", "down")
                        go_on()
                    self.moved(whole, strike, lambda cut=cut: cut("b", "up"), rng)

    def test_a_host_that_dies(self):
        rng = random.Random(3)
        with self.deployed(("a", "b"), policy="round-robin") as whole:
            def strike():
                self.freeze(whole, "b")
                self.assertEqual(whole.hosts["b"].end(signal.SIGKILL), -signal.SIGKILL)

            def heal():
                await_true("nothing of it is left", lambda: not NETWORK.listening("b"))
                whole.hosts["b"] = Host(whole.folder.name, "b")

            self.moved(whole, strike, heal, rng)

    def test_doctor_on_each_host(self):
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            file = pathlib.Path(folder) / "c.yaml"
            file.write_text(json.dumps(deployment(("a", "b"))), encoding="utf-8")
            for name in ("a", "b"):
                done = penstock("doctor", file, "--host", name, within=NETWORK.inside(name))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertIn(f"host {name} listens on {NETWORK.addresses[name]}", done.stdout)
                self.assertRegex(done.stdout, r"ok +transfer over tcp: [0-9.]+ GB/s verified")
            # On the wrong machine it says so.
            wrong = penstock("doctor", file, "--host", "b", within=NETWORK.inside("a"))
            self.assertEqual(wrong.returncode, 1)
            self.assertIn("is this that machine?", wrong.stdout)

    def test_a_part_of_the_hosts_until_the_input_ends(self):
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            (pathlib.Path(folder) / "c.yaml").write_text(json.dumps(deployment(HOSTS)), encoding="utf-8")
            hosts = [Host(folder, name, "--only-hosts", "b,a", "--until-eof", stdin=subprocess.PIPE)
                     for name in ("a", "b")]
            for host in hosts:
                self.addCleanup(host.end, signal.SIGKILL)
                host.ready()
            status = penstock("status", "--server", f"{NETWORK.addresses['a']}:{PORT}", "--json")
            self.assertEqual(sorted(w["name"] for w in json.loads(status.stdout)["workers"]),
                             ["decode-1", "decode-2", "prefill-1", "prefill-2"])
            for host in reversed(hosts):
                host.process.stdin.write("some text is no end\n")
                host.process.stdin.close()
                self.assertEqual(host.process.wait(WAIT_S), 0)
                self.assertEqual(host.end(), 0)
                self.assertTrue(any("standard input has ended" in line for line in host.log), host.log)
            for flags, want in ((("--host", "c", "--only-hosts", "a,b"), "--host c is not in the file; there are a, b"),
                                (("--host", "a", "--only-hosts", "a,x"), "no host 'x'; there are a, b, c"),
                                (("--host", "b", "--only-hosts", "b"), "the coordinator is on 'a'"),
                                (("--host", "a", "--until-eof"), "must be a pipe, a socket or a terminal")):
                done = penstock("up", pathlib.Path(folder) / "c.yaml", *flags)
                self.assertEqual(done.returncode, 1)
                self.assertIn(want, done.stderr)

    def test_a_benchmark_over_more_and_more_hosts(self):
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            file, report = pathlib.Path(folder) / "c.yaml", pathlib.Path(folder) / "report.json"
            file.write_text(json.dumps(deployment(HOSTS, transfer=["tcp"])), encoding="utf-8")
            flags = ["bench", "scale", file, "--hosts", "1,3", "--device", "paced", "--requests", 10,
                     "--concurrency", 2, "--prompt", 16, "--output", 4, "--json", report]
            on = " ".join(NETWORK.inside("a")).replace("-a", "-{host}")
            done = penstock(*flags, "--on", on)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("CPU of all that this machine did", done.stdout)
            points = json.loads(report.read_text())["points"]
            self.assertEqual([(p["hosts"], p["workers"], p["bench"]["complete"]) for p in points],
                             [(1, 2, 20), (3, 6, 60)])
            self.assertEqual([NETWORK.listening(name) for name in HOSTS], [[]] * 3)
            for on, want in (("false {host}", "a ended; its last lines:"), ("nowhere-{host}", "cannot run nowhere-a"),
                             ("ssh", "--on must have {host} or {address} in it")):
                done = penstock(*flags, "--on", on)
                self.assertEqual(done.returncode, 1)
                self.assertIn(want, done.stderr)


def stop(*_):
    sys.exit(1)  # Through all that cleans up.


if __name__ == "__main__":
    PENSTOCK = cluster_test.PENSTOCK = sys.argv.pop(1)
    WHY_NOT = namespaces.why_not()
    if WHY_NOT is not None:
        print(f"skipped: {WHY_NOT}", file=sys.stderr)
        sys.exit(77)
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory() as stubs, namespaces.Network([*HOSTS, "client"]) as NETWORK:
        (cluster_test.CLUSTER, cluster_test.CLUSTER_GRPC, cluster_test.COMMON, cluster_test.INFERENCE,
         cluster_test.INFERENCE_GRPC) = cluster_test.load_stubs(stubs)
        NETWORK.enter("client")  # Before gRPC starts a thread.
        unittest.main(verbosity=2)
