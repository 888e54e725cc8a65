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
READY_S = 120


def penstock(*arguments, within_s=1800):
    """Runs our program to its end; what it printed."""
    done = subprocess.run([str(part) for part in [PENSTOCK, *arguments]], capture_output=True,
                          text=True, check=False, timeout=within_s)
    if done.returncode != 0:
        raise peers.PeerError(f"penstock {' '.join(map(str, arguments))}: {done.stderr[-2000:]}")
    return done.stdout


class Cluster:
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

    def cpu_seconds(self):
        """CPU time of all its processes so far."""
        ticks = 0
        for process in self.info["processes"]:
            fields = pathlib.Path(f"/proc/{process['pid']}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def percentile(values, share):
    """Nearest rank: a value that was measured."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]
