#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Machines of several GPUs that are none, and what can go wrong with one of them.

    tests/cuda_trouble_test.py PENSTOCK EMULATED_PLUGIN NVML_STANDIN

A GPU that fails ends its worker with one line that says so, nobody else, and no answer; workers that leave
the choice of GPUs to `penstock up` get those near to each other. Standard library only.
"""

import json
import os
import pathlib
import re
import sys
import tempfile
import unittest
from unittest import mock

import cuda_cluster_test as cluster
import up_test as base
from cuda_cluster_test import PROMPTS, alone, ask, body, post, start
from up_test import MODEL, await_true, run

NVML = None
SMALL = "threads: 1, chunk_tokens: 64, context_tokens: 512, sequences: 2, kv_bytes: 4MiB"
ISLANDS = ["X NV4 NV4 NV4 SYS SYS SYS SYS", "NV4 X NV4 NV4 SYS SYS SYS SYS", "NV4 NV4 X NV4 SYS SYS SYS SYS",
           "NV4 NV4 NV4 X SYS SYS SYS SYS", "SYS SYS SYS SYS X NV4 NV4 NV4", "SYS SYS SYS SYS NV4 X NV4 NV4",
           "SYS SYS SYS SYS NV4 NV4 X NV4", "SYS SYS SYS SYS NV4 NV4 NV4 X"]


def machine(words):
    return mock.patch.dict(os.environ, PENSTOCK_CUDA_MACHINE=words)


class PlantedFaults(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.addCleanup(folder.cleanup)
        self.faults = pathlib.Path(folder.name)

    def plant(self, gpu, error, way="gpu"):
        """The next one that works on that GPU loses it. Other ways: device/cuda_standin.h."""
        part = self.faults / "part"
        part.write_text(str(error), encoding="utf-8")
        part.rename(self.faults / f"{way}{gpu}")

    def taken(self, gpu, way="gpu"):
        return not (self.faults / f"{way}{gpu}").exists()

    def answer(self, http, prompt, tokens, amid):
        """That of a stream; `amid` is called once it has begun."""
        text = ""
        with post(http, body(prompt, tokens, stream=True)) as response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                if not text:
                    amid()
                text += json.loads(line[6:])["choices"][0]["text"]
        return text


class LostGpuTest(PlantedFaults):
    def test_a_gpu_is_lost_amid_an_answer(self):
        with machine(f"faults={self.faults}"):
            up, ready = start(self, f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\n"
                                    f"prefill: {{device: 'cuda:0', {SMALL}}}\n"
                                    f"decode: {{count: 2, device: 'cuda:1', {SMALL}}}\n")
        names = {"prefill-1", "decode-1", "decode-2"}
        for turn, (error, name, advice) in enumerate((
                (700, "cudaErrorIllegalAddress", "a kernel went wrong"),
                (214, "cudaErrorECCUncorrectable", "its memory has an error that cannot be corrected"),
                (46, "cudaErrorDevicesUnavailable", "another process has it for itself, or it is gone"),
                (719, "cudaErrorLaunchFailure", "a kernel went wrong"))):
            with self.subTest(name):
                old = {worker: up.pid_of(worker) for worker in names}
                prompt = PROMPTS[0] + name
                self.assertEqual(self.answer(ready["http"], prompt, 200, lambda: self.plant(1, error)),
                                 alone(prompt, 200))
                self.assertTrue(self.taken(1))
                up.wait_line(rf"decode-[12] .*penstock: GPU cuda:1 \(stand-in 1, PCI 0000:01:00\.0\) was lost while "
                             rf"[a-z ]+: {name} \({error}\): {advice}")
                up.wait_line(r"decode-[12] .*exit code 3 \(its GPU failed\)", turn + 1)
                await_true("it is back", lambda: sum(old[n] != up.pid_of(n) for n in names) == 1)
                cluster_ready(up, 3)
        self.plant(0, 999)
        self.assertEqual(ask(ready["http"], PROMPTS[1]), alone(PROMPTS[1]))
        up.wait_line(r"prefill-1 .*penstock: GPU cuda:0 .* was lost while .*: cudaErrorUnknown \(999\): `nvidia-smi -q`")
        self.assertEqual(up.lines_of("CHECK failed"), 0)
        self.assertEqual(up.end(), 0)

    def test_a_gpu_is_full_amid_a_step(self):
        with machine(f"faults={self.faults}"):
            up, ready = start(self, f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\ntransfer: [shm, tcp]\n"
                                    f"prefill: {{device: 'cuda:0', {SMALL}}}\n"
                                    f"decode: [{{device: 'cuda:1', {SMALL}}}, {{device: cpu, {SMALL}}}]\n")
        self.plant(1, 2)
        for prompt in PROMPTS:  # By turns: one of the first two needs that GPU.
            self.assertEqual(ask(ready["http"], prompt), alone(prompt))
        self.assertTrue(self.taken(1))
        up.wait_line(r"decode-1 .*penstock: GPU cuda:1 \(.*\) lacks memory for a step: cannot allocate \d+ bytes on the GPU: \d+ of "
                     r"1073741824 are free: give a smaller kv_bytes, or end what else uses it")
        up.wait_line(r"decode-1 .*exit code 3 \(its GPU failed\)")
        self.assertEqual(up.lines_of("CHECK failed"), 0)
        self.assertEqual(up.end(), 0)

    def test_a_gpu_is_lost_before_all_is_ready(self):
        for command in (["generate", "--raw", "--model", MODEL, "--max-tokens", 2, "--device", "cuda:1", "abc"],
                        ["generate", "--raw", "--model", MODEL, "--max-tokens", 2, "--tp", 2, "--device", "cuda:0,1", "abc"],
                        ["decode", "--model", MODEL, "--model-name", "m", "--coordinator", "127.0.0.1:1", "--device",
                         "cuda:1"]):
            self.plant(1, 214)
            with machine(f"faults={self.faults}"):
                done = run(*command, "--cuda-plugin", cluster.PLUGIN)
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertRegex(done.stderr.splitlines()[-1],
                             r"^penstock: GPU cuda:1 \(.*\) was lost while .*: cudaErrorECCUncorrectable \(214\): ")

    def test_links_count_as_the_gpus_memory(self):
        done = run("decode", "--model", MODEL, "--model-name", "m", "--coordinator", "127.0.0.1:1", "--device", "cuda",
                   "--cuda-plugin", cluster.PLUGIN, "--kv-bytes", "4MiB", "--link-bytes", "800MiB")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, r"MiB beside, 800\.0 MiB for links, and 1023\.\d MiB of the GPU's memory is free; ask ")


def cluster_ready(up, count):
    def ready():
        done = run("status", "--server", up.endpoints()["grpc"], "--json")
        return done.returncode == 0 and \
            [w["state"] for w in json.loads(done.stdout)["workers"]] == ["ready"] * count
    await_true("all are ready", ready)


class PlacementTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="penstock-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_on(self, rows, text, *command, nvml=True):
        """A command about a deployment file, on a machine with these GPUs."""
        described = self.folder / "machine"
        gpus = [f"gpu 0000:{i:02x}:00.0 {row}\n" for i, row in enumerate(rows)]
        described.write_text("driver 580.65.06\n" + "".join(gpus), encoding="utf-8")
        file = self.folder / "c.yaml"
        file.write_text(text, encoding="utf-8")
        env = dict(os.environ, PENSTOCK_CUDA_MACHINE=f"devices={len(rows)}", PENSTOCK_NVML_MACHINE=str(described))
        if nvml:
            env["LD_LIBRARY_PATH"] = str(pathlib.Path(NVML).parent)
        return run(*[file if part == "FILE" else part for part in command], "--cuda-plugin", cluster.PLUGIN, env=env)

    def test_islands(self):
        text = (f"model: {MODEL}\nprefill: {{count: 2, tp: 2, device: cuda, {SMALL}}}\n"
                f"decode: {{count: 2, tp: 2, device: cuda, {SMALL}}}\n")
        dry = self.run_on(ISLANDS, text, "up", "FILE", "--dry-run")
        self.assertEqual(dry.returncode, 0, dry.stderr)
        self.assertIn("# prefill-1 takes cuda:0,1: between its shards 4 NVLinks\n", dry.stdout)
        self.assertIn("# prefill-2 takes cuda:4,5: between its shards 4 NVLinks, to decode-1 two CPU sockets\n", dry.stdout)
        self.assertIn("# decode-2 takes cuda:6,7: between its shards 4 NVLinks, to prefill-2 4 NVLinks\n", dry.stdout)
        self.assertRegex(dry.stdout, r"(?m)^# decode-1 on cuda:2,3: on each of 2 GPUs ")
        self.assertRegex(dry.stdout, r"penstock decode .* --name decode-1 .* --device cuda:2,3 ")
        doctor = self.run_on(ISLANDS, text, "doctor", "FILE")
        self.assertRegex(doctor.stdout, r"(?m)^ok +between GPUs.*:\n +GPU 0 +GPU 1 .*\n +GPU 0 +X +NV4 +NV4 +NV4 +SYS ")
        self.assertRegex(doctor.stdout, r"(?m)^ +NV4 4 NVLinks; .*SYS two CPU sockets")
        self.assertRegex(doctor.stdout, r"(?m)^ok +decode-1 takes cuda:2,3: ")
        self.assertIn("NVIDIA driver 580.65.06", doctor.stdout)

    def test_without_nvml_they_are_placed_in_their_order(self):
        text = f"model: {MODEL}\nprefill: {{device: cuda, {SMALL}}}\ndecode: {{device: cuda, {SMALL}}}\n"
        doctor = self.run_on(["X SYS", "SYS X"], text, "doctor", "FILE", nvml=False)
        self.assertEqual(len(re.findall(r"NVLinks between GPUs are not known: ", doctor.stdout)), 1, doctor.stdout)
        self.assertRegex(doctor.stdout, r"(?m)^ok +decode-1 takes cuda:1: to prefill-1 ")

    def test_without_gpus_a_plan_says_so(self):
        text = f"model: {MODEL}\nprefill: {{device: cuda, {SMALL}}}\ndecode: {{device: cuda, {SMALL}}}\n"
        dry = self.run_on([], text, "up", "FILE", "--dry-run")
        self.assertEqual(dry.returncode, 0, dry.stderr)
        self.assertRegex(dry.stdout, r"(?m)^# GPUs for `device: cuda` are chosen where they are; here the first ones stand "
                                     r"for them: the NVIDIA driver shows no GPU")
        refused = self.run_on([], text, "up", "FILE")
        self.assertEqual(refused.returncode, 1, refused.stderr)
        self.assertRegex(refused.stderr, r"GPUs for `device: cuda` cannot be chosen: the NVIDIA driver shows no GPU.*; mend "
                                         r"that, or take device: cpu")

    def test_unlike_gpus_give_the_same_answer(self):
        """They are slower, which is said; what a GPU computes is checked when it starts."""
        with machine("unlike"):
            up, ready = start(self, f"model: {MODEL}\nblock_tokens: 16\nprefill: {{device: cuda, tp_sum: 2, {SMALL}}}\n"
                                    f"decode: {{device: cuda, tp: 2, {SMALL}}}\n")
            self.assertEqual(ask(ready["http"], PROMPTS[0]), alone(PROMPTS[0], sums=2))
            up.wait_line(r"decode-1 .*GPUs are of unlike models: each step takes as long as the slowest's part")
            up.wait_line(r"decode-1 takes cuda:0,1: ")
            self.assertEqual(up.end(), 0)
            doctor = run("doctor", up.file, "--cuda-plugin", cluster.PLUGIN)
            self.assertRegex(doctor.stdout, r"(?m)^warning +decode-1 is on GPUs of unlike models, .*GPU 0: .*; GPU 1: ")


if __name__ == "__main__":
    base.PENSTOCK, cluster.PLUGIN, NVML = sys.argv[1:4]
    unittest.main(argv=sys.argv[:1])
