#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What tracing costs: user-mode instructions per request, of all processes of a cluster, on against off.

    bench/trace_cost.py PENSTOCK [--model M] [--requests N] [--words W] [--tokens T] [--counter C] [--json F]

Each cluster is started twice, for N requests and for none, so that starting up does not count. Counted
by `perf stat` where the machine lets it count instructions, else by valgrind (slow, exact). The row of
the issue: at most 1 % more.
"""

import argparse
import json
import pathlib
import random
import re
import signal
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WAIT_S = 600


def perf_counts():
    run = subprocess.run(["perf", "stat", "-x,", "-e", "instructions:u", "true"],
                         capture_output=True, text=True, check=False)
    return run.returncode == 0 and "not supported" not in run.stderr


class Counter:
    """Runs a program so that its instructions are counted; `total` adds up once it has ended."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.files = kind, pathlib.Path(folder), []

    def command(self, *program):
        file = self.folder / f"count-{len(self.files)}"
        self.files.append(file)
        if self.kind == "perf":
            return ["perf", "stat", "-x,", "-o", str(file), "-e", "instructions:u", *program]
        return ["valgrind", "--tool=callgrind", f"--callgrind-out-file={file}", *program]

    def total(self):
        pattern = r"^(\d+),.*instructions" if self.kind == "perf" else r"^(?:totals|summary): (\d+)"
        return sum(int(re.search(pattern, file.read_text(), re.M).group(1)) for file in self.files)


def await_true(what, holds):
    deadline, never = time.monotonic() + WAIT_S, threading.Event()
    while not holds():
        assert time.monotonic() < deadline, what
        never.wait(0.2)


def instructions(options, traced, requests):
    """Of a coordinator with gateway, a prefill and a decode worker, from their start to their end."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        counter, processes = Counter(options.counter, folder), []

        def start(role, *flags):
            ready = pathlib.Path(folder) / f"{role}.json"
            program = [options.penstock, role, *flags, *([] if traced else ["--no-trace"]),
                       "--ready-file", str(ready)]
            with open(pathlib.Path(folder) / f"{role}.log", "w", encoding="utf-8") as log:
                process = subprocess.Popen(counter.command(*program), stdout=log, stderr=log)
            processes.append((process, ready))
            await_true(f"{role} is ready", ready.exists)
            return json.loads(ready.read_text())["grpc"]

        server = start("coordinator", "--policy", "round-robin", "--serve", f"m={options.model}")
        for role in ("prefill", "decode"):
            start(role, "--name", role, "--coordinator", server, "--model", options.model,
                  "--model-name", "m", "--socket-folder", folder, "--threads", "1")

        def whole():
            run = subprocess.run([options.penstock, "status", "--server", server, "--json"],
                                 capture_output=True, text=True, check=False)
            status = json.loads(run.stdout) if run.returncode == 0 else {"pairs": []}
            return (any(p["transport"] for p in status["pairs"])
                    and any(m["ready"] for m in status["models"]))

        await_true("the pair is verified", whole)
        draw = random.Random(7)
        for _ in range(requests):
            prompt = " ".join(draw.choice("a river of stone and light".split())
                              for _ in range(options.words))
            subprocess.run([options.penstock, "generate", "--server", server, "--raw", "--seed", "1",
                            "--ignore-eos", "--max-tokens", str(options.tokens), prompt],
                           check=True, stdout=subprocess.DEVNULL)
        for process, ready in reversed(processes):
            # perf and valgrind pass it on in ways of their own: the program itself is told.
            pid = json.loads(ready.read_text())["pid"]
            subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(pid)], check=True)
            process.wait(WAIT_S)
        return counter.total()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("penstock")
    parser.add_argument("--model", default=str(ROOT / "tests/golden/tiny/llama3"))
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--counter", choices=["perf", "valgrind"],
                        default="perf" if perf_counts() else "valgrind")
    parser.add_argument("--json")
    options = parser.parse_args()
    per_request = {}
    for traced in (True, False):
        rest = instructions(options, traced, 0)
        busy = instructions(options, traced, options.requests)
        per_request["on" if traced else "off"] = (busy - rest) / options.requests
    ratio = per_request["on"] / per_request["off"]
    print(f"user-mode instructions per request ({options.counter}): on {per_request['on']:,.0f}, "
          f"off {per_request['off']:,.0f}, ratio {ratio:.4f} (wanted: at most 1.01)")
    if options.json:
        result = {"row": "tracing on against off", "ratio": ratio, "wanted": 1.01, **per_request}
        pathlib.Path(options.json).write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
