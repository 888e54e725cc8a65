#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A public load generator, NVIDIA's aiperf, against a cluster with the tiny model, as it is against any
OpenAI server: streamed and whole, chat and completions. Every request must be answered, and what aiperf
counts must be what we say.

    tests/loadgen_test.py PENSTOCK

Needs .cache/loadgen, which `./dev test loadgen` makes (1.2 GB); exits with 77 without it.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/golden/tiny/llama3"
AIPERF = ROOT / ".cache/loadgen/bin/aiperf"
PENSTOCK = None
WAIT_S, LOAD_S = 60, 240
REQUESTS, OUTPUT_TOKENS = 30, 16


class LoadGeneratorTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        file, ready = self.folder / "c.yaml", self.folder / "ready.json"
        file.write_text(f"model: {MODEL}\nprefill: {{count: 1, threads: 1}}\ndecode: {{count: 2, threads: 1}}\n",
                        encoding="utf-8")
        self.log = open(self.folder / "log", "wb")
        up = subprocess.Popen([PENSTOCK, "up", file, "--ready-file", ready], stdout=self.log, stderr=self.log)

        def end():
            up.send_signal(signal.SIGINT)
            try:
                self.assertEqual(up.wait(WAIT_S), 0)
            finally:
                up.kill()
                self.log.close()

        self.addCleanup(end)
        deadline, never = time.monotonic() + WAIT_S, threading.Event()
        while not ready.exists():
            self.assertIsNone(up.poll(), (self.folder / "log").read_text())
            self.assertLess(time.monotonic(), deadline, "the cluster is not ready")
            never.wait(0.05)
        self.http = json.loads(ready.read_text())["http"]
        # aiperf takes a relative path for a name that its hub may have, then for a folder.
        shutil.copytree(MODEL, self.folder / "tokenizers" / "llama3")

    def load(self, *flags):
        """aiperf's report."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run(
            [AIPERF, "profile", "--model", "llama3", "--url", f"http://{self.http}", "--tokenizer",
             "tokenizers/llama3", "--concurrency", "6", "--request-count", str(REQUESTS), "--isl", "20", "--osl",
             str(OUTPUT_TOKENS), "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui", "none",
             "--artifact-dir", out, *flags],
            cwd=self.folder, capture_output=True, text=True, timeout=LOAD_S, check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)})
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-3000:])
        return json.loads((out / "profile_export_aiperf.json").read_text())

    def check(self, report):
        self.assertEqual(report["request_count"]["avg"], REQUESTS)
        self.assertFalse(report.get("error_request_count", {}).get("avg"), report.get("error_summary"))
        self.assertEqual(report["output_sequence_length"]["avg"], OUTPUT_TOKENS)

    def test_chat_streams(self):
        report = self.load("--endpoint-type", "chat", "--streaming")
        self.check(report)
        self.assertGreater(report["time_to_first_token"]["p99"], 0)
        self.assertGreater(report["inter_token_latency"]["p99"], 0)

    def test_whole_completions(self):
        self.check(self.load("--endpoint-type", "completions"))


if __name__ == "__main__":
    if not AIPERF.exists():
        print("skipped: no .cache/loadgen; ./dev test loadgen makes it", file=sys.stderr)
        sys.exit(77)
    PENSTOCK = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
