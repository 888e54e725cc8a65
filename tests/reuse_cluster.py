# SPDX-License-Identifier: Apache-2.0
"""A cluster of a real model in which KV is reused, and what is asked of it: for reuse_test.py and
mapped_prefill_test.py, which set PENSTOCK.
"""

import http.client
import json
import pathlib
import random
import re
import signal
import subprocess
import tempfile
import urllib.request

from processes import ROOT, await_true

SMOLLM2 = ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
PENSTOCK = None
WAIT_S = 120
BLOCK_TOKENS, ANSWER = 32, 24
WORDS = "river stone house water light garden morning winter summer music paper window silver".split()


def words(seed, count):
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(count))


class Cluster:
    """A coordinator with a gateway, a store node with a disk, and workers; with a network the node is on its
    host "far", what is started else must be, as this thread, on "near". By the policy "cost" a decode worker
    may prefill for itself, as rates after a start go; "round-robin" leaves that to prefill workers."""

    def __init__(self, model, worker_flags=(), redis=False, network=None, policy="cost"):
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
        coordinator = self.start("coordinator", "coordinator", "--serve", f"m={model}", "--http-port", 0,
                                 "--policy", policy, *host)
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

    def new_workers(self, decodes=1, decode_flags=(), prefills=2):
        """Workers whose pools are empty, ready to be chosen."""
        for name in list(self.workers):
            self.end(name)
        for role in ["decode"] * decodes + ["prefill"] * prefills:
            self.add_worker(role, decode_flags if role == "decode" else ())
        await_true("pairs are verified", lambda: len(self.pairs()) >= prefills * decodes)
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
        copied = sum_of("penstock_store_fetched_bytes_total", 'way="copied"')
        assert copied == 0, f"{copied} bytes were copied by {role} workers, 0 wanted"
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
