#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whatever KV a request reuses, and whatever happens to it, the answer is that of a cold run:

    tests/reuse_test.py PENSTOCK

Real models, in a cluster of two prefill workers, decode workers and a store node. Requests are answered
cold, then out of the workers' own pools, a node's memory, its disk, a redis-server; with the node killed in
the middle, bits flipped in its files, a worker killed while it imports, or stopped while what it reads in a
node's memory is overwritten; and over a slow link, beside which the prompt is computed. Each token, and the
log-probabilities of the five most likely ones at each position, must be printed the same, digit by digit.
Exits with 77 where the models are not in .cache/models.
"""

import concurrent.futures
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

import namespaces
import reuse_cluster as base
from reuse_cluster import BLOCK_TOKENS, ROOT, SMOLLM2, WAIT_S, Cluster, await_true, blocks_of, reused, words

GEMMA = ROOT / ".cache/models/gemma-3-270m-q4_k_m.gguf"
SEGMENT_STEP = 64 << 10  # One bit in each so many bytes is flipped.


class ReuseTest(unittest.TestCase):
    def begin(self, model, prompts, worker_flags=(), redis=False, network=None, policy="cost"):
        if not model.exists():
            self.skipTest(f"{model} is missing")
        if redis and shutil.which("redis-server") is None:
            self.skipTest("no redis-server (./dev installs it)")
        self.cluster = Cluster(model, worker_flags, redis, network, policy)
        self.addCleanup(self.cluster.close)
        self.cluster.new_workers()
        self.prompts = prompts
        cold = [self.cluster.ask(prompt) for prompt in prompts]
        self.cold = [choices for choices, _ in cold]
        self.usages = [usage for _, usage in cold]
        for usage in self.usages:
            self.assertEqual(reused(usage), 0)

    def same(self, what, reused_all=True):
        """All prompts at once; their answers."""
        with concurrent.futures.ThreadPoolExecutor(len(self.prompts)) as pool:
            answers = list(pool.map(self.cluster.ask, self.prompts))
        self.check(what, answers)
        if reused_all:
            for _, usage in answers:
                self.assertGreaterEqual(reused(usage), BLOCK_TOKENS, what)

    def check(self, what, answers):
        for i, ((choices, _), cold) in enumerate(zip(answers, self.cold)):
            self.assertEqual(choices, cold, f"{what}: prompt {i}")

    def wait_for_copies(self, groups=1, tiers=("host", "disk")):
        want = groups * sum(map(blocks_of, self.usages))
        for tier in tiers:
            await_true(f"{want} copies in {tier}", lambda tier=tier: self.cluster.kept(tier) >= want)

    def test_every_way_to_reuse(self):
        self.begin(SMOLLM2, [words(seed, 230 + 40 * seed) for seed in range(3)])
        self.reuse_from_pool_memory_and_disk()
        cluster = self.cluster
        cluster.new_workers()
        with concurrent.futures.ThreadPoolExecutor(len(self.prompts)) as pool:
            asked = [pool.submit(cluster.ask, prompt) for prompt in self.prompts]
            cluster.end("store", signal.SIGKILL)
            self.check("the node died in the middle", [answer.result() for answer in asked])
        cluster.restart_store()

        cluster.restart_store(meanwhile=self.flip_bits)
        cluster.new_workers()
        self.same("damaged files", reused_all=False)
        # What was recomputed is there again, and whole.
        self.wait_for_copies()
        cluster.new_workers()
        self.same("mended")

    def test_every_way_to_reuse_int8_pages(self):
        self.begin(SMOLLM2, [words(20 + seed, 230 + 40 * seed) for seed in range(3)], ["--kv-dtype", "int8"])
        self.reuse_from_pool_memory_and_disk()
        block = 30 * 3 * BLOCK_TOKENS * (64 + 64 + 2 + 2)  # Levels and scales of K and V.
        copied = sum(self.cluster.metric(w, "penstock_store_fetched_bytes_total") for w in self.cluster.workers)
        self.assertEqual(copied % block, 0)
        self.assertGreater(copied, 0)

    def test_shards_and_whole_models_share_a_store(self):
        """What workers on one shard kept, those on three find, each shard its heads; and the other way round."""
        self.begin(SMOLLM2, [words(30 + seed, 230 + 40 * seed) for seed in range(3)], ["--tp-sum", 3])
        cluster = self.cluster
        self.reuse_on_shards(3)
        mapped = sum(cluster.metric(w, "penstock_store_fetched_bytes_total", 'way="mapped"') for w in cluster.workers)
        self.assertEqual(mapped, 0, "several shards read no memory of the host")
        self.prompts = [words(40 + seed, 230 + 40 * seed) for seed in range(3)]
        cold = [cluster.ask(prompt) for prompt in self.prompts]
        self.cold, of_shards = [choices for choices, _ in cold], [usage for _, usage in cold]
        self.assertEqual([reused(usage) for usage in of_shards], [0] * 3)
        self.usages += of_shards
        self.reuse_on_shards(1)

    def reuse_on_shards(self, shards):
        self.wait_for_copies(tiers=("host",))
        self.cluster.worker_flags = ["--tp-sum", 3, "--tp", shards]
        self.cluster.new_workers()
        self.same(f"on {shards} shards, of the others")
        self.assertGreater(self.cluster.fetched(tier="host"), 0)

    def reuse_from_pool_memory_and_disk(self):
        cluster = self.cluster
        self.same("a worker's pool")
        self.wait_for_copies()

        cluster.new_workers()
        self.same("a node's memory")
        self.assertGreater(cluster.fetched(tier="host"), 0)
        self.assertGreater(cluster.mapped("decode"), 0)

        cluster.restart_store()
        cluster.new_workers()
        self.same("a node's disk")
        self.assertGreater(cluster.fetched(tier="disk"), 0)

    def flip_bits(self):
        flipped = 0
        for file in (self.cluster.path / "disk").iterdir():
            with open(file, "r+b") as segment:
                size = segment.seek(0, 2)
                for at in range(SEGMENT_STEP // 2, size, SEGMENT_STEP):
                    segment.seek(at)
                    byte = segment.read(1)[0]
                    segment.seek(at)
                    segment.write(bytes([byte ^ 4]))
                    flipped += 1
        self.assertGreater(flipped, 0)

    def test_from_a_redis_server(self):
        self.begin(SMOLLM2, [words(10 + seed, 230 + 40 * seed) for seed in range(2)], redis=True)
        cluster = self.cluster
        self.wait_for_copies(tiers=("host",))
        cluster.flush()
        self.wait_for_copies(tiers=("remote",))
        self.assertEqual(cluster.kept("host"), 0)
        cluster.new_workers()
        self.same("a redis-server")
        self.assertGreater(cluster.fetched(tier="remote"), 0)
        # It dies: what it had is computed.
        cluster.flush()
        cluster.new_workers()
        cluster.end("redis", signal.SIGKILL)
        self.same("a redis-server that is gone", reused_all=False)

    def test_the_head_comes_to_who_answers_while_the_tail_is_computed(self):
        head = words("head", 400)
        self.begin(SMOLLM2, [head + " " + words("tail", 100)], policy="round-robin")
        cluster = self.cluster
        self.wait_for_copies(tiers=("host",))
        cluster.new_workers()
        _, usage = cluster.ask(head + " " + words("another tail", 600))
        self.assertGreaterEqual(reused(usage), BLOCK_TOKENS)
        fetches, passes = cluster.last_spans("fetch"), cluster.last_spans("prefill")
        self.assertTrue(fetches["decode"] and fetches["prefill"] and passes["prefill"])
        self.assertLess(max(end for _, end, _ in fetches["decode"]), max(end for _, end, _ in passes["prefill"]))
        self.assertGreater(cluster.mapped("prefill"), 0)
        self.same("beside another tail")

    def test_computing_beside_a_slow_link(self):
        if (why_not := namespaces.why_not()) is not None:
            self.skipTest(why_not)
        with namespaces.Network(["near", "far"]) as network, concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(self.beside, network).result()  # A thread that is on the host.

    def beside(self, network):
        network.enter("near")
        network.limit("far", "160mbit")
        self.begin(SMOLLM2, [words("beside", 600)], network=network, policy="round-robin")
        try:
            cluster = self.cluster
            await_true("all copies", lambda: cluster.copies() >= blocks_of(self.usages[0]))
            cluster.new_workers()
            answer = cluster.ask(self.prompts[0])
            self.check("over a slow link", [answer])
            fetches, passes = cluster.last_spans("fetch")["prefill"], cluster.last_spans("prefill")["prefill"]
            self.assertTrue(passes, "no prefill worker computed")
            fetched = sum(a["blocks"] for _, _, a in fetches) * BLOCK_TOKENS
            computed = sum(a["tokens"] for _, _, a in passes)
            positions = answer[1]["prompt_tokens"] - 1
            # Both did their part, at one time: the rest of the prompt is less than a block.
            self.assertTrue(2 * BLOCK_TOKENS < computed < positions, f"{computed} of {positions}")
            self.assertGreaterEqual(fetched + computed, positions)
            self.assertLess(min(begin for begin, _, _ in passes), max(end for _, end, _ in fetches))
            self.same("the pools that both filled")

            # A decode worker that has no other to prefill for it does the same.
            cluster.new_workers(prefills=0)
            tokens_computed = lambda: cluster.metric(cluster.workers[0], "penstock_engine_prefill_tokens_total")
            before = tokens_computed()
            answer = cluster.ask(self.prompts[0])
            self.check("alone, over a slow link", [answer])
            computed = tokens_computed() - before
            fetched = sum(a["blocks"] for _, _, a in cluster.last_spans("fetch")["decode"]) * BLOCK_TOKENS
            self.assertGreater(fetched, 0)
            self.assertTrue(2 * BLOCK_TOKENS < computed < positions, f"{computed} of {positions}")
            self.assertGreaterEqual(fetched + computed, positions)
            self.same("the pool that both filled")
        finally:
            self.doCleanups()

    def test_a_worker_dies_while_it_imports(self):
        self.begin(SMOLLM2, [words("dies", 330)])
        cluster, chance = self.cluster, random.Random(7)
        self.wait_for_copies()
        for turn in range(3):
            cluster.new_workers(decodes=2)
            victim = [w for w in cluster.workers if w.startswith("decode")][turn % 2]
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(cluster.ask, self.prompts[0]) for _ in range(4)]
                threading.Event().wait(chance.uniform(0, 0.05))  # When it dies is what varies.
                cluster.end(victim, signal.SIGKILL)
                for answer in asked:
                    self.check(f"turn {turn}", [answer.result()])

    def test_copies_with_a_loss(self):
        if not SMOLLM2.exists():
            self.skipTest(f"{SMOLLM2} is missing")
        folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.addCleanup(folder.cleanup)
        record = pathlib.Path(folder.name) / "record.json"
        # Of little text: what is measured here is not the codec.
        text = pathlib.Path(folder.name) / "text"
        text.write_text(words("text", 2000))
        subprocess.run([base.PENSTOCK, "quality", SMOLLM2, "--text", text, "--codecs", "int8",
                        "--prompt-tokens", "256", "--tokens", "64", "--needles", "0", "--json", record],
                       check=True, capture_output=True, timeout=WAIT_S)
        refused = subprocess.run([base.PENSTOCK, "prefill", "--model", SMOLLM2, "--model-name", "m",
                                  "--coordinator", "127.0.0.1:1", "--store-lossy", "int8", "--max-kl",
                                  "0.000001", "--quality-record", record], capture_output=True, text=True,
                                 timeout=WAIT_S)
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr,
                         r"--store-lossy int8: its recorded mean KL is [0-9.e-]+, --max-kl is 1e-06")

        prompt = words("loss", 300)
        longer = prompt + " " + words("longer", 100)
        plain = Cluster(SMOLLM2)
        self.addCleanup(plain.close)
        plain.new_workers()
        cold_longer = plain.ask(longer)[0]

        self.begin(SMOLLM2, [prompt], ["--store-lossy", "int8", "--max-kl", "0.05", "--quality-record",
                                       record])
        cluster = self.cluster
        copies = 2 * blocks_of(self.usages[0])
        await_true(f"{copies} copies", lambda: cluster.kept("host") >= copies)
        cluster.new_workers()
        choices, usage = cluster.ask(prompt, reuse="kl2")
        self.assertGreaterEqual(reused(usage), BLOCK_TOKENS)
        self.assertGreater(cluster.fetched(codec="int8"), 0)
        self.assertEqual(cluster.fetched(codec="raw"), 0)
        self.assertNotEqual(choices, self.cold[0], "copies with a loss change log-probabilities")
        self.same("exact, beside blocks with a loss in every pool")
        self.assertGreater(cluster.fetched(codec="raw"), 0)

        # Blocks that attended to a loss are kept, and found by no exact lookup, anywhere.
        cluster.new_workers()
        _, usage = cluster.ask(longer, reuse="kl2")
        more = copies + blocks_of(usage) - blocks_of(self.usages[0])
        await_true(f"{more} copies", lambda: cluster.kept("host") >= more)
        self.assertEqual(cluster.ask(longer)[0], cold_longer, "in the pools that computed it")
        cluster.new_workers()
        self.assertGreater(reused(cluster.ask(longer, reuse="kl2")[1]), reused(usage))
        cluster.new_workers()
        self.assertEqual(cluster.ask(longer)[0], cold_longer, "from the store")

    def test_no_token_of_a_block_that_changed_under_a_stopped_worker(self):
        answer = 300
        self.begin(SMOLLM2, [words("stopped", 330)])
        cluster = self.cluster
        cold, _ = cluster.ask(self.prompts[0], answer)
        self.wait_for_copies()
        cluster.new_workers(decodes=2)
        decodes = [w for w in cluster.workers if w.startswith("decode")]
        reads = lambda w: cluster.metric(w, "penstock_store_mapped_blocks") > 0 and cluster.metric(
            w, "penstock_engine_decode_tokens_total") > 10
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(cluster.ask, self.prompts[0], answer)
            await_true("an answer reads mapped blocks", lambda: any(map(reads, decodes)))
            victim = next(filter(reads, decodes))
            cluster.processes[victim].send_signal(signal.SIGSTOP)
            try:
                subprocess.run([base.PENSTOCK, "store", "flush", "--server", cluster.address], check=True,
                               capture_output=True, timeout=WAIT_S)
                # Its leases end; then others' blocks take the place of its own.
                await_true("leases end", lambda: cluster.leases() == 0)
                for seed in range(3):
                    cluster.ask(words(f"other {seed}", 400))
                self.assertGreater(cluster.kept("host"), 3 * 10)
            finally:
                cluster.processes[victim].send_signal(signal.SIGCONT)
            choices, _ = asked.result()
        self.assertEqual(choices, cold)
        # Its own check found it, unless the word that nobody waits for its tokens was sooner.
        ended = lambda how="": cluster.metric(victim, "penstock_attempts_total", how and f'outcome="{how}"')
        await_true("its attempt has ended", lambda: ended() >= 1)  # Others may have been meant for it, too.
        self.assertEqual(ended("finished"), 0)
        self.assertLessEqual(cluster.metric(victim, "penstock_engine_mapped_changed_total"), 1)
        await_true("it lets go of it", lambda: cluster.metric(victim, "penstock_store_mapped_blocks") == 0)

    def test_window_layers(self):
        # Of the layers that see 512 tokens, the blocks of those; of the others, all.
        self.begin(GEMMA, [words("window", 900)])
        self.wait_for_copies()
        self.cluster.new_workers()
        self.same("a node's memory")
        usage = self.usages[0]
        blocks = (usage["prompt_tokens"] - 1) // BLOCK_TOKENS
        window = 512 // BLOCK_TOKENS
        self.assertGreater(blocks, window)
        layer = BLOCK_TOKENS * (256 + 256) * 2  # Bytes: one KV head of 256, f16.
        once = blocks * 3 * layer + window * 15 * layer
        # By who computes the rest, and by who answers, where these are two: that one may need a block
        # less, since its first token is later.
        self.assertIn(self.cluster.fetched("bytes"), (once, 2 * once, 2 * once - 15 * layer))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: reuse_test.py PENSTOCK")
    base.PENSTOCK = pathlib.Path(sys.argv.pop(1)).resolve()
    if not SMOLLM2.exists() and not GEMMA.exists():
        sys.exit(77)
    unittest.main()
