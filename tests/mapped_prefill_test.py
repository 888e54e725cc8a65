#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A prefill worker that reads a prompt's head in a store node's memory, where it lies:

    tests/mapped_prefill_test.py PENSTOCK

A real model, in the cluster of reuse_cluster.py. The decode worker has the head from the node, too; or, where it
has no part in the store, from copies that the prefill worker makes for it. Answers are those of a cold run,
digit by digit. Exits with 77 where the model is not in .cache/models.
"""

import pathlib
import sys
import unittest

import reuse_cluster
from reuse_cluster import BLOCK_TOKENS, SMOLLM2, Cluster, await_true, blocks_of, reused, words

LAYERS = 30


class MappedPrefillTest(unittest.TestCase):
    def begin(self, *flags):
        cluster = Cluster(SMOLLM2, flags, policy="round-robin")
        self.addCleanup(cluster.close)
        cluster.new_workers()
        return cluster

    def test_who_answers_has_it_there_too_or_wants_a_copy(self):
        head = words("head", 400)
        prompts = [f"{head} {words(f'tail {i}', 600)}" for i in range(2)]
        plain = self.begin("--no-store")
        cold = [plain.ask(prompt)[0] for prompt in prompts]
        cluster = self.begin()
        _, usage = cluster.ask(head)
        await_true("copies of the head", lambda: cluster.kept("host") >= blocks_of(usage))
        for prompt, want, flags in zip(prompts, cold, ([], ["--no-store"])):
            with self.subTest(flags):
                cluster.new_workers(decode_flags=flags)
                answer, usage = cluster.ask(prompt)
                self.assertEqual(answer, want)
                self.assertGreater(cluster.mapped("prefill"), 0)
                # What the decode worker read out of the prefill worker's memory: all but the head, or all.
                came = sum(a["blocks"] for _, _, a in cluster.last_spans("wire")["decode"])
                blocks = -(-(usage["prompt_tokens"] - 1) // BLOCK_TOKENS)
                self.assertGreaterEqual(reused(usage), BLOCK_TOKENS)
                self.assertEqual(came, LAYERS * (blocks if flags else blocks - reused(usage) // BLOCK_TOKENS))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: mapped_prefill_test.py PENSTOCK")
    reuse_cluster.PENSTOCK = pathlib.Path(sys.argv.pop(1)).resolve()
    if not SMOLLM2.exists():
        sys.exit(77)
    unittest.main()
