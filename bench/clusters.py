# SPDX-License-Identifier: Apache-2.0
"""Clusters on this machine for as long as a benchmark needs them, and what it asks of them."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

import peers

PENSTOCK = peers.ROOT / "build" / "penstock"
READY_S, WITHIN_S = 120, 1800


def penstock(*arguments):
    """Runs our program to its end; what it printed."""
    done = subprocess.run([str(part) for part in [PENSTOCK, *arguments]], capture_output=True,
                          text=True, check=False, timeout=WITHIN_S)
    if done.returncode != 0:
        raise peers.PeerError(f"penstock {' '.join(map(str, arguments))}: {done.stderr[-2000:]}")
    return done.stdout


class Asked:
    """What a benchmark asks of a cluster: `server` is its gateway, `path` a folder, `pids` its processes."""

    def bench(self, *arguments):
        """`penstock bench` against it: its report, and a record of each request."""
        report, records = self.path / "report.json", self.path / "records.jsonl"
        penstock("bench", "--server", self.server, "--json", report, "--records", records,
                 *arguments)
        return (json.loads(report.read_text()),
                [json.loads(line) for line in records.read_text().splitlines()])

    def trace(self):
        """The summary of all spans so far."""
        report = self.path / "trace.json"
        penstock("trace", "--server", self.server, "--json", report)
        return json.loads(report.read_text())

    def last_spans(self):
        """Of the request that came last: [{"name", "ms", "bytes"}]."""
        file = self.path / "chrome.json"
        penstock("trace", "--server", self.server, "--last", "--chrome", file)
        return [{"name": e["name"], "ms": e["dur"] / 1000, "bytes": e["args"].get("bytes", 0)}
                for e in json.loads(file.read_text())["traceEvents"] if e["ph"] == "X"]

    def cpu_seconds(self):
        """CPU time of all its processes so far."""
        ticks = 0
        for pid in self.pids:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class Cluster(Asked):
    """`penstock up` with a deployment, ready when the block is entered and gone when it is left."""

    def __init__(self, deployment):
        self.deployment = deployment

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.path = pathlib.Path(self.folder.name)
        file, ready = self.path / "deployment.yaml", self.path / "ready.json"
        file.write_text(json.dumps(self.deployment), encoding="utf-8")  # JSON is YAML.
        self.log = open(self.path / "log", "wb")
        self.process = subprocess.Popen([PENSTOCK, "up", file, "--ready-file", ready],
                                        stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + READY_S
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise peers.PeerError(f"a cluster did not become ready:\n{self.tail}")
            threading.Event().wait(0.05)
        self.info = json.loads(ready.read_text())
        self.server = self.info["grpc"]
        self.pids = [process["pid"] for process in self.info["processes"]]
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        self.tail = (self.path / "log").read_text(errors="replace")[-2000:]
        self.folder.cleanup()


class Processes(Asked):
    """A coordinator with a gateway, and what is started beside it, process by process; for a `with` block."""

    model_name = "m"

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.path, self.processes = pathlib.Path(self.folder.name), {}
        self.model = peers.find_model("smollm2")
        self.info = {}
        self.server = self.start("coordinator", "coordinator", "--serve",
                                 f"{self.model_name}={self.model}", "--http-port", 0)["grpc"]
        return self

    @property
    def pids(self):
        return [process.pid for process in self.processes.values()]

    def start_worker(self, role, name, *arguments):
        return self.start(name, role, "--name", name, "--coordinator", self.server, "--model", self.model,
                          "--model-name", self.model_name, "--socket-folder", self.path, *arguments)

    def start(self, name, *arguments, within=()):
        """Starts a process and waits until it is ready; what it says of itself. `within`: a command that runs
        others."""
        ready = self.path / f"{name}.json"
        ready.unlink(missing_ok=True)
        command = [str(part) for part in [*within, PENSTOCK, *arguments, "--ready-file", ready]]
        with open(self.path / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.processes[name] = process
        deadline = time.monotonic() + READY_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (self.path / f"{name}.log").read_text(errors="replace")[-2000:]
                self.__exit__()
                raise peers.PeerError(f"{name} did not become ready:\n{tail}")
            threading.Event().wait(0.05)
        self.info[name] = json.loads(ready.read_text())
        return self.info[name]

    def stop(self, *names):
        for name in names:
            self.processes[name].terminate()
        for name in names:
            process = self.processes.pop(name)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def status(self):
        return json.loads(penstock("status", "--server", self.server, "--json"))

    def wait_for(self, what, is_so):
        """Until is_so()."""
        deadline = time.monotonic() + READY_S
        while not is_so():
            if time.monotonic() > deadline:
                self.__exit__()
                raise peers.PeerError(f"{what}: not within {READY_S} s")
            threading.Event().wait(0.1)

    def __exit__(self, *_):
        self.stop(*reversed(self.processes))
        self.folder.cleanup()


class PacedCluster(Processes):
    """So many prefill and decode workers that only take a model's time."""

    def __init__(self, workers):
        self.workers = workers

    def __enter__(self):
        super().__enter__()
        for i in range(self.workers):
            for role in ("decode", "prefill"):
                self.start_worker(role, f"{role}-{i}", "--device", "paced", "--threads", 1,
                                  "--kv-bytes", "64MiB")
        self.wait_for("verifying all pairs of paced workers",
                      lambda: len(self.pairs()) >= self.workers ** 2)
        return self

    def pairs(self):
        return [pair for pair in self.status()["pairs"] if pair["transport"]]


def percentile(values, share):
    """Nearest rank: a value that was measured."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]
