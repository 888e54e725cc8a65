#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How goodput grows with workers on one host, and with hosts, by `penstock bench scale`.

    ./dev bench hosts [--json FILE]

Workers are paced: they take the time of a model without computing it, so that there may be more of them
than cores. Hosts are network namespaces of this machine, joined by a bridge; KV moves between them by
TCP. A row is the least efficiency, goodput(N) / (N goodput(1)), of all sizes that do not reach the
machine's CPU limit. Needs root for the namespaces. About 6 minutes. JSON rows: as of ./dev bench engine.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import clusters
import peers
import rows as table

sys.path.insert(0, str(peers.ROOT / "tests"))
import namespaces  # noqa: E402  (of the tests, which need hosts, too)

MODEL = peers.ROOT / "tests" / "golden" / "tiny" / "llama3"
WORKERS, HOSTS = [1, 2, 4, 8, 16], [1, 2, 4]
PORT = 7070
# A request takes 128 ms of a prefill worker, and of a decode worker with 40 running answers
# 64 * (32 / 40 + 0.8) = 102 ms; of one that does both, with 24 of them, 128 + 64 * (32 / 24 + 0.8) = 265 ms.
# So as many prefill as decode workers is right, and two workers can do what twice one can. Lengths
# vary, or all would begin and end in step. A decode worker has room for all 48 of a pair: with 32 of
# them, room would be what limits a pair, and not time.
LOAD = ["--device", "paced", "--pace-prefill-tokens-per-s", 2000, "--pace-step-ms", 32, "--pace-sequence-ms", 0.8,
        "--prompt", "uniform:192:320", "--output", "uniform:32:96", "--concurrency", 24, "--requests", 120]
GROUP = {"threads": 1, "kv_bytes": "64MiB", "sequences": 64}


def scale(deployment, folder, *flags, within=()):
    """`penstock bench scale` of a deployment: its points."""
    file, report = pathlib.Path(folder) / "deployment.yaml", pathlib.Path(folder) / "report.json"
    file.write_text(json.dumps(deployment), encoding="utf-8")  # JSON is YAML.
    command = [*within, clusters.PENSTOCK, "bench", "scale", file, *flags, *LOAD, "--json", report]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise peers.PeerError(f"penstock bench scale: {done.stderr[-2000:]}")
    peers.say("\n" + done.stdout)
    return json.loads(report.read_text())


def row(work, report):
    free = [p for p in report["points"] if not p["cpu_limit"]]
    if not free:
        raise peers.PeerError("this machine is at its CPU limit already with the smallest cluster")
    worst = min(free, key=lambda p: p["efficiency"])
    last = free[-1]
    note = (f"{last['steady_goodput_per_s']:.1f} requests/s with {last['workers']} workers, "
            f"{last['cpu_cores']:.2f} of {report['cpus']} cores")
    if len(free) < len(report["points"]):
        note += f"; CPU limit with {', '.join(str(p['workers']) for p in report['points'] if p['cpu_limit'])}"
    return table.make_row(work, "of linear", [worst["efficiency"]], "linear", [1.0], 0.9, note=note)


def rows(_args):
    """Both rows; once, as each is minutes long."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        report = scale({"model": str(MODEL), "prefill": GROUP, "decode": GROUP}, folder, "--workers",
                       ",".join(map(str, WORKERS)))
        result = [row(f"goodput of {WORKERS[0]} to {WORKERS[-1]} paced workers on one host", report)]
        why_not = namespaces.why_not()
        if why_not is not None:
            raise peers.PeerError(why_not)
        names = [f"host{i}" for i in range(1, HOSTS[-1] + 1)]
        with namespaces.Network([*names, "client"]) as network:
            groups = [{"host": name, **GROUP} for name in names]
            report = scale({"model": str(MODEL), "hosts": {name: network.addresses[name] for name in names},
                            "ports": {"grpc": PORT}, "transfer": ["tcp"], "prefill": groups, "decode": groups},
                           folder, "--hosts", ",".join(map(str, HOSTS)), "--on",
                           " ".join(network.inside(names[0])).replace(names[0], "{host}"),
                           within=network.inside("client"))
        result.append(row(f"goodput of {HOSTS[0]} to {HOSTS[-1]} hosts of two paced workers", report))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, prog="./dev bench hosts",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    args = parser.parse_args()
    table.warn_if_busy()
    try:
        result = rows(args)
    except peers.PeerError as error:
        print(f"bench/hosts.py: {error}", file=sys.stderr)
        return 1
    table.print_table(result)
    if args.json:
        table.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
