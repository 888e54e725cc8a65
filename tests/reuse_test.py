#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whatever KV a request reuses, and whatever happens to it, the answer is that of a cold run:

    tests/reuse_test.py PENSTOCK

Real models, in a cluster of two prefill workers, decode workers and a store node. Requests are answered
cold, then out of the workers' own pools, a node's memory, its disk, a redis-server; with the node killed in
the middle, bits flipped in its files, a worker killed while it imports, or stopped while what it reads in a
node's memory is overwritten; and over a slow link, beside which the prompt is computed. Each token, and the
log-probabilities of the five most likely ones at each position, must be printed the same, digit by digit.
Exits with 77 where the models are not in .cache/models.
"""

import concurrent.futures
import http.client
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

import namespaces

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = ROOT / ".cache/models/gemma-3-270m-q4_k_m.gguf"
PENSTOCK = None
WAIT_S = 120
BLOCK_TOKENS, ANSWER = 32, 24
SEGMENT_STEP = 64 << 10  # One bit in each so many bytes is flipped.
WORDS = "river stone house water light garden morning winter summer music paper window silver".split()


def await_true(what, holds):
    """Looks again and again, until a deadline."""
    deadline, never = time.monotonic() + WAIT_S, threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        never.wait(0.02)


def words(seed, count):
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(count))


class Cluster:
    """A coordinator with a gateway, a store node with a disk, and workers; with a network the node is on its
    host "far", what is started else must be, as this thread, on "near"."""

    def __init__(self, model, worker_flags=(), redis=False, network=None):
        self.network = network
        self.worker_flags = worker_flags
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.path, self.model = pathlib.Path(self.folder.name), model
        self.processes, self.infos, self.workers, self.number = {}, {}, [], 0
        # Of the store's tiers besides memory; what all that frames travel between must have.
        self.tiers = ["--disk", self.path / "disk", "--disk-bytes", "1GiB"]
        self.secret = []
        if redis:
            self.start_redis()
        host = ["--host", network.addresses["near"]] if network else []
        coordinator = self.start("coordinator", "coordinator", "--serve", f"m={model}", "--http-port", 0, *host)
        self.address, self.http = coordinator["grpc"], coordinator["http"]
        self.start_store()

    def start(self, name, *command):
        ready = self.path / f"{name}.json"
        ready.unlink(missing_ok=True)
        command = [PENSTOCK, *map(str, command), "--ready-file", ready]
        if self.network and name == "store":
            command = self.network.inside("far", *command, "--host", self.network.addresses["far"], "--transfer",
                                          "tcp")
        with open(self.path / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.processes[name] = process
        await_true(f"{name} is ready", lambda: ready.exists() or process.poll() is not None)
        assert ready.exists(), (self.path / f"{name}.log").read_text()[-2000:]
        self.infos[name] = json.loads(ready.read_text())
        return self.infos[name]

    def start_store(self):
        self.start("store", "kvstore", "--name", "store", "--coordinator", self.address, "--host-bytes",
                   "512MiB", *self.tiers, *self.secret, "--socket-folder", self.path, "--metrics-port", 0)

    def start_redis(self):
        socket = self.path / "redis"
        with open(self.path / "redis.log", "ab") as log:
            self.processes["redis"] = subprocess.Popen(
                ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", self.path],
                stdout=log, stderr=log)
        await_true("redis-server listens", socket.exists)
        secret = self.path / "secret"
        secret.touch(mode=0o600)
        secret.write_bytes(random.Random(1).randbytes(32))
        self.secret = ["--secret-file", secret]
        self.tiers = ["--remote", f"unix:{socket}"]

    def add_worker(self, role, flags=()):
        self.number += 1
        name = f"{role}-{self.number}"
        flags = [*self.worker_flags, *flags]
        self.start(name, role, "--name", name, "--coordinator", self.address, "--model", self.model,
                   "--model-name", "m", "--socket-folder", self.path, "--threads", 1, "--kv-bytes",
                   "128MiB", *self.secret, "--metrics-port", 0, *flags)
        self.workers.append(name)
        return name

    def end(self, name, how=signal.SIGTERM):
        process = self.processes.pop(name)
        process.send_signal(how)
        try:
            process.wait(WAIT_S)
        finally:
            process.kill()
        if name in self.workers:
            self.workers.remove(name)

    def new_workers(self, decodes=1, decode_flags=()):
        """Two prefill workers and decode workers whose pools are empty, ready to be chosen."""
        for name in list(self.workers):
            self.end(name)
        for role in ["decode"] * decodes + ["prefill"] * 2:
            self.add_worker(role, decode_flags if role == "decode" else ())
        await_true("pairs are verified", lambda: len(self.pairs()) >= 2 * decodes)
        await_true("the store is known", lambda: "store" not in self.processes or any(
            store["state"] == "ready" for store in self.status()["stores"]))

    def restart_store(self, how=signal.SIGTERM, meanwhile=lambda: None):
        """What was in memory is gone."""
        if "store" in self.processes:
            self.end("store", how)
        meanwhile()
        self.start_store()

    def flush(self):
        subprocess.run([PENSTOCK, "store", "flush", "--server", self.address], check=True, capture_output=True,
                       timeout=WAIT_S)

    def status(self):
        done = subprocess.run([PENSTOCK, "status", "--server", self.address, "--json"], check=True,
                              capture_output=True, text=True, timeout=WAIT_S)
        return json.loads(done.stdout)

    def leases(self):
        done = subprocess.run([PENSTOCK, "store", "stat", "--server", self.address, "--json"], check=True,
                              capture_output=True, text=True, timeout=WAIT_S)
        return sum(json.loads(line)["leases"] for line in done.stdout.splitlines())

    def pairs(self):
        return [p for p in self.status()["pairs"] if p["transport"] and p["prefill"] in self.workers]

    def metric(self, name, metric, label=""):
        """The sum of all of that name with that label."""
        with urllib.request.urlopen(f"http://{self.infos[name]['metrics']}/metrics", timeout=WAIT_S) as page:
            text = page.read().decode()
        found = re.findall(rf"^{metric}(\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for labels, value in found if label in labels)

    def fetched(self, what="blocks", tier="", codec=""):
        label = f'tier="{tier}"' if tier else f'codec="{codec}"' if codec else ""
        return sum(self.metric(worker, f"penstock_store_fetched_{what}_total", label)
                   for worker in self.workers)

    def mapped(self, role):
        """Bytes that workers of this role used where they lay, having copied none; they have let go of them."""
        sum_of = lambda *what: sum(self.metric(w, *what) for w in self.workers if w.startswith(role))
        await_true("they let go of it", lambda: sum_of("penstock_store_mapped_blocks") == 0)
        assert sum_of("penstock_store_fetched_bytes_total", 'way="copied"') == 0
        return sum_of("penstock_store_fetched_bytes_total", 'way="mapped"')

    def kept(self, tier):
        return self.metric("store", "penstock_kvstore_copies", f'tier="{tier}"')

    def copies(self):
        """As the coordinator knows."""
        return sum(int(tier["copies"]) for store in self.status()["stores"] for tier in store["tiers"])

    def last_spans(self, name):
        """Of the request that came last: (begin, end in us, arguments), by the role of who recorded them."""
        file = self.path / "spans.json"
        subprocess.run([PENSTOCK, "trace", "--server", self.address, "--last", "--chrome", file], check=True,
                       capture_output=True, timeout=WAIT_S)
        events = json.loads(file.read_text())["traceEvents"]
        roles = {e["pid"]: e["args"]["name"].split("-")[0] for e in events if e["name"] == "process_name"}
        found = {"prefill": [], "decode": []}
        for e in events:
            if e["ph"] == "X" and e["name"] == name:
                found.setdefault(roles[e["pid"]], []).append((e["ts"], e["ts"] + e["dur"], e["args"]))
        return found

    def ask(self, prompt, tokens=ANSWER, reuse="exact"):
        """(what must always be the same, usage)"""
        connection = http.client.HTTPConnection(self.http, timeout=WAIT_S)
        connection.request("POST", "/v1/completions", json.dumps(
            {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 5,
             "ignore_eos": True, "reuse": reuse}),
            {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert response.status == 200, text
        answer = json.loads(text, parse_float=str)  # As they are printed.
        return json.dumps(answer["choices"]), answer["usage"]

    def close(self):
        for name in reversed(list(self.processes)):
            self.end(name)
        self.folder.cleanup()


def reused(usage):
    return usage["prompt_tokens_details"]["cached_tokens"]


def blocks_of(usage):
    """Full ones, of the answer too; its last token was never fed."""
    return (usage["prompt_tokens"] + usage["completion_tokens"] - 1) // BLOCK_TOKENS


class ReuseTest(unittest.TestCase):
    def begin(self, model, prompts, worker_flags=(), redis=False, network=None):
        if not model.exists():
            self.skipTest(f"{model} is missing")
        if redis and shutil.which("redis-server") is None:
            self.skipTest("no redis-server (./dev installs it)")
        self.cluster = Cluster(model, worker_flags, redis, network)
        self.addCleanup(self.cluster.close)
        self.cluster.new_workers()
        self.prompts = prompts
        cold = [self.cluster.ask(prompt) for prompt in prompts]
        self.cold = [choices for choices, _ in cold]
        self.usages = [usage for _, usage in cold]
        for usage in self.usages:
            self.assertEqual(reused(usage), 0)

    def same(self, what, reused_all=True):
        """All prompts at once; their answers."""
        with concurrent.futures.ThreadPoolExecutor(len(self.prompts)) as pool:
            answers = list(pool.map(self.cluster.ask, self.prompts))
        self.check(what, answers)
        if reused_all:
            for _, usage in answers:
                self.assertGreaterEqual(reused(usage), BLOCK_TOKENS, what)

    def check(self, what, answers):
        for i, ((choices, _), cold) in enumerate(zip(answers, self.cold)):
            self.assertEqual(choices, cold, f"{what}: prompt {i}")

    def wait_for_copies(self, groups=1, tiers=("host", "disk")):
        want = groups * sum(map(blocks_of, self.usages))
        for tier in tiers:
            await_true(f"{want} copies in {tier}", lambda tier=tier: self.cluster.kept(tier) >= want)

    def test_every_way_to_reuse(self):
        self.begin(SMOLLM2, [words(seed, 230 + 40 * seed) for seed in range(3)])
        self.reuse_from_pool_memory_and_disk()
        cluster = self.cluster
        cluster.new_workers()
        with concurrent.futures.ThreadPoolExecutor(len(self.prompts)) as pool:
            asked = [pool.submit(cluster.ask, prompt) for prompt in self.prompts]
            cluster.end("store", signal.SIGKILL)
            self.check("the node died in the middle", [answer.result() for answer in asked])
        cluster.restart_store()

        cluster.restart_store(meanwhile=self.flip_bits)
        cluster.new_workers()
        self.same("damaged files", reused_all=False)
        # What was recomputed is there again, and whole.
        self.wait_for_copies()
        cluster.new_workers()
        self.same("mended")

    def test_every_way_to_reuse_int8_pages(self):
        self.begin(SMOLLM2, [words(20 + seed, 230 + 40 * seed) for seed in range(3)], ["--kv-dtype", "int8"])
        self.reuse_from_pool_memory_and_disk()
        block = 30 * 3 * BLOCK_TOKENS * (64 + 64 + 2 + 2)  # Levels and scales of K and V.
        copied = sum(self.cluster.metric(w, "penstock_store_fetched_bytes_total") for w in self.cluster.workers)
        self.assertEqual(copied % block, 0)
        self.assertGreater(copied, 0)

    def reuse_from_pool_memory_and_disk(self):
        cluster = self.cluster
        self.same("a worker's pool")
        self.wait_for_copies()

        cluster.new_workers()
        self.same("a node's memory")
        self.assertGreater(cluster.fetched(tier="host"), 0)
        self.assertGreater(cluster.mapped("decode"), 0)

        cluster.restart_store()
        cluster.new_workers()
        self.same("a node's disk")
        self.assertGreater(cluster.fetched(tier="disk"), 0)

    def flip_bits(self):
        flipped = 0
        for file in (self.cluster.path / "disk").iterdir():
            with open(file, "r+b") as segment:
                size = segment.seek(0, 2)
                for at in range(SEGMENT_STEP // 2, size, SEGMENT_STEP):
                    segment.seek(at)
                    byte = segment.read(1)[0]
                    segment.seek(at)
                    segment.write(bytes([byte ^ 4]))
                    flipped += 1
        self.assertGreater(flipped, 0)

    def test_from_a_redis_server(self):
        self.begin(SMOLLM2, [words(10 + seed, 230 + 40 * seed) for seed in range(2)], redis=True)
        cluster = self.cluster
        self.wait_for_copies(tiers=("host",))
        cluster.flush()
        self.wait_for_copies(tiers=("remote",))
        self.assertEqual(cluster.kept("host"), 0)
        cluster.new_workers()
        self.same("a redis-server")
        self.assertGreater(cluster.fetched(tier="remote"), 0)
        # It dies: what it had is computed.
        cluster.flush()
        cluster.new_workers()
        cluster.end("redis", signal.SIGKILL)
        self.same("a redis-server that is gone", reused_all=False)

    def test_the_head_comes_to_who_answers_while_the_tail_is_computed(self):
        head = words("head", 400)
        self.begin(SMOLLM2, [head + " " + words("tail", 100)])
        cluster = self.cluster
        self.wait_for_copies(tiers=("host",))
        cluster.new_workers()
        _, usage = cluster.ask(head + " " + words("another tail", 600))
        self.assertGreaterEqual(reused(usage), BLOCK_TOKENS)
        fetches, passes = cluster.last_spans("fetch")["decode"], cluster.last_spans("prefill")["prefill"]
        self.assertLess(max(end for _, end, _ in fetches), max(end for _, end, _ in passes))
        self.assertGreater(cluster.mapped("prefill"), 0)
        self.same("beside another tail")

    def test_computing_beside_a_slow_link(self):
        if (why_not := namespaces.why_not()) is not None:
            self.skipTest(why_not)
        with namespaces.Network(["near", "far"]) as network, concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(self.beside, network).result()  # A thread that is on the host.

    def beside(self, network):
        network.enter("near")
        network.limit("far", "80mbit")
        self.begin(SMOLLM2, [words("beside", 600)], network=network)
        try:
            cluster = self.cluster
            await_true("all copies", lambda: cluster.copies() >= blocks_of(self.usages[0]))
            for _ in range(4):  # A decode worker that seems faster, as rates after a start go, does it all itself.
                cluster.new_workers()
                answer = cluster.ask(self.prompts[0])
                self.check("over a slow link", [answer])
                fetches, passes = cluster.last_spans("fetch")["prefill"], cluster.last_spans("prefill")["prefill"]
                if passes:
                    break
            fetched, computed = sum(a["blocks"] for _, _, a in fetches) * BLOCK_TOKENS, sum(a["tokens"] for _, _, a in passes)
            # Both did their part, at one time: the rest of the prompt is less than a block.
            self.assertTrue(2 * BLOCK_TOKENS < computed < answer[1]["prompt_tokens"] - 1, str(computed))
            self.assertGreaterEqual(fetched + computed, answer[1]["prompt_tokens"] - 1)
            self.assertLess(min(begin for begin, _, _ in passes), max(end for _, end, _ in fetches))
            self.same("the pools that both filled")
        finally:
            self.doCleanups()

    def test_a_worker_dies_while_it_imports(self):
        self.begin(SMOLLM2, [words("dies", 330)])
        cluster, chance = self.cluster, random.Random(7)
        self.wait_for_copies()
        for turn in range(3):
            cluster.new_workers(decodes=2)
            victim = [w for w in cluster.workers if w.startswith("decode")][turn % 2]
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(cluster.ask, self.prompts[0]) for _ in range(4)]
                threading.Event().wait(chance.uniform(0, 0.05))  # When it dies is what varies.
                cluster.end(victim, signal.SIGKILL)
                for answer in asked:
                    self.check(f"turn {turn}", [answer.result()])

    def test_copies_with_a_loss(self):
        if not SMOLLM2.exists():
            self.skipTest(f"{SMOLLM2} is missing")
        folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.addCleanup(folder.cleanup)
        record = pathlib.Path(folder.name) / "record.json"
        # Of little text: what is measured here is not the codec.
        text = pathlib.Path(folder.name) / "text"
        text.write_text(words("text", 2000))
        subprocess.run([PENSTOCK, "quality", SMOLLM2, "--text", text, "--codecs", "int8",
                        "--prompt-tokens", "256", "--tokens", "64", "--needles", "0", "--json", record],
                       check=True, capture_output=True, timeout=WAIT_S)
        refused = subprocess.run([PENSTOCK, "prefill", "--model", SMOLLM2, "--model-name", "m",
                                  "--coordinator", "127.0.0.1:1", "--store-lossy", "int8", "--max-kl",
                                  "0.000001", "--quality-record", record], capture_output=True, text=True,
                                 timeout=WAIT_S)
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr,
                         r"--store-lossy int8: its recorded mean KL is [0-9.e-]+, --max-kl is 1e-06")

        prompt = words("loss", 300)
        longer = prompt + " " + words("longer", 100)
        plain = Cluster(SMOLLM2)
        self.addCleanup(plain.close)
        plain.new_workers()
        cold_longer = plain.ask(longer)[0]

        self.begin(SMOLLM2, [prompt], ["--store-lossy", "int8", "--max-kl", "0.05", "--quality-record",
                                       record])
        cluster = self.cluster
        copies = 2 * blocks_of(self.usages[0])
        await_true(f"{copies} copies", lambda: cluster.kept("host") >= copies)
        cluster.new_workers()
        choices, usage = cluster.ask(prompt, reuse="kl2")
        self.assertGreaterEqual(reused(usage), BLOCK_TOKENS)
        self.assertGreater(cluster.fetched(codec="int8"), 0)
        self.assertEqual(cluster.fetched(codec="raw"), 0)
        self.assertNotEqual(choices, self.cold[0], "copies with a loss change log-probabilities")
        self.same("exact, beside blocks with a loss in every pool")
        self.assertGreater(cluster.fetched(codec="raw"), 0)

        # Blocks that attended to a loss are kept, and found by no exact lookup, anywhere.
        cluster.new_workers()
        _, usage = cluster.ask(longer, reuse="kl2")
        more = copies + blocks_of(usage) - blocks_of(self.usages[0])
        await_true(f"{more} copies", lambda: cluster.kept("host") >= more)
        self.assertEqual(cluster.ask(longer)[0], cold_longer, "in the pools that computed it")
        cluster.new_workers()
        self.assertGreater(reused(cluster.ask(longer, reuse="kl2")[1]), reused(usage))
        cluster.new_workers()
        self.assertEqual(cluster.ask(longer)[0], cold_longer, "from the store")

    def test_no_token_of_a_block_that_changed_under_a_stopped_worker(self):
        answer = 300
        self.begin(SMOLLM2, [words("stopped", 330)])
        cluster = self.cluster
        cold, _ = cluster.ask(self.prompts[0], answer)
        self.wait_for_copies()
        cluster.new_workers(decodes=2)
        decodes = [w for w in cluster.workers if w.startswith("decode")]
        reads = lambda w: cluster.metric(w, "penstock_store_mapped_blocks") > 0 and cluster.metric(
            w, "penstock_engine_decode_tokens_total") > 10
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(cluster.ask, self.prompts[0], answer)
            await_true("an answer reads mapped blocks", lambda: any(map(reads, decodes)))
            victim = next(filter(reads, decodes))
            cluster.processes[victim].send_signal(signal.SIGSTOP)
            try:
                subprocess.run([PENSTOCK, "store", "flush", "--server", cluster.address], check=True,
                               capture_output=True, timeout=WAIT_S)
                # Its leases end; then others' blocks take the place of its own.
                await_true("leases end", lambda: cluster.leases() == 0)
                for seed in range(3):
                    cluster.ask(words(f"other {seed}", 400))
                self.assertGreater(cluster.kept("host"), 3 * 10)
            finally:
                cluster.processes[victim].send_signal(signal.SIGCONT)
            choices, _ = asked.result()
        self.assertEqual(choices, cold)
        # Its own check found it, unless the word that nobody waits for its tokens was sooner.
        ended = lambda how="": cluster.metric(victim, "penstock_attempts_total", how and f'outcome="{how}"')
        await_true("its attempt has ended", lambda: ended() >= 1)  # Others may have been meant for it, too.
        self.assertEqual(ended("finished"), 0)
        self.assertLessEqual(cluster.metric(victim, "penstock_engine_mapped_changed_total"), 1)
        await_true("it lets go of it", lambda: cluster.metric(victim, "penstock_store_mapped_blocks") == 0)

    def test_window_layers(self):
        # Of the layers that see 512 tokens, the blocks of those; of the others, all.
        self.begin(GEMMA, [words("window", 900)])
        self.wait_for_copies()
        self.cluster.new_workers()
        self.same("a node's memory")
        usage = self.usages[0]
        blocks = (usage["prompt_tokens"] - 1) // BLOCK_TOKENS
        window = 512 // BLOCK_TOKENS
        self.assertGreater(blocks, window)
        layer = BLOCK_TOKENS * (256 + 256) * 2  # Bytes: one KV head of 256, f16.
        once = blocks * 3 * layer + window * 15 * layer
        # By who computes the rest, and by who answers, where these are two: that one may need a block
        # less, since its first token is later.
        self.assertIn(self.cluster.fetched("bytes"), (once, 2 * once, 2 * once - 15 * layer))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: reuse_test.py PENSTOCK")
    PENSTOCK = pathlib.Path(sys.argv.pop(1)).resolve()
    if not SMOLLM2.exists() and not GEMMA.exists():
        sys.exit(77)
    unittest.main()
