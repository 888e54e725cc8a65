#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A worker on several GPUs loses one of them, and another one, which is well, hears of it first.

    tests/cuda_group_trouble_test.py PENSTOCK EMULATED_PLUGIN

However they exchange, the worker ends with one line about the GPU that is lost, or that says what it cannot
know, and with exit code 3; its requests are answered by another one. Standard library only.
"""

import os
import sys
import unittest
from unittest import mock

import cuda_cluster_test as cluster
import up_test as base
from cuda_cluster_test import PROMPTS, alone, start
from cuda_trouble_test import SMALL, PlantedFaults, cluster_ready, machine
from up_test import MODEL, await_true

ERRORS = {46: "cudaErrorDevicesUnavailable", 214: "cudaErrorECCUncorrectable", 700: "cudaErrorIllegalAddress",
          719: "cudaErrorLaunchFailure", 999: "cudaErrorUnknown"}
NAMES = ("prefill-1", "decode-1", "decode-2")
TOKENS = 100


class LostOfSeveralTest(PlantedFaults):
    """Two decode workers, each on GPUs 1 and 2."""

    def begin(self, split, sums=1, nccl=""):
        with machine(f"devices=3,faults={self.faults}"), mock.patch.dict(os.environ, PENSTOCK_NCCL_FAULTS=nccl):
            self.up, ready = start(self, f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\ntransfer: [shm, tcp]\n"
                                         f"prefill: {{device: 'cuda:0', tp_sum: {sums}, {SMALL}}}\n"
                                         f"decode: {{count: 2, device: 'cuda:1,2', {split}, {SMALL}}}\n")
        self.http, self.sums, self.ends = ready["http"], sums, 0

    def lose(self, prompt, amid, line):
        """A worker ends so amid an answer, which goes on."""
        old = {name: self.up.pid_of(name) for name in NAMES}
        self.assertEqual(self.answer(self.http, prompt, TOKENS, amid), alone(prompt, TOKENS, sums=self.sums))
        self.ends += 1
        self.up.wait_line(rf"decode-[12] .*penstock: {line}")
        self.up.wait_line(r"decode-[12] .*exit code 3 \(its GPU failed\)", self.ends)
        self.assertEqual(self.up.lines_of(r"penstock: GPU cuda"), self.ends, "one line for each")
        await_true("it is back", lambda: sum(old[n] != self.up.pid_of(n) for n in NAMES) == 1)
        cluster_ready(self.up, len(NAMES))

    def lost(self, gpu, error):
        return rf"GPU cuda:{gpu} \(stand-in {gpu}, PCI 0000:0{gpu}:00\.0\) was lost while [a-z ]+: {ERRORS[error]} \({error}\): "

    def end(self):
        self.assertEqual(self.up.lines_of("CHECK failed"), 0)
        self.assertEqual(self.up.lines_of("signal"), 0)
        self.assertEqual(self.up.end(), 0)

    def test_nccl_tells_another_one_first(self):
        self.begin("tp: 2", sums=2)
        for error, gpu in ((700, 1), (214, 2), (46, 1), (719, 2), (999, 1)):
            with self.subTest(error=error, gpu=gpu):
                healthy = 3 - gpu

                def amid():
                    self.plant(gpu, error, "asked")
                    self.plant(healthy, 6, "nccl")

                self.lose(PROMPTS[0] + str(error), amid, self.lost(gpu, error))
                self.assertTrue(self.taken(gpu, "asked"))
        # And where the GPUs say nothing at all.
        for gpu in (1, 2):
            with self.subTest("only NCCL", gpu=gpu):
                self.lose(PROMPTS[1] + str(gpu), lambda: self.plant(gpu, 6, "nccl"),
                          r"GPU cuda:1 \(.*\) and GPU cuda:2 \(.*\) cannot go on together, and none says that it was "
                          rf"lost: nccl: GPU cuda:{gpu} \(stand-in {gpu}, PCI 0000:0{gpu}:00\.0\): gathering: remote process "
                          r"exited or there was a network error \(6\): `nvidia-smi -q`")
        self.end()

    def test_it_says_so_itself(self):
        self.begin("tp: 2", sums=2)
        for error, gpu in ((214, 1), (700, 2)):
            with self.subTest(error=error, gpu=gpu):
                self.lose(PROMPTS[0] + str(error), lambda: self.plant(gpu, error), self.lost(gpu, error))
        self.end()

    def test_a_copy_finds_it_first(self):
        """Between shards without NCCL, and between stages."""
        for split, sums, nccl in (("tp: 2", 2, "init_error=2"), ("pp: 2", 1, "")):
            with self.subTest(split):
                self.begin(split, sums, nccl)
                for error, gpu in ((214, 1), (719, 2)):
                    with self.subTest(error=error, gpu=gpu):
                        self.lose(PROMPTS[0] + str(error), lambda: self.plant(gpu, error, "peer"), self.lost(gpu, error))
                        self.assertTrue(self.taken(gpu, "peer"))
                self.end()


if __name__ == "__main__":
    base.PENSTOCK, cluster.PLUGIN = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
