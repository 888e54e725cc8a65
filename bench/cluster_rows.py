# SPDX-License-Identifier: Apache-2.0
"""Rows of ./dev bench cluster that a whole cluster gives."""

import json
import pathlib
import statistics
import subprocess
import tempfile

import clusters
import peers
import sweep_picture
from rows import make_row

PROMPT = 2048
STREAMS, STREAM_PROMPT, STREAM_TOKENS = 4, 64, 1100
ARRIVALS, ARRIVAL_EVERY_MS, ARRIVAL_FIRST_MS = 4, 3600, 1500
CHUNKS = [32, 64, 128, 256, 512]
VOCABULARY = 40000  # Prompts use ids below it.
RELAY_WORKERS = 4


def deployment(**keys):
    return {"model": str(peers.find_model("smollm2")), "policy": "round-robin", **keys}


def handoff(args):
    """TTFT through a prefill and a decode worker beside the engine alone, and what hid the transfer."""
    model = peers.find_model("smollm2")
    split, alone, hidden = [], [], []
    group = {"threads": 2, "kv_bytes": "256MiB"}
    with clusters.Cluster(deployment(prefill=group, decode=group)) as cluster:
        def ask(seed, requests):
            _, records = cluster.bench("--requests", requests, "--concurrency", 1, "--prompt", PROMPT,
                                       "--output", 1, "--seed", seed, "--vocab", VOCABULARY)
            return [record["ttft_ms"] for record in records]

        ask(1000, 2)  # Memory that is there, connections that are made.
        for turn in range(args.rounds):
            split.append(statistics.median(ask(turn, 3)))
            report = peers.engine_bench(["prefill", "--model", model, "--threads", 2, "--tokens", PROMPT])
            alone.append(1000 * PROMPT / report["tokens_per_s"])
            peers.say(f"TTFT {split[-1]:.0f} ms over two workers, {alone[-1]:.0f} ms alone")
        for pair in cluster.trace()["pairs"]:
            hidden.append(pair["hidden"] / pair["underway"])
    return [make_row(f"TTFT of {PROMPT:,} tokens over two workers", "ms", split, "engine alone", alone,
                     1.10, at_most=True),
            make_row("transfer time hidden behind prefill", "share", hidden, "all of it", [1.0], 0.9)]


def mixed_load(path):
    """Mooncake's format: running streams, and long prompts that arrive beside them."""
    lines, ids = [], 0
    for _ in range(STREAMS):
        lines.append({"timestamp": 0, "input_length": STREAM_PROMPT, "output_length": STREAM_TOKENS,
                      "hash_ids": [ids]})
        ids += 1
    for i in range(ARRIVALS):
        blocks = PROMPT // 512
        lines.append({"timestamp": ARRIVAL_FIRST_MS + i * ARRIVAL_EVERY_MS, "input_length": PROMPT,
                      "output_length": 1, "hash_ids": list(range(ids, ids + blocks))})
        ids += blocks
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def stream_gaps(records):
    """TTFT of the long prompts, and the streams' gaps that end or begin while one of them waits."""
    prompts = [r for r in records if r["prompt_tokens"] == PROMPT]
    waits = [(r["arrival_s"], r["arrival_s"] + r["ttft_ms"] / 1000) for r in prompts]
    gaps = []
    for record in records:
        if record["prompt_tokens"] == PROMPT:
            continue
        at = record["arrival_s"] + record["ttft_ms"] / 1000
        for gap in record["itl_ms"]:
            begin, at = at, at + gap / 1000
            if any(begin <= end and first <= at for first, end in waits):
                gaps.append(gap)
    return statistics.median(r["ttft_ms"] for r in prompts), gaps


def interference(args):
    """Gaps between tokens of running streams while long prompts arrive: split workers beside one."""
    split = deployment(prefill={"cpus": "0", "kv_bytes": "256MiB"},
                       decode={"cpus": "1", "kv_bytes": "512MiB"})
    sides = {"split": split}
    for chunk in CHUNKS:
        sides[chunk] = deployment(prefill=0, decode={"cpus": "0-1", "kv_bytes": "512MiB",
                                                     "chunk_tokens": chunk})
    ttft, itl = {side: [] for side in sides}, {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        load = pathlib.Path(folder) / "load.jsonl"
        mixed_load(load)
        for _ in range(args.rounds):
            for side, keys in sides.items():
                with clusters.Cluster(keys) as cluster:
                    cluster.bench("--requests", 2, "--concurrency", 1, "--prompt", PROMPT, "--output", 8,
                                  "--seed", 1000, "--vocab", VOCABULARY)
                    first, gaps = stream_gaps(cluster.bench("--trace", load, "--vocab", VOCABULARY)[1])
                ttft[side].append(first)
                itl[side].append(clusters.percentile(gaps, 99))
                name = side if side == "split" else f"one worker, chunks of {side}"
                peers.say(f"{name}: TTFT p50 {first:.0f} ms, ITL p99 {itl[side][-1]:.1f} ms")
    medians = {side: (statistics.median(ttft[side]), statistics.median(itl[side])) for side in sides}
    if args.svg:
        pathlib.Path(args.svg).write_text(sweep_picture.draw(medians), encoding="utf-8")
    quick = [chunk for chunk in CHUNKS if medians[chunk][0] <= medians["split"][0]]
    # Where every chunk is slower to the first token, the one that comes nearest.
    chunk = quick[0] if quick else min(CHUNKS, key=lambda c: medians[c][0])
    return [make_row(f"ITL p99 of {STREAMS} streams while prompts of {PROMPT:,} arrive, split", "ms",
                     itl["split"], f"one worker, chunks of {chunk}", itl[chunk], 0.5, at_most=True)]


def relay(args):
    """What lies between a decode worker's step and the client that reads the token."""
    paced, cores = [], []
    for _ in range(args.rounds):
        with clusters.PacedCluster(RELAY_WORKERS) as cluster:
            cluster.bench("--requests", 8, "--concurrency", 8, "--prompt", 64, "--output", 50)
            cpu, report = cluster.cpu_seconds(), cluster.bench(
                "--requests", 32, "--concurrency", RELAY_WORKERS, "--prompt", 64, "--output", 200)[0]
            cores.append((cluster.cpu_seconds() - cpu) / report["seconds"] + report["client"]["cores"])
        paced.append(report["relay_ms"]["p99"])
        peers.say(f"p50 {report['relay_ms']['p50']:.3f} ms, p99 {paced[-1]:.3f} ms, {cores[-1]:.2f} cores")
    return [make_row(f"added per token, p99, {RELAY_WORKERS} paced workers", "ms", paced, "0.3 ms", [0.3],
                     1, at_most=True, note=f"{statistics.median(cores):.2f} cores busy")]


def routing(_args):
    """The state machine alone."""
    program = peers.ROOT / "build" / "coordinator" / "coordinator_bench"
    done = subprocess.run([program, "--benchmark_format=json"], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise peers.PeerError(f"{program}: {done.stderr[-500:]}")
    rows = []
    for figure in json.loads(done.stdout)["benchmarks"]:
        name = figure["name"].split("/")
        if name[0] == "Hash":
            rows.append(make_row("hashing 32k tokens", "us", [figure["real_time"]], "wanted", [400], 1,
                                 at_most=True))
            continue
        work = f"routing decisions, {name[1].replace('_', '-')}"
        rows.append(make_row(work, "per s", [figure["decisions_per_s"]], "wanted", [1e4], 1))
        rows.append(make_row(f"{work}, p99", "us", [figure["decisions_p99_us"]], "wanted", [1000], 1,
                             at_most=True))
    return rows


def tracing(args):
    """Counted instructions: exact, so once."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        file = pathlib.Path(folder) / "cost.json"
        done = subprocess.run(["python3", peers.ROOT / "bench" / "trace_cost.py", clusters.PENSTOCK,
                               "--json", file], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise peers.PeerError(done.stderr[-1000:])
        cost = json.loads(file.read_text())
    return [make_row("tracing, user-mode instructions per request", "", [cost["on"]], "without",
                     [cost["off"]], 1.01, at_most=True)]


PARTS = {"handoff": handoff, "interference": interference, "relay": relay, "routing": routing,
         "tracing": tracing}
