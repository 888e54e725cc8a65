# SPDX-License-Identifier: Apache-2.0
"""Rows of ./dev bench kvstore about blocks put and got: beside memcpy, a redis-server and Mooncake Store."""

import json
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import move_rows
import peers
from rows import make_row

BLOCKS, BLOCK_BYTES, CLIENTS = 768, 720 << 10, 8
STORE_BENCH = peers.ROOT / "build" / "bench" / "store_bench"
LEASE_MS = 1000  # bench/peer/mooncake_store.py counts on it.


class RedisServer:
    """A redis-server that keeps all in memory, behind a Unix socket; None where there is none."""

    def __enter__(self):
        program = shutil.which("redis-server")
        if program is None:
            raise peers.PeerError("redis-server is missing: install Debian's package redis-server")
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        path = pathlib.Path(self.folder.name) / "s"
        self.process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir",
             self.folder.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("redis-server", self.process, path.exists)
        return path

    def __exit__(self, *_):
        stop(self.process)
        self.folder.cleanup()


def wait_for(name, process, is_there):
    deadline = time.monotonic() + 30
    while not is_there():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise peers.PeerError(f"{name} did not start")
        threading.Event().wait(0.05)


def stop(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def mooncake(rounds):
    """{"put": bytes per second, "get": ...}; None where it does not run."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        try:
            python = peers.walker_python("mooncake")
            port = free_port()
            master = subprocess.Popen(
                [str(part) for part in
                 [python.parent / "mooncake_master", "-rpc_address", "127.0.0.1", "-rpc_port", port,
                  "-metrics_host", "127.0.0.1", "-metrics_port", free_port(), "-default_kv_lease_ttl",
                  LEASE_MS]], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for("mooncake_master", master, lambda: answers(port))
                command = [python, peers.ROOT / "bench" / "peer" / "mooncake_store.py",
                           f"127.0.0.1:{port}", CLIENTS, BLOCKS, BLOCK_BYTES, rounds]
                done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                                      check=False, timeout=300)
            finally:
                stop(master)
            if done.returncode != 0:
                raise peers.PeerError(done.stderr[-500:])
            return json.loads(done.stdout.strip().splitlines()[-1])
        except (peers.PeerError, subprocess.TimeoutExpired) as error:
            peers.say(f"Mooncake Store does not run here: {error}")
            return None


def blocks(args):
    """One client beside memcpy; several beside as many of Redis and of Mooncake Store."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder, RedisServer() as redis:
        rates = json.loads(move_rows.run(
            [STORE_BENCH, "--folder", folder, "--blocks", BLOCKS, "--clients", CLIENTS, "--rounds",
             args.rounds, "--redis", redis], "store_bench"))
    rates = {way: [rate / 1e9 for rate in samples] for way, samples in rates.items()}
    for way, samples in rates.items():
        peers.say(f"{way}: {statistics.median(samples):.2f} GB/s")

    def best(pattern):
        return move_rows.best({way: s for way, s in rates.items() if re.match(pattern, way)})

    copy, copied = best("copy")
    work = "get of 720 KiB, verified, into the pool"
    rows = [make_row(f"{work}, 64 of a chain", "GB/s", rates["get chain"], f"memcpy, {copy[5:]}", copied,
                     0.8),
            make_row(f"{work}, 8 under way", "GB/s", rates["get blocks"], f"memcpy, {copy[5:]}", copied,
                     0.8, note=f"one at a time {statistics.median(rates['get one']):.2f} GB/s; read in "
                               f"place {statistics.median(rates['get mapped']):.2f}")]
    put, putted = best("redis put")
    get, got = best("redis get")
    n = CLIENTS
    rows += [make_row(f"put, {n} clients", "GB/s", rates[f"put of {n}"], put, putted, 2),
             make_row(f"get, verified, {n} clients", "GB/s", rates[f"get of {n}"], get, got, 2),
             make_row(f"get in place, verified, {n} clients", "GB/s", rates[f"get mapped of {n}"], get,
                      got, 4)]
    theirs = mooncake(args.rounds)
    if theirs is not None:
        for way in ("put", "get"):
            rows.append(make_row(f"{way}, {n} clients", "GB/s", rates[f"{way} of {n}"], "Mooncake Store",
                                 [rate / 1e9 for rate in theirs[way]], 1.5))
    return rows


PARTS = {"blocks": blocks}
