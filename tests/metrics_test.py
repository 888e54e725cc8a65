#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The metrics of a cluster, as Prometheus sees them.

    tests/metrics_test.py table PENSTOCK       every process shows what deploy/METRICS.md says, no more and
                                               no less; at rest nobody holds anything
    tests/metrics_test.py prometheus PENSTOCK  a real Prometheus scrapes the cluster and answers a query;
                                               exits with 77 where none is installed

Standard library only.
"""

import collections
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

from processes import MODEL, ROOT, WAIT_S, await_true

TABLE = ROOT / "deploy/METRICS.md"
REQUESTS = 12
SAMPLE = re.compile(r'^([a-zA-Z_:][\w:]*?)(_bucket|_sum|_count)?(?:\{(.*)\})? (\S+)$')


def get(url):
    with urllib.request.urlopen(url, timeout=WAIT_S) as response:
        return response.read().decode()


class Cluster:
    """A coordinator, a gateway of its own, a store node, a prefill and a decode worker."""

    def __init__(self, penstock, folder):
        self.penstock, self.folder, self.processes = penstock, pathlib.Path(folder), []
        self.metrics = {}
        try:
            self.start_all(folder)
        except BaseException:
            self.kill()
            raise

    def start_all(self, folder):
        serve = ["--serve", f"tiny={MODEL}"]
        coordinator = self.start("coordinator", "coordinator", [])["grpc"]
        self.server = self.start("gateway", "gateway", ["--coordinator", coordinator, *serve])["grpc"]
        self.start("kvstore", "kvstore", ["--coordinator", coordinator, "--socket-folder", folder, "--host-bytes",
                                          "16MiB", "--disk", str(self.folder / "disk"), "--disk-bytes", "320MiB"])
        for role in ("prefill", "decode"):
            self.start(role, role, ["--coordinator", coordinator, "--model", str(MODEL), "--model-name",
                                    "tiny", "--socket-folder", folder, "--threads", "1"])
        await_true("a verified pair", lambda: self.value(
            "coordinator", "penstock_coordinator_pairs", verified="yes") == 1)
        await_true("a store node", lambda: self.value(
            "coordinator", "penstock_coordinator_workers", role="store", state="ready") == 1)

    def start(self, name, role, flags):
        ready = self.folder / f"{name}.json"
        named = [] if role == "coordinator" else ["--name", name]
        self.processes.append(subprocess.Popen(
            [self.penstock, role, *flags, *named, "--metrics-port", "0", "--ready-file", str(ready)],
            stderr=subprocess.DEVNULL))
        process = self.processes[-1]
        await_true(f"{name} is ready", lambda: ready.exists() or process.poll() is not None)
        info = json.loads(ready.read_text())
        self.metrics[name] = info["metrics"]
        return info

    def bench(self):
        """Two prompts of three are long enough to be prefilled elsewhere; the rest is shared."""
        answer = subprocess.run(
            [self.penstock, "bench", "--server", self.server, "--requests", str(REQUESTS),
             "--concurrency", "3", "--prompt", "uniform:40:200", "--prefix-tokens", "64", "--output",
             "8", "--json", str(self.folder / "bench.json")],
            capture_output=True, text=True, check=False, timeout=WAIT_S)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return json.loads((self.folder / "bench.json").read_text())

    def page(self, name):
        return get(f"http://{self.metrics[name]}/metrics")

    def value(self, name, metric, **labels):
        """The sum of the samples with these labels."""
        total = 0
        for line in self.page(name).splitlines():
            match = SAMPLE.match(line)
            if match and match.group(1) + (match.group(2) or "") == metric and all(
                    f'{k}="{v}"' in (match.group(3) or "") for k, v in labels.items()):
                total += float(match.group(4))
        return total

    def end(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        return [process.wait(WAIT_S) for process in reversed(self.processes)]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


def shown(page):
    """name -> [kind, help, labels] of one page."""
    families = collections.OrderedDict()
    for line in page.splitlines():
        if line.startswith("# HELP "):
            name, text = line[7:].split(" ", 1)
            families[name] = ["", text, set()]
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ", 1)
            families.setdefault(name, ["", "", set()])[0] = kind
        elif match := SAMPLE.match(line):
            base, suffix, labels = match.group(1), match.group(2) or "", match.group(3) or ""
            family = families[base if base in families else base + suffix]
            family[2] |= set(re.findall(r'(\w+)="', labels)) - {"le"}
    return families


def rows():
    """(role, name) -> (kind, labels, meaning) of the table."""
    found, role = {}, None
    for line in TABLE.read_text().splitlines():
        if match := re.match(r"## .*`(\w+)`", line):
            role = match.group(1)
        elif line.startswith("## "):
            role = "every"
        elif match := re.match(r"\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", line):
            found[role, match.group(1)] = (match.group(2), match.group(3), match.group(4))
    return found


def check_table(cluster):
    table, faults = rows(), []
    assert len(table) > 30, "the table was not understood"
    for process in cluster.metrics:
        page = shown(cluster.page(process))
        want = {name: row for (role, name), row in table.items() if role in (process, "every")}
        for name, (kind, text, labels) in page.items():
            row = (kind, ", ".join(f"`{label}`" for label in sorted(labels)), text)
            if name not in want:
                faults.append(f"{process}: not in the table: | `{name}` | {' | '.join(row)} |")
            elif (want[name][0], want[name][2]) != (kind, text) or (labels and want[name][1] != row[1]):
                faults.append(f"{process}: the table says {want[name]}: | `{name}` | {' | '.join(row)} |")
        faults += [f"{process}: in the table alone: {name}" for name in want if name not in page]
    assert not faults, "\n".join(faults)


def check_values(cluster, bench):
    """What the client saw and what the cluster counted are the same."""
    same = [
        (REQUESTS, "gateway", "penstock_gateway_requests_total", {"code": "ok"}),
        (bench["prompt_tokens"], "gateway", "penstock_gateway_prompt_tokens_total", {}),
        (bench["cached_tokens"], "gateway", "penstock_gateway_cached_tokens_total", {}),
        (8 * REQUESTS, "gateway", "penstock_gateway_completion_tokens_total", {}),
        (REQUESTS, "gateway", "penstock_gateway_ttft_seconds_count", {}),
        (REQUESTS, "gateway", "penstock_gateway_tpot_seconds_count", {}),
        (7 * REQUESTS, "gateway", "penstock_gateway_itl_seconds_count", {}),
        (0, "gateway", "penstock_gateway_requests_live", {}),
        (1, "coordinator", "penstock_coordinator_workers", {"role": "decode", "state": "ready"}),
        (1, "coordinator", "penstock_coordinator_gateways", {}),
        (0, "coordinator", "penstock_coordinator_degraded_workers", {}),
        (0, "coordinator", "penstock_coordinator_store_degraded_nodes", {}),
        (0, "kvstore", "penstock_kvstore_hostile_total", {}),
        (0, "decode", "penstock_transfer_repeated_reads_total", {}),
        (0, "decode", "penstock_handoffs_total", {"outcome": "failed"}),
    ]
    for want, process, metric, labels in same:
        got = cluster.value(process, metric, **labels)
        assert got == want, f"{process}: {metric} {labels} is {got}, not {want}"
    received = cluster.value("decode", "penstock_handoffs_total", outcome="received")
    assert received > 0, "no prompt was prefilled by the prefill worker"
    assert cluster.value("decode", "penstock_transfer_bytes_total") > 0
    assert cluster.value("decode", "penstock_transfer_seconds_count") == received
    assert cluster.value("prefill", "penstock_engine_prefill_tokens_total") > 0


def check_rest(cluster):
    """Soon after the last request nobody holds anything."""
    for process in ("prefill", "decode"):
        for metric in ("penstock_ledger_attempts_live", "penstock_ledger_held_bytes",
                       "penstock_ledger_draining_bytes", "penstock_ledger_unowned_bytes"):
            await_true(f"{process}: {metric} is zero", lambda: cluster.value(process, metric) == 0)
    for metric in ("requests_live", "queue_requests", "booked_prefills", "booked_sequences",
                   "booked_blocks", "booked_bytes"):
        await_true(metric, lambda: cluster.value("coordinator", "penstock_coordinator_" + metric) == 0)


def check_prometheus(cluster, folder):
    program = shutil.which("prometheus")
    config = pathlib.Path(folder) / "prometheus.yml"
    targets = ", ".join(f'"{address}"' for address in cluster.metrics.values())
    config.write_text("global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
                      f"scrape_configs: [{{job_name: penstock, static_configs: [{{targets: [{targets}]}}]}}]\n")
    # It cannot find a port by itself.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % probe.getsockname()[1]
    server = subprocess.Popen([program, f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb",
                               f"--web.listen-address={address}", "--log.level=error"])

    def ask(query):
        try:
            answer = json.loads(get(f"http://{address}/api/v1/query?" +
                                    urllib.parse.urlencode({"query": query})))
        except OSError:
            assert server.poll() is None, "prometheus has ended"
            return None
        assert answer["status"] == "success", answer
        return [float(sample["value"][1]) for sample in answer["data"]["result"]]

    try:
        await_true("all five are up", lambda: ask("sum(up)") == [5])
        await_true("requests are counted", lambda: ask(
            'sum(penstock_gateway_requests_total{code="ok"})') == [REQUESTS])
        quantile = await_true("a quantile", lambda: ask(
            "histogram_quantile(0.5, sum by (le) (penstock_gateway_ttft_seconds_bucket))"))
        assert 0 < quantile[0] < 120, quantile
        await_true("no leak", lambda: ask("sum(penstock_ledger_unowned_bytes)") == [0])
    finally:
        server.terminate()
        server.wait()


def main(arguments):
    if len(arguments) != 2 or arguments[0] not in ("table", "prometheus"):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == "prometheus" and shutil.which("prometheus") is None:
        print("no prometheus here (Debian: apt-get install prometheus)")
        return 77
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        cluster = None
        try:
            cluster = Cluster(arguments[1], folder)
            bench = cluster.bench()
            if arguments[0] == "table":
                check_values(cluster, bench)
                check_table(cluster)
                check_rest(cluster)
            else:
                check_prometheus(cluster, folder)
            assert cluster.end() == [0, 0, 0, 0, 0]
        finally:
            if cluster:
                cluster.kill()
    print("OK")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
