#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`penstock replay`, as people use it and as they should not.

    tests/replay_test.py PENSTOCK [TRACE]

With TRACE, Mooncake's conversation trace, its known hit rates are checked too: of an unlimited cache
and of LRU, to three decimals, and what our own policy must reach against LRU. Standard library only.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PENSTOCK = None
TRACE = None
TIMEOUT_S = 120
LINE = '{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]}\n'
# Capacity in tokens: what LRU finds, and how many times that our own policy must find at least.
KNOWN = {1_000_000: (0.0542, 2.0), 3_000_000: (0.1382, 1.3), 10_000_000: (0.2908, 1.0),
         20_000_000: (0.3581, 1.0)}


def replay(*args):
    return subprocess.run([PENSTOCK, "replay", *map(str, args)], capture_output=True, text=True,
                          timeout=TIMEOUT_S, check=False)


class Replay(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def make(self, *args):
        path = self.folder / "made.jsonl"
        made = replay("--make", "chat-and-documents", "--out", path, *args)
        self.assertEqual(made.returncode, 0, made.stderr)
        return path

    def rows(self, trace, *args):
        path = self.folder / "figures.json"
        done = replay(trace, "--json", path, *args)
        self.assertEqual(done.returncode, 0, done.stderr)
        figures = json.loads(path.read_text(encoding="utf-8"))
        return figures, {(row["capacity_tokens"], row["policy"]): row for row in figures["rows"]}

    def test_same_seed_same_trace(self):
        one = self.make("--seed", 3, "--seconds", 300).read_text(encoding="utf-8")
        two = self.make("--seed", 3, "--seconds", 300).read_text(encoding="utf-8")
        self.assertEqual(one, two)
        self.assertNotEqual(one, self.make("--seed", 4, "--seconds", 300).read_text(encoding="utf-8"))

    def test_figures_hold_together(self):
        trace = self.make("--seed", 3, "--seconds", 600)
        picture = self.folder / "hits.svg"
        figures, rows = self.rows(trace, "--capacity", "300k,2M", "--svg", picture)
        self.assertEqual(len(rows), 8)
        limit = figures["no_limit"]
        for (capacity, policy), row in rows.items():
            self.assertLessEqual(row["token_hit_rate"], limit["token_hit_rate"], policy)
            self.assertAlmostEqual(row["against_lru"], row["token_hit_rate"] /
                                   rows[capacity, "lru"]["token_hit_rate"], places=9)
        self.assertIn("reuse-density", picture.read_text(encoding="utf-8"))

    def test_own_policy_beats_lru_on_made_traffic(self):
        for seed in (1, 2):
            _, rows = self.rows(self.make("--seed", seed), "--policy", "lru,reuse-density")
            for capacity in KNOWN:
                self.assertGreaterEqual(rows[capacity, "reuse-density"]["against_lru"], 1.0,
                                        f"seed {seed}, {capacity} tokens")

    def test_known_figures_of_the_conversation_trace(self):
        if TRACE is None:
            self.skipTest("no TRACE")
        figures, rows = self.rows(TRACE, "--policy", "lru,reuse-density")
        self.assertEqual(round(figures["no_limit"]["token_hit_rate"], 4), 0.3736)
        self.assertEqual(round(figures["no_limit"]["request_hit_rate"], 4), 0.4094)
        for capacity, (lru, ratio) in KNOWN.items():
            self.assertEqual(round(rows[capacity, "lru"]["token_hit_rate"], 4), lru)
            self.assertGreaterEqual(rows[capacity, "reuse-density"]["against_lru"], ratio)

    def test_says_what_is_wrong(self):
        path = self.folder / "t"
        azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,3740,44\n"
        for text, args, wants in [
                (LINE + "x\n", [], [f"{path}:2", "JSON"]),
                (LINE + LINE.replace("[1, 2]", "[1]"), [], [f"{path}:2", "hash_ids", "list of 2"]),
                (LINE.replace("1000", "0"), [], [f"{path}:1", "input_length", "got 0"]),
                ("", [], ["no request"]),
                (azure, [], ["what prompts share"]),
                (LINE, ["--capacity", "12"], ["--capacity", "512", "'12'"]),
                (LINE, ["--capacity", "1M,x"], ["--capacity", "'x'"]),
                (LINE, ["--policy", "mru"], ["reuse-density", "'mru'"]),
                (LINE, ["--json", self.folder / "no/such"], ["cannot write"])]:
            path.write_text(text, encoding="utf-8")
            done = replay(path, *args)
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            for want in wants:
                self.assertIn(want, done.stderr)
        for args, want in [(["--make", "noise", "--out", path], "chat-and-documents"),
                           (["--make", "chat-and-documents"], "--out"), ([], "TRACE"),
                           (["--make", "chat-and-documents", "--out", path, "--seconds", 1e6],
                            "at most 1000000 requests, got 3300000")]:
            done = replay(*args)
            self.assertEqual(done.returncode, 1)
            self.assertIn(want, done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    PENSTOCK = sys.argv[1]
    TRACE = sys.argv[2] if len(sys.argv) > 2 else None
    unittest.main(argv=sys.argv[:1])
