#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The engine beside its peers on this machine: same GGUF file, same threads, runs taking turns.

    ./dev bench engine [--json FILE] [--quick] [--rows REGEX]

Every figure is the median of its rounds, with the lowest and highest beside it; the rounds of ours
and of every peer alternate. llama.cpp runs with flash attention off and on, OpenVINO GenAI with
either attention backend, and the better one counts. `limit` is what bounds the work on this machine,
reading or multiplying, as measured by the same process with the same threads, and the share of that
bound which ours reaches. About 15 minutes, 4 with --quick (which leaves out 8,000 tokens of context
and prompts of 2,048). Run it on a machine that does nothing else.

JSON rows: work, ours, unit, peer, theirs, ratio (above 1: ours is better), target, and limit,
limit_share, ours_range, theirs_range, met.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

import peers
import rows as table

RESIDENT_SLACK_BYTES = 120e6
READ_SHARE_ENOUGH = 0.7  # Of the read limit, where the ratio at 4,096 tokens falls short.
PROMPT = "The capital of France is"
STREAMS, STREAM_PROMPT = 16, 128
# Decode rows: context, tokens timed in a round, target.
DECODES = [(4, 64, 1.5), (4096, 24, 2.5), (8000, 16, 3.0)]
PREFILLS = [512, 2048]
PREFILL_TARGETS = {"OpenVINO GenAI": 1.2, "llama.cpp": 4.0}
SECONDS_MAX = {False: 14 * 60, True: 3.5 * 60}  # After that, no row begins a second round.


class Bench:
    def __init__(self, args):
        self.args = args
        self.threads = args.threads
        self.rounds = args.rounds or (2 if args.quick else 3)
        self.deadline = time.monotonic() + SECONDS_MAX[args.quick]
        self.llama = peers.LlamaCpp()
        self.model = peers.find_model("smollm2")
        self.rows = []
        self.reports = {}  # The last report of our program by side, for limits and memory.

    def wanted(self, work):
        return re.search(self.args.rows, work) is not None

    def take_turns(self, work, sides, often=1):
        """{side: samples} of callables that measure once each; `often` times the rounds."""
        samples = {side: [] for side in sides}
        for turn in range(self.rounds * often):
            if turn > 0 and time.monotonic() > self.deadline:
                peers.say(f"{work}: out of time after {turn} rounds")
                break
            for side, measure in sides.items():
                samples[side].append(measure())
                peers.say(f"{work}, round {turn + 1}, {side}: {samples[side][-1]:.4g}")
        return samples

    def ours(self, *arguments, key="tokens_per_s", model=None):
        """A callable that runs our program once and gives one figure of its report."""

        def measure():
            self.reports["ours"] = peers.engine_bench(
                [arguments[0], "--model", model or self.model, "--threads", self.threads,
                 *arguments[1:]], self.args.program)
            self.shares.append(self.reports["ours"].get("limit_share"))
            return self.reports["ours"][key]

        self.shares = []
        return measure

    def add(self, work, unit, samples, peer, target, lower_is_better=False, enough=None):
        """A row from the samples of "ours" and of the sides whose names begin with `peer`."""
        better = min if lower_is_better else max
        sides = {side: statistics.median(s) for side, s in samples.items() if side.startswith(peer)}
        best = better(sides, key=sides.get)
        row = table.make_row(work, unit, samples["ours"], best, samples[best], target,
                             lower_is_better=lower_is_better)
        shares = [share for share in self.shares if share is not None]
        share = statistics.median(shares) if shares else None
        limit = self.reports["ours"].get("limit") if shares else None
        row["limit"], row["limit_share"] = limit, share
        row["met"] |= enough is not None and limit == "read" and share >= enough
        self.rows.append(row)
        peers.say(f"{work}: {row['ours']:.4g} {unit}, {best} {row['theirs']:.4g}, ratio {row['ratio']:.2f}")

    def probe(self, flash_attention, context_tokens):
        return peers.Worker([self.llama.probe, self.model, self.threads, flash_attention,
                             context_tokens], f"llama_probe -fa {flash_attention}")

    def decode(self):
        todo = [d for d in DECODES if self.wanted(decode_name(d[0]))
                and not (self.args.quick and d[0] > 4096)]
        if not todo:
            return
        room = todo[-1][0] + 64
        with self.probe(0, room) as off, self.probe(1, room) as on:
            for context, tokens, target in todo:
                for probe in (off, on):
                    if context > 1000:
                        peers.say(f"{probe.name}: computing a context of {context} tokens")
                    probe.ask_probe(f"context {context}")
                    probe.ask_probe("decode 2")

                def theirs(probe, count=tokens):
                    return count / float(probe.ask_probe(f"decode {count}")[0])

                work = decode_name(context)
                samples = self.take_turns(work, {
                    "ours": self.ours("decode", "--context", context, "--tokens", tokens),
                    "llama.cpp -fa 0": lambda: theirs(off), "llama.cpp -fa 1": lambda: theirs(on)})
                self.add(work, "tokens/s", samples, "llama.cpp", target,
                         enough=READ_SHARE_ENOUGH if context == 4096 else None)

    def prefill(self):
        todo = [n for n in PREFILLS if self.wanted(f"prefill {n:,}")
                and not (self.args.quick and n > 512)]
        if not todo:
            return
        python = peers.openvino_python()
        script = peers.ROOT / "bench" / "peer" / "openvino_worker.py"
        peers.say("loading the model in OpenVINO GenAI")
        with (peers.Worker([python, script, self.model, self.threads, "PA"], "OpenVINO PA") as paged,
              peers.Worker([python, script, self.model, self.threads, "SDPA"], "OpenVINO SDPA") as sdpa,
              self.probe(0, todo[-1] + 8) as off, self.probe(1, todo[-1] + 8) as on):
            paged.read(), sdpa.read()  # They are ready.

            def openvino(worker, count):
                request = json.dumps({"prompt_tokens": count, "new_tokens": 1})
                return count / json.loads(worker.ask(request))["ttft_s"]

            def llama(probe, count):
                probe.ask_probe("context 0")
                return count / float(probe.ask_probe(f"context {count}")[0])

            for worker in (paged, sdpa):
                openvino(worker, todo[0])
            for probe in (off, on):
                llama(probe, 64)
            for count in todo:
                work = f"prefill {count:,}"
                samples = self.take_turns(work, {
                    "ours": self.ours("prefill", "--tokens", count),
                    "OpenVINO GenAI PA": lambda n=count: openvino(paged, n),
                    "OpenVINO GenAI SDPA": lambda n=count: openvino(sdpa, n),
                    "llama.cpp -fa 0": lambda n=count: llama(off, n),
                    "llama.cpp -fa 1": lambda n=count: llama(on, n)})
                for peer, target in PREFILL_TARGETS.items():
                    self.add(work, "tokens/s", samples, peer, target)

    def streams(self):
        work = f"{STREAMS} streams decoding together"
        if not self.wanted(work):
            return
        tokens = 16 if self.args.quick else 32

        def batched(flash_attention):
            done = subprocess.run(
                [self.llama.batched_bench, "-m", self.model, "-t", str(self.threads), "-c",
                 str(STREAMS * (STREAM_PROMPT + tokens) + 256), "-npp", str(STREAM_PROMPT), "-ntg",
                 str(tokens), "-npl", str(STREAMS), "-fa", flash_attention, "--output-format",
                 "jsonl"], capture_output=True, text=True, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode != 0 or not lines:
                raise peers.PeerError("llama-batched-bench: " + done.stderr[-500:])
            return json.loads(lines[-1])["speed_tg"]

        samples = self.take_turns(work, {
            "ours": self.ours("decode", "--streams", STREAMS, "--context", STREAM_PROMPT,
                              "--tokens", tokens),
            "llama.cpp -fa off": lambda: batched("off"), "llama.cpp -fa on": lambda: batched("on")})
        self.add(work, "tokens/s", samples, "llama.cpp", 4.0)

    def first_token(self):
        work = "load to first token, warm file"
        if not self.wanted(work):
            return

        def ours():
            start = time.monotonic()
            command = [self.args.program or peers.ROOT / "build" / "bench" / "engine_bench",
                       "first-token", "--model", self.model, "--threads", self.threads, "--prompt",
                       PROMPT]
            with peers.Worker(command, "engine_bench") as worker:
                worker.read()
                return (time.monotonic() - start) * 1000

        def theirs(flash_attention):
            start = time.monotonic()
            with self.probe(flash_attention, 512) as probe:
                probe.ask_probe(f"first {PROMPT}")
                return (time.monotonic() - start) * 1000

        ours()  # From here on, the file is in the page cache.
        self.shares = []
        # Each takes a tenth of a second, which one hiccup doubles.
        samples = self.take_turns(work, {"ours": ours, "llama.cpp -fa 0": lambda: theirs(0),
                                         "llama.cpp -fa 1": lambda: theirs(1)}, often=5)
        self.add(work, "ms", samples, "llama.cpp", 1.0, lower_is_better=True)

    def memory(self):
        for name, context in (("smollm2", 4096), ("gemma3-270m", 2048)):
            work = f"peak resident memory, {name}, {context:,} tokens"
            if not self.wanted(work):
                continue
            self.ours("decode", "--context", context, "--tokens", 4, model=peers.find_model(name))()
            report, self.shares = self.reports["ours"], []
            bound = report["weights_bytes"] + report["kv_bytes"] + RESIDENT_SLACK_BYTES
            samples = {"ours": [report["peak_resident_bytes"] / 1e6],
                       "weights + KV + 120 MB": [bound / 1e6]}
            self.add(work, "MB", samples, "weights", 1.0, lower_is_better=True)

    def run(self):
        for part in (self.decode, self.prefill, self.streams, self.first_token, self.memory):
            part()


def decode_name(context):
    return f"decode at {context:,} tokens of context" if context > 1000 else "decode, empty context"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, prog="./dev bench engine",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    table.add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--rounds", type=int, help="of every row (3, or 2 with --quick)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", metavar="FILE", help="another engine_bench than build/bench's")
    args = table.parse(parser)
    if args.threads < 1 or (args.rounds is not None and args.rounds < 1):
        parser.error("--threads and --rounds are at least 1")
    return args


def main():
    args = parse_args()
    table.warn_if_busy()
    bench = None
    status = 0
    try:
        bench = Bench(args)
        bench.run()
    except peers.PeerError as error:
        print(f"bench/engine.py: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    if bench is None or not bench.rows:
        return status or 1
    table.print_table(bench.rows)
    if args.json:
        table.write_json(args.json, bench.rows)
    return status


if __name__ == "__main__":
    sys.exit(main())
