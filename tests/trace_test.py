#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The spans of one request over two workers, as `penstock trace` shows them:

    tests/trace_test.py PENSTOCK

Every span of a disaggregated request is there, within the request's own; the bytes are those of its
KV; what is written for other programs can be read by them. Standard library only.
"""

import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import unittest

from processes import MODEL, WAIT_S, await_true

PENSTOCK = None
SPANS = {  # Of one request whose prompt is computed by another worker than its answer.
    "request", "tokenize", "hash", "route", "first_token", "stream", "queue", "reserve", "start",
    "connect", "prefill_wait", "prefill", "send", "allocate", "wait", "wire", "first_step", "decode"}


def penstock(*arguments):
    run = subprocess.run([PENSTOCK, *map(str, arguments)], capture_output=True, text=True,
                         timeout=WAIT_S, check=False)
    return run


class Cluster:
    """A coordinator with its gateway, a prefill and a decode worker."""

    def __init__(self, *flags, workers=()):
        self.folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.processes = []
        self.address = self.add("coordinator", "--policy", "round-robin", "--serve",
                                f"tiny={MODEL}", *flags)
        self.start_workers(0, *flags, *workers)

    def start_workers(self, number, *flags):
        for role in ("prefill", "decode"):
            self.add(role, "--name", f"{role}-{number}", "--coordinator", self.address, "--model", MODEL,
                     "--model-name", "tiny", "--socket-folder", self.folder.name, "--threads", "1",
                     *flags)
        await_true("the pair is verified", self.whole)

    def end_workers(self):
        for process in self.processes:
            if process.args[1] in ("prefill", "decode") and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT_S)

    def add(self, role, *flags):
        ready = pathlib.Path(self.folder.name) / f"{role}-{random.getrandbits(64):x}.json"
        log = pathlib.Path(self.folder.name) / f"{role}.log"
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen([PENSTOCK, role, *map(str, flags), "--ready-file", ready],
                                       stderr=file)
        self.processes.append(process)
        await_true(f"{role} is ready", lambda: ready.exists() or process.poll() is not None)
        assert ready.exists(), log.read_text()
        return json.loads(ready.read_text())["grpc"]

    def whole(self):
        run = penstock("status", "--server", self.address, "--json")
        if run.returncode != 0:
            return False
        status = json.loads(run.stdout)
        return (sum(w["state"] == "ready" for w in status["workers"]) == 2
                and any(p["transport"] for p in status["pairs"])
                and any(m["ready"] for m in status["models"]))

    def generate(self, prompt, tokens):
        run = penstock("generate", "--server", self.address, "--raw", "--temperature", "0",
                       "--ignore-eos", "--max-tokens", tokens, prompt)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def trace(self, *flags):
        return penstock("trace", "--server", self.address, *flags)

    def end(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(WAIT_S)
            finally:
                process.kill()
        self.folder.cleanup()


def prompt_of(words, seed):
    draw = random.Random(seed)
    return " ".join(draw.choice("a river of stone and light turns under water".split())
                    for _ in range(words))


def otlp_spans(text):
    """(process, span) of an OTLP export, with attributes as a dict."""
    spans = []
    for resource in json.loads(text)["resourceSpans"]:
        process = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
        for span in resource["scopeSpans"][0]["spans"]:
            span["of"] = {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}
            span["begin"], span["end"] = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
            spans.append((process["service.instance.id"]["stringValue"], span))
    return spans


class TraceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        # The first one opens the channel, as requests after it need not.
        cls.cluster.generate(prompt_of(120, 1), 4)
        cls.cluster.generate(prompt_of(120, 2), 8)
        cls.files = {kind: pathlib.Path(cls.cluster.folder.name) / f"trace.{kind}"
                     for kind in ("chrome", "otlp", "html")}
        flags = [x for kind, file in cls.files.items() for x in (f"--{kind}", file)]
        # The decode worker's last span may come a moment after the answer.
        await_true("all spans are there", lambda: all(
            re.search(rf"^ .* {name} ", cls.cluster.trace("--last", "--all", *flags).stdout, re.M)
            for name in ("request", "decode")))
        cls.spans = otlp_spans(cls.files["otlp"].read_text())

    @classmethod
    def tearDownClass(cls):
        cls.cluster.end()

    def named(self, name):
        return [span for _, span in self.spans if span["name"] == name]

    def test_every_span_is_there_from_its_process(self):
        self.assertEqual({span["name"] for _, span in self.spans}, SPANS)
        processes = {span["name"]: process for process, span in self.spans}
        self.assertEqual(processes["prefill"], "prefill-0")
        self.assertEqual(processes["wire"], "decode-0")
        self.assertEqual(processes["route"], "coordinator")

    def test_spans_lie_within_the_request(self):
        # All on one machine, so on one clock; wall-clock rounding is none.
        request = self.named("request")[0]
        for process, span in self.spans:
            self.assertLessEqual(span["begin"], span["end"], span)
            self.assertGreaterEqual(span["begin"], request["begin"], span)
            self.assertLessEqual(span["begin"], request["end"], span)
            # The decode worker may learn of the end a moment later than the client, and the prefill
            # worker that its last layer was taken.
            if span["name"] not in ("decode", "start") and process != "prefill-0":
                self.assertLessEqual(span["end"], request["end"], span)
        ids = {span["spanId"] for _, span in self.spans}
        self.assertEqual(len(ids), len(self.spans))
        for _, span in self.spans:
            self.assertTrue(span is request or span["parentSpanId"] in ids, span)

    def test_causes_come_before_effects(self):
        for before, after in (("tokenize", "hash"), ("hash", "route"), ("queue", "reserve"),
                              ("reserve", "start"), ("connect", "prefill_wait"),
                              ("prefill_wait", "prefill"), ("first_step", "decode")):
            self.assertLessEqual(self.named(before)[0]["begin"], self.named(after)[0]["begin"],
                                 f"{before} and {after}")
        # What was told is read after it was computed.
        sends = {(s["of"]["penstock.layer"], s["begin"]): s for s in self.named("send")}
        for wire in self.named("wire"):
            told = [s for (layer, _), s in sends.items() if layer == wire["of"]["penstock.layer"]]
            self.assertLessEqual(min(s["begin"] for s in told), wire["begin"])

    def test_bytes_are_those_of_the_kv(self):
        config = json.loads((MODEL / "config.json").read_text())
        heads = config.get("num_key_value_heads", config["num_attention_heads"])
        head_dim = config.get("head_dim",
                              config["hidden_size"] // config["num_attention_heads"])
        prompt = int(self.named("request")[0]["of"]["penstock.tokens"])
        reused = int(self.named("allocate")[0]["of"].get("penstock.tokens", 0))
        blocks = -(-(prompt - 1) // 32) - reused // 32
        want = blocks * 32 * config["num_hidden_layers"] * heads * head_dim * 2 * 2  # K and V, f16.
        for name in ("send", "wire"):
            moved = sum(int(span["of"]["penstock.bytes"]) for span in self.named(name))
            self.assertEqual(moved, want, name)
        layers = {span["of"]["penstock.layer"] for span in self.named("wire")}
        self.assertEqual(len(layers), config["num_hidden_layers"])
        self.assertEqual({s["of"]["penstock.transport"] for s in self.named("wire")}, {"shm"})
        self.assertEqual(sum(int(s["of"]["penstock.tokens"]) for s in self.named("prefill")),
                         prompt - 1 - reused)
        self.assertEqual(self.named("stream")[0]["of"]["penstock.tokens"], "8")

    def test_chrome_trace_loads(self):
        events = json.loads(self.files["chrome"].read_text())["traceEvents"]
        self.assertEqual({e["name"] for e in events if e["ph"] == "X"}, SPANS)
        flows = [e["id"] for e in events if e["ph"] == "f"]
        self.assertEqual(sorted(flows), sorted(e["id"] for e in events if e["ph"] == "s"))
        self.assertEqual(len(flows), len(self.named("wire")))

    def test_page_holds_the_request(self):
        page = self.files["html"].read_text()
        data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
        request = self.named("request")[0]["of"]["penstock.request"]
        self.assertEqual([r["id"] for r in data["requests"]], [request])
        self.assertEqual(len(data["requests"][0]["spans"]), len(self.spans))

    def test_tables_tell_pairs_and_shares(self):
        text = self.cluster.trace().stdout
        self.assertIn("prefill-0 -> decode-0 by shm: ", text)
        self.assertRegex(text, r"hidden behind prefill compute: \d+\.\d %")
        # Of both requests, however quickly the decode worker had it all.
        counts = dict(re.findall(r"^\w+: (\w+) +(\d+) ", text, re.M))
        self.assertGreaterEqual(int(counts["first_step"]), 2)
        self.assertEqual(counts["prefill_wait"], counts["first_step"])
        self.assertIn("same clock", text)
        request = self.named("request")[0]["of"]["penstock.request"]
        one = self.cluster.trace(request)
        self.assertEqual(one.returncode, 0, one.stderr)
        self.assertIn(f"request {request}", one.stdout)

    def test_a_gateway_of_its_own_is_asked_when_named(self):
        address = self.cluster.add("gateway", "--name", "edge", "--coordinator",
                                   self.cluster.address, "--serve", f"tiny={MODEL}")
        await_true("it attends", lambda: penstock(
            "generate", "--server", address, "--raw", "--max-tokens", 2, prompt_of(40, 9)
            ).returncode == 0)
        text = self.cluster.trace("--also", address, "--last").stdout
        self.assertRegex(text, r" request +edge ")
        self.assertRegex(text, r" wire +decode-0 ")

    def test_an_unknown_request_is_an_error(self):
        run = self.cluster.trace("nobody")
        self.assertEqual(run.returncode, 1)
        self.assertIn("nothing is known of request 'nobody'", run.stderr)

    def test_no_coordinator_is_an_error(self):
        run = penstock("trace", "--server", "127.0.0.1:1")
        self.assertEqual(run.returncode, 1)
        self.assertIn("no coordinator answers at 127.0.0.1:1", run.stderr)


class StoreTraceTest(unittest.TestCase):
    # Slow enough that fetching pays.
    WORKERS = ("--device", "paced", "--pace-prefill-tokens-per-s", "500", "--store-codec", "planes")

    def setUp(self):
        self.cluster = Cluster(workers=self.WORKERS)
        self.addCleanup(self.cluster.end)
        folder = pathlib.Path(self.cluster.folder.name)
        self.cluster.add("kvstore", "--name", "store", "--coordinator", self.cluster.address, "--host-bytes",
                         "16MiB", "--disk", folder / "disk", "--disk-bytes", "320MiB", "--socket-folder", folder)

    def store(self, command):
        done = penstock("store", command, "--server", self.cluster.address, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else {"tiers": []}

    def test_tiers_codecs_and_links_are_told_apart(self):
        cluster, prompt = self.cluster, prompt_of(120, 5)
        text = cluster.generate(prompt, 2)

        def all_there():
            copies = [tier["copies"] for tier in self.store("stat")["tiers"]]
            return len(copies) == 2 and copies[0] == copies[1] > 3
        await_true("the node has the blocks, on disk, too", all_there)
        self.await_ways({("encode", "-", "planes", "shm")})
        self.store("flush")
        for number, tier in enumerate(("disk", "host"), 1):
            # By workers whose pools are empty.
            cluster.end_workers()
            cluster.start_workers(number, *self.WORKERS)
            self.assertEqual(cluster.generate(prompt, 2), text)
            ways = self.await_ways({(name, tier, "planes", "shm") for name in ("store_wait", "fetch", "unpack")})
            # The node's own are there still.
            self.assertGreater(ways[("promote", "disk", "planes", "-")], 3)
            self.assertGreater(ways[("disk_read", "disk", "planes", "-")], 3)
            # Who comes second finds in memory what the first had promoted.
            tiers = {way[1] for way in ways if way[0] == "fetch"}
            self.assertLessEqual(tiers, {tier, "host"})
        # Theirs are spans of no request.
        self.assertNotIn("disk_read", cluster.trace("--last").stdout)
        file = pathlib.Path(cluster.folder.name) / "summary.json"
        self.assertEqual(cluster.trace("--json", file).returncode, 0)
        self.assertEqual({tuple(s[key] or "-" for key in ("name", "tier", "codec", "transport"))
                          for s in json.loads(file.read_text())["stores"]}, set(ways))

    def await_ways(self, wanted):
        """Counts by what, tier, codec and link, once `wanted` are there."""
        ways = {}

        def there():
            _, *table = re.split(r"\nstore +tier ", self.cluster.trace().stdout)
            ways.clear()
            for line in table[0].partition("\n\n")[0].splitlines()[1:] if table else []:
                *way, count = line.split()[:5]
                ways[tuple(way)] = int(count)
            return wanted <= set(ways)
        await_true(f"{wanted} are there", there)
        return ways


class NoTraceTest(unittest.TestCase):
    def test_a_cluster_that_does_not_trace_says_so(self):
        cluster = Cluster("--no-trace")
        try:
            cluster.generate(prompt_of(40, 3), 2)
            run = cluster.trace()
            self.assertEqual(run.returncode, 1)
            self.assertEqual(run.stderr.count("does not trace (--no-trace)"), 3, run.stderr)
        finally:
            cluster.end()


if __name__ == "__main__":
    PENSTOCK = sys.argv.pop(1)
    unittest.main(verbosity=2)
