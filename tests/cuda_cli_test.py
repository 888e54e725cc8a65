#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program with a GPU that is none: its plug-in runs the kernels emulated.

    tests/cuda_cli_test.py PENSTOCK PLUGIN [TEST...]    PLUGIN: as of cuda_cluster_test.py

Standard library only.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PENSTOCK = PLUGIN = None
GPU = r"stand-in 0, compute 9\.0, 1\.0 GiB"


def run(*args):
    return subprocess.run([PENSTOCK, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=100, check=False)


def generate(model, *args):
    done = run("generate", "--model", ROOT / "tests/golden/tiny" / model, "--raw", "--seed", 3, "--max-tokens", 12,
               "--ignore-eos", "--json", "--logprobs", 3, "--threads", 1, *args, "The mill stands where")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    del answer["ttft_ms"], answer["tokens_per_s"]  # Emulated: no matter.
    return answer


class CudaCliTest(unittest.TestCase):
    def test_answers_are_the_cpus(self):
        for model in ("llama3", "gemma3"):
            with self.subTest(model):
                want = generate(model)
                self.assertEqual(len(want["tokens"]), 12)
                self.assertEqual(generate(model, "--device", "cuda", "--cuda-plugin", PLUGIN), want)
                self.assertEqual(generate(model, "--device", "auto", "--cuda-plugin", PLUGIN), want)
                self.assertEqual(generate(model, "--device", "cuda:1", "--cuda-plugin", PLUGIN), want)
                self.assertEqual(generate(model, "--device", "auto", "--cuda-plugin", "/no/such.so"), want)

    def test_doctor(self):
        done = run("doctor", "--cuda-plugin", PLUGIN)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"(?m)^ok +CPU: \d+ for this process, ")
        self.assertRegex(done.stdout, r"(?m)^ok +CUDA: driver for 13\.0, cudart 1\d\.\d, plug-in .*emulated\.so$")
        self.assertRegex(done.stdout, r"(?m)^ok +(NCCL: \d+\.\d+\.\d+, the plug-in was built for \d|no NCCL: )")
        self.assertRegex(done.stdout, rf"(?m)^ok +GPU 0: {GPU}, what --device cuda takes$")
        broken = run("doctor", "--cuda-plugin", __file__)
        self.assertEqual(broken.returncode, 0)
        self.assertRegex(broken.stdout, r"(?m)^warning +GPU: none is used: cannot load .*cuda_cli_test\.py: ")
        # The machine's own, whatever that is.
        self.assertRegex(run("doctor").stdout, r"(?m)^ok +(GPU: none is used: |GPU 0: )")

    def test_fast_numerics(self):
        fast = generate("llama3", "--device", "cuda", "--cuda-plugin", PLUGIN, "--numerics", "fast")
        self.assertEqual(len(fast["tokens"]), 12)
        for device, what in (("cpu", "the CPU"), ("auto", "the CPU")):
            done = run("generate", "--model", ROOT / "tests/golden/tiny/llama3", "--raw", "--device", device, "--numerics",
                       "fast", "--cuda-plugin", "/no/such.so", "x")
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"numerics fast are for GPUs, and the device is {what}, whose only ones are exact: give it "
                          "--device cuda, or --numerics exact", done.stderr)

    def test_doctor_says_who_attends(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "cluster.yaml")
            worker = "device: 'cuda:{}', numerics: fast, page_tokens: {}, context_tokens: 128, sequences: 1, threads: 1"
            file.write_text(f"model: {ROOT / 'tests/golden/tiny/llama3'}\nprefill: {{{worker.format(0, 32)}}}\n"
                            f"decode: {{{worker.format(1, 16)}}}\n", encoding="utf-8")
            said = run("doctor", file, "--cuda-plugin", PLUGIN).stdout
        if "no cuDNN: the plug-in was built where" in said:
            self.skipTest("built without cuDNN")
        self.assertRegex(said, r"(?m)^ok +prefill-1: prefill attention by cuDNN, which agrees with our kernel$")
        self.assertRegex(said, r"(?m)^ok +decode-1: prefill attention by our kernel: pages of 16 tokens in blocks of 32$")

    def test_what_cannot_be(self):
        model = ROOT / "tests/golden/tiny/llama3"
        for args, code, want in (
                (["generate", "--device", "cuda", "--cuda-plugin", PLUGIN, "--kv-bytes", "4GiB"], 1,
                 "MiB of the GPU's memory is free"),
                (["generate", "--device", "tpu"], 2, "tpu"),
                (["decode", "--device", "cuda:64"], 2, "cuda:64 not in {cpu,paced,cuda,cuda:N,M}, numbers from 0 to 63"),
                (["generate", "--device", "cuda", "--cuda-plugin", "/no/such.so"], 1,
                 "there is no CUDA plug-in at /no/such.so"),
                (["generate", "--device", "cuda:2", "--cuda-plugin", PLUGIN], 1,
                 "there is no GPU 2: the NVIDIA driver shows this process 2, of which the first is 0")):
            with self.subTest(args):
                done = run(*args, "--model", model, *(["x"] if args[0] == "generate" else []))
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(want, done.stderr)


if __name__ == "__main__":
    PENSTOCK, PLUGIN = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
