# SPDX-License-Identifier: Apache-2.0
"""Rows of ./dev bench kvstore that programs of their own give: the index, codecs, their quality, eviction."""

import json
import pathlib
import subprocess
import tempfile

import clusters
import peers
from rows import make_row

LOOKUPS = {"runs_32": ("chains of 32 runs", 20000), "runs_of_one": ("every block its own run", 4000)}
# Codec: of KvDtype, ratio at least, GB/s at least; mean KL at most, of lossy ones.
CODECS = [("planes", "bf16", 1.30, 1.5, None), ("planes", "f16", 1.10, 1.5, None),
          ("int8", "f16", 1.9, 3, 5e-3), ("k8v4", "f16", 2.4, 3, 2e-2), ("kivi4", "f16", 3.0, 3, 5e-2)]
OWN_POLICY = "reuse-density"
# Tokens: what the recorded conversations must give, and the made trace.
CAPACITIES = {"1M": (1_000_000, 2.0, 1), "3M": (3_000_000, 1.3, 1), "10M": (10_000_000, 1, 1),
              "20M": (20_000_000, 1, 1)}


def google_benchmark(program, *arguments):
    """Its figures, by name."""
    path = peers.ROOT / "build" / program
    if not path.exists():
        raise peers.PeerError(f"{path} is missing: run ./dev build")
    done = subprocess.run([path, "--benchmark_format=json", *arguments], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise peers.PeerError(f"{path}: {done.stderr[-500:]}")
    figures = {}
    for figure in json.loads(done.stdout)["benchmarks"]:
        if figure.get("error_occurred"):
            raise peers.PeerError(f"{path}: {figure['error_message']}")
        figures[figure["name"].split("/iterations")[0]] = figure
    return figures


def index(_args):
    figures = google_benchmark("coordinator/store_index_bench", "--benchmark_filter=runs")
    return [make_row(f"index: longest-prefix lookups, {shape}", "per s",
                     [figures[f"Lookup/{name}"]["lookups_per_s"]], "wanted", [wanted], 1,
                     note=f"{figures[f'Lookup/{name}']['bytes_per_copy']:.1f} bytes a copy")
            for name, (shape, wanted) in LOOKUPS.items()]


def codecs(args):
    peers.find_model("smollm2")
    figures = google_benchmark("bench/codecs_bench")
    quality = {}
    if args.quality:
        record = json.loads(pathlib.Path(args.quality).read_text(encoding="utf-8"))
        quality = {codec["codec"]: codec["mean_kl"] for codec in record["codecs"]}
    rows = []
    for codec, dtype, ratio, rate, kl in CODECS:
        figure = figures[f"{dtype}/{codec}"]
        work = f"{codec} of {dtype} pages"
        rows += [make_row(f"{work}: ratio", "", [figure["ratio"]], "raw", [1], ratio)]
        rows += [make_row(f"{work}: {way}", "GB/s", [figure[f"{way}_GBps"]], "wanted", [rate], 1)
                 for way in ("encode", "decode")]
        if kl is not None and codec in quality:
            rows.append(make_row(f"{work}: mean KL", "", [quality[codec]], "wanted", [kl], 1,
                                 at_most=True))
    return rows


def replay(trace, name, recorded):
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        report = pathlib.Path(folder) / "report.json"
        clusters.penstock("replay", trace, "--policy", f"lru,{OWN_POLICY}", "--capacity",
                          ",".join(CAPACITIES), "--json", report)
        found = {(row["capacity_tokens"], row["policy"]): row["token_hit_rate"]
                 for row in json.loads(report.read_text())["rows"]}
    rows = []
    for capacity, (tokens, wanted, wanted_made) in CAPACITIES.items():
        # Capacities are rounded to whole blocks.
        at = min({key[0] for key in found}, key=lambda c, t=tokens: abs(c - t))
        rows.append(make_row(f"{OWN_POLICY}, {name}, {capacity} tokens", "of tokens",
                             [found[at, OWN_POLICY]], "lru", [found[at, "lru"]],
                             wanted if recorded else wanted_made))
    return rows


def eviction(args):
    rows = []
    if args.trace:
        rows += replay(args.trace, "recorded trace", True)
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        made = pathlib.Path(folder) / "made.jsonl"
        clusters.penstock("replay", "--make", "chat-and-documents", "--seed", 1, "--out", made)
        return rows + replay(made, "made trace", False)


PARTS = {"index": index, "codecs": codecs, "eviction": eviction}
