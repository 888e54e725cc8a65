# SPDX-License-Identifier: Apache-2.0
"""Rows of ./dev bench cluster about bytes alone: KV moved between two processes, of a host and of two."""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import peers
from rows import make_row

sys.path.insert(0, str(peers.ROOT / "tests"))
import namespaces  # noqa: E402  (of the tests, which need hosts, too)

POOL_MIB = 512
PASSES = 4
PIECES_KIB = [1024, 16384]
# Namespaces share a kernel: UCX, also within NIXL, would find shared memory between them.
ONLY_TCP = ["env", "UCX_TLS=tcp"]
TRANSFER_BENCH = peers.ROOT / "build" / "bench" / "transfer_bench"
ENDPOINT_PEER = peers.ROOT / "build" / "transfer" / "endpoint_peer"


def run(command, what):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise peers.PeerError(f"{what}: {(done.stderr + done.stdout)[-800:]}")
    return done.stdout


class Process:
    """A process that serves until its input ends; `line` is the first it printed that begins like `like`."""

    def __init__(self, command, like=""):
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.line = self.process.stdout.readline()
        while self.line and not self.line.startswith(like):
            self.line = self.process.stdout.readline()
        self.line = self.line.strip()
        if not self.line:
            raise peers.PeerError(f"{command[0]} ended with status {self.process.wait()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()


def ours(kinds, pieces, prefix=(), own=None, peer=None):
    """{(way, piece in KiB): bytes a second}; memcpy has piece 0."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        file = pathlib.Path(folder) / "report.json"
        run([*prefix, TRANSFER_BENCH, "--pool-mib", POOL_MIB, "--passes", PASSES, "--kinds", kinds,
             "--piece-kib", ",".join(map(str, pieces)), "--json", file,
             *(["--host", own, "--peer", peer] if peer else [])], "transfer_bench")
        ways = json.loads(file.read_text())
    return {(w["way"], 0 if w["way"] == "memcpy" else w["piece_bytes"] >> 10): w["bytes_per_s"]
            for w in ways}


def library(name, piece_kib, hosts=("127.0.0.1", "127.0.0.1"), there=(), here=()):
    """NIXL or Mooncake's transfer engine, walking the pool; None where it cannot."""
    python, script = peers.walker_python(name), peers.ROOT / "bench" / "peer" / f"{name}_walk.py"
    try:
        with Process([*there, python, script, "serve", hosts[0], POOL_MIB], "{") as server:
            out = run([*here, python, script, "walk", hosts[1], server.line, POOL_MIB, piece_kib,
                       PASSES], name)
        return json.loads(out.strip().splitlines()[-1])["bytes_per_s"]
    except peers.PeerError as error:
        peers.say(f"{name} cannot walk this pool: {error}")
        return None


def ucx(transports, piece_kib, host="127.0.0.1", there=(), here=()):
    """ucx_perftest's get: one message as large as the pool, which so is walked, or pieces of a stream."""
    program = shutil.which("ucx_perftest")
    if program is None:
        raise peers.PeerError("ucx_perftest is missing: install Debian's package ucx-utils")
    env = ["env", f"UCX_TLS={transports}", "UCX_LOG_LEVEL=error"]
    server = subprocess.Popen([*there, *env, program, "-p", "13399"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    size, count = (POOL_MIB << 20, PASSES) if piece_kib is None else \
        (piece_kib << 10, PASSES * (POOL_MIB << 10) // piece_kib)
    try:
        for _ in range(50):  # Until it listens.
            done = subprocess.run([*here, *env, program, "-p", "13399", host, "-t", "ucp_get", "-s",
                                   str(size), "-n", str(count), "-w", "1", "-f"],
                                  capture_output=True, text=True, check=False)
            if done.returncode == 0:
                # Its last line: ..., overall bandwidth in MiB/s, and two message rates.
                return float(done.stdout.strip().splitlines()[-1].split()[-3]) * (1 << 20)
            subprocess.run(["sleep", "0.1"], check=True)
        peers.say(f"ucx_perftest failed: {done.stderr[-300:]}")
        return None
    finally:
        server.kill()
        server.wait()


def best(sides):
    """The name and samples of the side with the highest median; sides that cannot are left out."""
    able = {name: samples for name, samples in sides.items() if samples and None not in samples}
    name = max(able, key=lambda n: statistics.median(able[n]))
    return name, able[name]


def host(args):
    """Two processes of a host."""
    samples, sides = {}, {}
    for _ in range(args.rounds):
        for way, rate in ours("shm", PIECES_KIB).items():
            samples.setdefault(way, []).append(rate / 1e9)
        for piece in PIECES_KIB:
            for name in ("nixl", "mooncake"):
                rate = library(name, piece)
                sides.setdefault(f"{name}, {piece >> 10} MiB", []).append(rate and rate / 1e9)
        rate = ucx("posix,sysv,cma,self", None)
        sides.setdefault("ucx_perftest get", []).append(rate and rate / 1e9)
    for name, figures in sides.items():
        peers.say(f"{name}: {figures}")
    name, theirs = best(sides)
    rows = []
    for piece in PIECES_KIB:
        raw, verified = samples["shm raw", piece], samples["shm verified", piece]
        work = f"KV between processes, {piece >> 10} MiB pieces"
        rows += [make_row(f"{work}, raw", "GB/s", raw, "memcpy", samples["memcpy", 0], 0.9),
                 make_row(f"{work}, verified", "GB/s", verified, "memcpy", samples["memcpy", 0], 0.8),
                 make_row(f"{work}, verified", "GB/s", verified, name, theirs, 1)]
    return rows


def hosts(args):
    """Two network namespaces, over TCP."""
    samples, sides = {}, {piece: {} for piece in PIECES_KIB}
    why_not = namespaces.why_not()
    if why_not is not None:
        raise peers.PeerError(why_not)
    with (namespaces.Network(["there", "here"]) as network,
          tempfile.TemporaryDirectory(prefix="penstock-") as folder):
        there, here = network.inside("there"), network.inside("here")
        addresses = [network.addresses["there"], network.addresses["here"]]
        for _ in range(args.rounds):
            for kind in ("tcp", "ucx"):
                with Process([*there, ENDPOINT_PEER, f"peer-{kind}", folder, kind, POOL_MIB << 20,
                              addresses[0]]) as peer:
                    for way, rate in ours(kind, PIECES_KIB, here, addresses[1], peer.line).items():
                        samples.setdefault(way, []).append(rate / 1e9)
            for piece in PIECES_KIB:
                for name in ("nixl", "mooncake"):
                    rate = library(name, piece, addresses, [*there, *ONLY_TCP], [*here, *ONLY_TCP])
                    sides[piece].setdefault(name, []).append(rate and rate / 1e9)
                rate = ucx("tcp", piece, addresses[0], there, here)
                sides[piece].setdefault("ucx_perftest get", []).append(rate and rate / 1e9)
    rows = []
    for piece in PIECES_KIB:
        for name, figures in sides[piece].items():
            peers.say(f"{name}, {piece >> 10} MiB: {figures}")
        mine = {kind: samples.get((f"{kind} verified", piece)) for kind in ("tcp", "ucx")}
        peers.say(f"ours, {piece >> 10} MiB: {mine}")
        rows.append(make_row(f"KV between hosts, TCP, {piece >> 10} MiB pieces, verified", "GB/s",
                             best(mine)[1], *best(sides[piece]), 1))
    return rows


PARTS = {"move, one host": host, "move, two hosts": hosts}
