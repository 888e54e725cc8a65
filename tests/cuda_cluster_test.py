#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clusters whose workers compute on GPUs that are none: the plug-in runs the kernels emulated.

    tests/cuda_cluster_test.py PENSTOCK PLUGIN [TEST...]    PLUGIN: the emulated one, or any where the stand-ins for
                                                            cudart and NCCL are what LD_LIBRARY_PATH names

deploy/local-gpu-standin.yaml gives the answers of `penstock generate` on the CPU, while a decode worker is
killed in the middle of one, and from the KV store when all workers are new; so does a cluster of CPUs and
GPUs. Standard library only.
"""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import threading
import unittest
import urllib.request
from unittest import mock

import up_test as base
from up_test import MODEL, ROOT, Up, await_true, run

PLUGIN = None
FILE = ROOT / "deploy/local-gpu-standin.yaml"
PROMPTS = ["the quick brown fox jumps over it " * 3, "where the mill stands, water comes by a pipe; " * 2, "a b c"]
TOKENS = 8
SMALL = "threads: 1, chunk_tokens: 64, context_tokens: 256, sequences: 1, kv_bytes: 160KiB"


def body(prompt, tokens, **more):
    return {"model": MODEL.name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            **more}


def post(http, what):
    request = urllib.request.Request(f"http://{http}/v1/completions", json.dumps(what).encode(),
                                     {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=base.WAIT_S)


def ask(http, prompt, tokens=TOKENS):
    with post(http, body(prompt, tokens)) as response:
        return json.loads(response.read())["choices"][0]["text"]


def alone(prompt, tokens=TOKENS, sums=1, kv_dtype="f16"):
    """The answer of one engine on the CPU."""
    done = run("generate", "--model", MODEL, "--raw", "--temperature", 0, "--max-tokens", tokens, "--ignore-eos",
               "--block-tokens", 16, "--threads", 1, "--tp-sum", sums, "--kv-dtype", kv_dtype, "--json", prompt)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"]


def start(case, text):
    up = Up(text, "--cuda-plugin", PLUGIN)
    case.addCleanup(up.__exit__)
    return up, up.wait_ready()


class CudaClusterTest(unittest.TestCase):
    def test_the_file_in_deploy(self):
        text = FILE.read_text(encoding="utf-8").replace("../tests/golden/tiny/llama3", str(MODEL))
        up, ready = start(self, text)
        http = ready["http"]
        for prompt in PROMPTS:
            self.assertEqual(ask(http, prompt), alone(prompt))
        self.check_nccl(ready)
        self.check_kill(up, http)
        self.check_store(up, http)

    def check_nccl(self, ready):
        """All KV came from the prefill worker's GPU to the decode workers' over NCCL, and each read has its parts."""
        trace = run("trace", "--server", ready["grpc"])
        self.assertRegex(trace.stdout, r"(?m)^prefill-1 -> decode-[12] by nccl: ", trace.stderr)
        self.assertNotRegex(trace.stdout, r"(?m)^prefill-1 -> decode-[12] by (shm|tcp): ")
        for part in ("pack", "ready", "move", "land"):
            self.assertRegex(trace.stdout, rf"(?m)^decode: {part} +[1-9]")

    def check_kill(self, up, http):
        """A decode worker dies amid an answer, which goes on."""
        prompt, tokens = PROMPTS[0] + "again", 350  # Some seconds.
        want = alone(prompt, tokens)
        got, begun = [], threading.Event()

        def read():
            with post(http, body(prompt, tokens, stream=True)) as response:
                for line in response:
                    if not line.startswith(b"data: {"):
                        continue
                    got.append(json.loads(line[6:])["choices"][0]["text"])
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        self.assertTrue(begun.wait(base.WAIT_S))
        busy = []
        await_true("a decode worker is busy", lambda: busy.extend(self.busy(up)) or busy)
        os.kill(up.pid_of(busy[0]), signal.SIGKILL)
        at_kill = len(got)
        reader.join(base.WAIT_S)
        self.assertFalse(reader.is_alive())
        self.assertLess(at_kill, len(got), "killed when all was over")
        self.assertEqual("".join(got), want)

    def workers(self, up):
        done = run("status", "--server", up.endpoints()["grpc"], "--json")
        return json.loads(done.stdout)["workers"] if done.returncode == 0 else []

    def busy(self, up):
        return [w["name"] for w in self.workers(up) if w["name"].startswith("decode") and w["sequences"] > 0]

    def check_store(self, up, http):
        """Workers that are new have a prompt from the store."""
        prompt = "what was stored is found by those who know its name; " * 4
        want = alone(prompt)
        self.assertEqual(ask(http, prompt), want)
        store = lambda: json.loads(run("store", "stat", "--server", up.endpoints()["grpc"], "--json").stdout)
        await_true("the prompt is kept", lambda: store()["copies"] >= 10)
        old = {worker["pid"] for worker in self.workers(up)}
        for name in ("prefill-1", "decode-1", "decode-2"):
            os.kill(up.pid_of(name), signal.SIGKILL)
        await_true("all are new", lambda: [w["state"] for w in self.workers(up)] == ["ready"] * 3
                   and old.isdisjoint(w["pid"] for w in self.workers(up)))
        self.assertEqual(ask(http, prompt), want)
        fetched = sum(up.metric(name, "penstock_store_fetched_blocks_total", 'way="copied"')
                      for name in ("prefill-1", "decode-1", "decode-2"))
        self.assertGreater(fetched, 0)
        mapped = sum(up.metric(name, "penstock_store_fetched_blocks_total", 'way="mapped"')
                     for name in ("decode-1", "decode-2"))
        self.assertEqual(mapped, 0, "a GPU reads no memory of the host")

    def test_who_cannot_meet_over_nccl(self):
        """Two workers on one GPU, and two whose communicator cannot be made, go through the host, at once."""
        prompt = "the quick brown fox jumps over it " * 3
        want = alone(prompt)
        for decode, faults in (("cuda:0", ""), ("cuda:1", "init_error=2")):
            with self.subTest(decode=decode), mock.patch.dict(os.environ, PENSTOCK_NCCL_FAULTS=faults):
                up, ready = start(self, f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\n"
                                        f"prefill: {{device: 'cuda:0', {SMALL}}}\ndecode: {{device: '{decode}', {SMALL}}}\n")
                for _ in (1, 2):
                    self.assertEqual(ask(ready["http"], prompt), want)
                trace = run("trace", "--server", ready["grpc"])
                self.assertRegex(trace.stdout, r"(?m)^prefill-1 -> decode-1 by shm: ", trace.stderr)
                self.assertNotIn("decode: move", trace.stdout)
                doctor = run("doctor", up.file, "--cuda-plugin", PLUGIN)
                said = ("0 of 1 pairs of GPU workers, the others through the host: prefill-1 and decode-1 share a GPU"
                        if decode == "cuda:0" else "all 1 pairs of GPU workers")
                self.assertIn("transfer over nccl: " + said, doctor.stdout)

    def test_kills_amid_transfers(self):
        """Either side of links of kind nccl dies again and again, and NCCL never says so; answers stay right."""
        with mock.patch.dict(os.environ, PENSTOCK_NCCL_FAULTS="silent_death,rendezvous"):
            up, ready = start(self, f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\n"
                                    f"prefill: {{count: 2, device: 'cuda:0', {SMALL}}}\n"
                                    f"decode: {{count: 2, device: 'cuda:1', {SMALL}}}\n")
        prompts = [f"prompt {i}: the quick brown fox jumps over it " * 2 for i in range(12)]
        want = [alone(prompt) for prompt in prompts]
        names, killed, faults = ["prefill-1", "decode-2", "prefill-2", "decode-1"], [], []

        def kill():
            try:
                for name in names:
                    await_true("all are ready", lambda: [w["state"] for w in self.workers(up)] == ["ready"] * 4)
                    os.kill(up.pid_of(name), signal.SIGKILL)
                    killed.append(name)
            except BaseException as fault:  # For the test's own thread.
                faults.append(fault)

        killer = threading.Thread(target=kill)
        killer.start()
        while killer.is_alive():
            self.assertEqual([ask(ready["http"], prompt) for prompt in prompts], want)
        killer.join()
        self.assertEqual((killed, faults), (names, []))
        await_true("all are ready", lambda: [w["state"] for w in self.workers(up)] == ["ready"] * 4)
        before = self.nccl_handoffs(ready)
        self.assertEqual([ask(ready["http"], prompt + "more") for prompt in prompts],
                         [alone(prompt + "more") for prompt in prompts])
        self.assertGreater(self.nccl_handoffs(ready), before)

    def nccl_handoffs(self, ready):
        trace = run("trace", "--server", ready["grpc"]).stdout
        return sum(map(int, re.findall(r"(?m)^prefill-[12] -> decode-[12] by nccl: (\d+) handoff", trace)))

    def test_a_gpu_beside_a_cpu(self):
        """One computes the prompt, the other one answers. What leaves their full memory is stored, and found."""
        prompts = [f"prompt {i}: the quick brown fox jumps over it " * 2 for i in range(6)]
        for prefill, decode, kv_dtype, kv_bytes, codec in (
                ("cuda", "cpu", "f16", "160KiB", "raw"), ("cuda", "cpu", "f16", "160KiB", "planes+zstd"),
                ("cpu", "cuda:1", "f16", "160KiB", "planes"), ("cuda", "cpu", "int8", "80KiB", "raw"),
                ("cpu", "cuda:1", "int8", "80KiB", "raw")):
            small = ("threads: 1, chunk_tokens: 64, context_tokens: 256, sequences: 1, "
                     f"kv_bytes: {kv_bytes}, kv_dtype: {kv_dtype}")
            want = [alone(prompt, kv_dtype=kv_dtype) for prompt in prompts]
            with self.subTest(prefill=prefill, kv_dtype=kv_dtype, codec=codec):
                up, ready = start(self, f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\n"
                                        f"prefill: {{device: '{prefill}', {small}}}\n"
                                        f"decode: {{device: '{decode}', {small}}}\n"
                                        f"kvstore: {{host_bytes: 64MiB, worker_write: back, codec: {codec}}}\n")
                for turn in (1, 2):
                    self.assertEqual([ask(ready["http"], prompt) for prompt in prompts], want)
                gpu = "prefill-1" if prefill == "cuda" else "decode-1"
                if codec == "raw":
                    self.assertGreater(up.metric(gpu, "penstock_store_demoted_blocks_total"), 0)
                else:  # The other one may have been first to store what both let go of.
                    self.assertGreater(up.metric(gpu, "penstock_store_encoded_by_device_blocks_total"), 0)
                if prefill == "cuda":  # Who computes slowly gains by fetching.
                    self.assertGreater(up.metric(gpu, "penstock_store_fetched_blocks_total"), 0)
                    if codec != "raw":
                        self.assertGreater(up.metric(gpu, "penstock_store_fetched_blocks_total", 'way="encoded"'), 0)
                self.assertEqual(up.end(), 0)

    def test_copies_with_a_loss(self):
        """A GPU encodes what it keeps in the store, as it is sealed or as it leaves its memory."""
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            model = pathlib.Path(folder) / MODEL.name
            shutil.copytree(MODEL, model)
            text = pathlib.Path(folder) / "text"
            text.write_text("what is written here does not matter, and what is measured neither; " * 40)
            measured = run("quality", model, "--text", text, "--codecs", "int8", "--prompt-tokens", 64, "--tokens", 16,
                           "--needles", 0)
            self.assertEqual(measured.returncode, 0, measured.stderr)
            for write, kv_bytes in (("through", "4MiB"), ("back", "160KiB")):
                with self.subTest(write=write):
                    self.check_loss(model, write, kv_bytes)

    def check_loss(self, model, write, kv_bytes):
        prompts = [f"{i}: half of it is gone before it has crossed the link to where it is kept; " * 3 for i in range(6)]
        small = f"threads: 1, chunk_tokens: 64, context_tokens: 256, sequences: 1, kv_bytes: {kv_bytes}"
        up, ready = start(self, f"model: {model}\nblock_tokens: 16\npolicy: round-robin\nprefill: {{device: cuda, {small}}}\n"
                                f"decode: {{device: cpu, {small}}}\nkvstore: {{host_bytes: 64MiB, codec: none, "
                                f"lossy: int8, max_kl: 0.05, worker_write: {write}}}\n")
        for prompt in prompts:
            self.assertEqual(ask(ready["http"], prompt), alone(prompt))
        encoded = lambda: up.metric("prefill-1", "penstock_store_encoded_by_device_blocks_total")
        await_true("the GPU has encoded", lambda: encoded() >= 4)
        store = lambda: json.loads(run("store", "stat", "--server", ready["grpc"], "--json").stdout)
        await_true("copies are kept", lambda: store()["copies"] >= 4)
        old = {worker["pid"] for worker in self.workers(up)}
        for name in ("prefill-1", "decode-1"):
            os.kill(up.pid_of(name), signal.SIGKILL)
        await_true("all are new", lambda: [w["state"] for w in self.workers(up)] == ["ready"] * 2
                   and old.isdisjoint(w["pid"] for w in self.workers(up)))
        for prompt in prompts:
            with post(ready["http"], body(prompt, TOKENS, reuse="kl2")) as response:
                self.assertEqual(json.loads(response.read())["usage"]["completion_tokens"], TOKENS)
        fetched = sum(up.metric(name, "penstock_store_fetched_blocks_total", 'codec="int8"')
                      for name in ("prefill-1", "decode-1"))
        self.assertGreater(fetched, 0)
        self.assertEqual(ask(ready["http"], prompts[0]), alone(prompts[0]))  # Exact, beside what is not.
        self.assertEqual(up.end(), 0)

    def test_workers_on_two_gpus(self):
        """The answers of one shard on the CPU; KV goes from two GPUs to the same two, so through the host."""
        small = "tp: 2, threads: 2, chunk_tokens: 64, context_tokens: 256, sequences: 2, kv_bytes: 4MiB"
        text = (f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\nprefill: {{device: cuda, {small}}}\n"
                f"decode: {{device: 'cuda:1,0', {small}}}\nkvstore: {{host_bytes: 64MiB}}\n")
        up, ready = start(self, text)
        for prompt in PROMPTS:
            self.assertEqual(ask(ready["http"], prompt), alone(prompt, sums=2))
        trace = run("trace", "--server", ready["grpc"])
        self.assertRegex(trace.stdout, r"(?m)^prefill-1 -> decode-1 by shm: ", trace.stderr)
        store = lambda: json.loads(run("store", "stat", "--server", ready["grpc"], "--json").stdout)
        await_true("blocks are kept", lambda: store()["copies"] > 0)
        self.assertEqual(up.end(), 0)
        doctor = run("doctor", up.file, "--cuda-plugin", PLUGIN)
        self.assertRegex(doctor.stdout, r"ok +decode-1 on cuda:1,0: on each of 2 GPUs .* 2\.1 MB of KV and .*; up to 4\.2 MB ")
        for gpu in (0, 1):
            self.assertRegex(doctor.stdout, rf"workers need .* of memory of GPU {gpu}, 1.07 GB are free")

    def test_stages_on_two_gpus(self):
        """The same, of layers: from a GPU for each half of them to two that have all, and half of their heads."""
        small = "threads: 2, chunk_tokens: 64, context_tokens: 256, sequences: 2, kv_bytes: 4MiB"
        text = (f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\n"
                f"prefill: {{device: cuda, pp: 2, tp_sum: 2, {small}}}\n"
                f"decode: {{device: 'cuda:1,0', tp: 2, {small}}}\nkvstore: {{host_bytes: 64MiB}}\n")
        up, ready = start(self, text)
        for prompt in PROMPTS:
            self.assertEqual(ask(ready["http"], prompt), alone(prompt, sums=2))
        trace = run("trace", "--server", ready["grpc"])
        self.assertRegex(trace.stdout, r"(?m)^prefill-1 -> decode-1 by shm: ", trace.stderr)
        self.assertEqual(up.end(), 0)
        doctor = run("doctor", up.file, "--cuda-plugin", PLUGIN)
        self.assertRegex(doctor.stdout, r"ok +prefill-1 on cuda:0,1: stage 0 .* of weights, .* of KV and .* for steps; stage 1 .*, "
                                        r"of device memory; up to 4\.2 MB ")
        for gpu in (0, 1):
            self.assertRegex(doctor.stdout, rf"workers need .* of memory of GPU {gpu}, 1.07 GB are free")

    def test_kv_between_workers_on_several_gpus(self):
        """Unlike splits: each GPU ships what it has to those that want it, also to workers that are new."""
        small = "tp_sum: 2, threads: 2, chunk_tokens: 64, context_tokens: 256, sequences: 2, kv_bytes: 4MiB"
        for prefill, decode, pairs in (("device: 'cuda:0,1', tp: 2", "device: 'cuda:2'", 2),
                                       ("device: 'cuda:3,1', pp: 2", "device: 'cuda:0,2', tp: 2", 4)):
            with self.subTest(prefill=prefill), mock.patch.dict(os.environ, PENSTOCK_CUDA_MACHINE="devices=4"):
                text = (f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\n"
                        f"prefill: {{{prefill}, {small}}}\ndecode: {{{decode}, {small}}}\n")
                up, ready = start(self, text)
                for prompt in PROMPTS:
                    self.assertEqual(ask(ready["http"], prompt), alone(prompt, sums=2))
                self.check_shipped(ready)
                old = up.pid_of("prefill-1")
                os.kill(old, signal.SIGKILL)
                await_true("it is new", lambda: [w["state"] for w in self.workers(up)] == ["ready"] * 2
                           and old not in [w["pid"] for w in self.workers(up)])
                before = self.nccl_handoffs(ready)
                turns = itertools.count()

                def shipped_again():  # Until the pair has been tried the decode worker computes itself.
                    prompt = f"turn {next(turns)}: who comes back begins anew; " * 3
                    self.assertEqual(ask(ready["http"], prompt), alone(prompt, sums=2))
                    return self.nccl_handoffs(ready) > before

                await_true("KV is shipped again", shipped_again)
                self.check_shipped(ready)
                doctor = run("doctor", up.file, "--cuda-plugin", PLUGIN)
                self.assertIn(f"transfer over nccl: all 1 pairs of GPU workers, over {pairs} pairs of GPUs\n", doctor.stdout)
                dry = run("up", up.file, "--dry-run")
                self.assertIn(f"# KV from prefill-1 to decode-1 by nccl: {pairs} pairs of GPUs\n", dry.stdout)
                links = "117.4 MB" if pairs == 4 else "58.7 MB"
                self.assertRegex(dry.stdout, rf"(?m)^# prefill-1 on .*; up to {links} for links of kind nccl; ")
                self.assertEqual(up.end(), 0)

    def check_shipped(self, ready):
        trace = run("trace", "--server", ready["grpc"])
        self.assertRegex(trace.stdout, r"(?m)^prefill-1 -> decode-1 by nccl: ", trace.stderr)
        self.assertNotRegex(trace.stdout, r"(?m)^prefill-1 -> decode-1 by (shm|tcp): ")

    def test_fast_numerics(self):
        """Answers come, by KV that was shipped; a worker of exact numerics is no peer."""
        small = "device: cuda, numerics: fast, threads: 1, chunk_tokens: 64, context_tokens: 256, sequences: 2"
        text = (f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\nprefill: {{{small}, kv_bytes: 1MiB}}\n"
                f"decode: {{{small.replace('cuda', 'cuda:1')}, kv_bytes: 1MiB}}\nkvstore: {{host_bytes: 64MiB}}\n")
        up, ready = start(self, text)
        for prompt in PROMPTS:
            with post(ready["http"], body(prompt, TOKENS)) as response:
                self.assertEqual(json.loads(response.read())["usage"]["completion_tokens"], TOKENS)
        self.assertRegex(run("trace", "--server", ready["grpc"]).stdout, r"(?m)^prefill-1 -> decode-1 by nccl: ")
        exact = run("decode", "--model", MODEL, "--model-name", MODEL.name, "--coordinator", ready["grpc"],
                    "--block-tokens", 16, "--context-tokens", 256, "--threads", 1, "--no-store")
        self.assertEqual(exact.returncode, 1, exact.stderr)
        self.assertRegex(exact.stderr, "numerics.*(cpu-1.*fast-1|fast-1.*cpu-1)")
        self.assertEqual(up.end(), 0)
        doctor = run("doctor", up.file, "--cuda-plugin", PLUGIN)
        self.assertEqual(doctor.returncode, 0, doctor.stdout)
        self.assertRegex(doctor.stdout, r"(?m)^ok +cuBLASLt: 1\d\.\d+\.\d+, the plug-in was built for \d")
        self.assertRegex(doctor.stdout, r"(?m)^ok +numerics fast: prefill-1, decode-1; no two answers")
        for fault, why in (("absent", "cannot load libcublasLt"), ("version=111103", r"cuBLASLt is 11\.11\.3, the plug-in needs")):
            with self.subTest(fault), mock.patch.dict(os.environ, PENSTOCK_CUBLASLT_FAULTS=fault):
                doctor = run("doctor", up.file, "--cuda-plugin", PLUGIN)
                self.assertEqual(doctor.returncode, 1, doctor.stdout)
                self.assertRegex(doctor.stdout, r"(?m)^fault +numerics fast: prefill-1, decode-1 will not start: "
                                                rf"numerics fast need cuBLASLt, and there is none: {why}")
                refused = run("decode", "--model", MODEL, "--model-name", "m", "--coordinator", "127.0.0.1:1", "--device",
                              "cuda", "--numerics", "fast", "--cuda-plugin", PLUGIN)
                self.assertEqual(refused.returncode, 1, refused.stderr)
                self.assertRegex(refused.stderr, f"numerics fast need cuBLASLt, and there is none: {why}")

    def test_what_cannot_be(self):
        for args, want in (
                (["--device", "cuda:0,2", "--tp", "2"], "there is no GPU 2: the NVIDIA driver shows this process 2"),
                (["--device", "cuda:0,1"], "device cuda:0,1 names 2 GPUs, and tp is 1: each shard takes one"),
                (["--device", "cuda:0,1", "--pp", "3"],
                 "device cuda:0,1 names 2 GPUs, and tp is 1 and pp 3: each shard of each stage takes one"),
                (["--device", "cuda:2"], "there is no GPU 2: the NVIDIA driver shows this process 2"),
                (["--device", "cuda", "--kv-bytes", "4GiB"], "MiB of the GPU's memory is free")):
            with self.subTest(args):
                done = run("decode", "--model", MODEL, "--model-name", "m", "--coordinator", "127.0.0.1:1", *args,
                           "--cuda-plugin", PLUGIN)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn(want, done.stderr)

    def test_dry_run_and_doctor(self):
        dry = run("up", FILE, "--dry-run")
        self.assertEqual(dry.returncode, 0, dry.stderr)
        self.assertRegex(dry.stdout, r"(?m)^# decode-2 on cuda:1: .* of KV and .* of device memory; "
                         r"up to 58.7 MB for links of kind nccl; up to 4.2 MB of")
        self.assertEqual(len(re.findall(r"(?m)^[^#].* --device cuda:1 ", dry.stdout)), 2)
        doctor = run("doctor", FILE, "--cuda-plugin", PLUGIN)
        self.assertEqual(doctor.returncode, 0, doctor.stdout)
        self.assertRegex(doctor.stdout, r"(?m)^ok +transfer over nccl: all 2 pairs of GPU workers$")
        self.assertRegex(doctor.stdout, r"(?m)^ok +workers need .* of memory of GPU 1, 1.07 GB are free$")
        without = run("doctor", FILE, "--cuda-plugin", "/no/such.so")
        self.assertEqual(without.returncode, 1)
        self.assertRegex(without.stdout, r"fault +decode-2 \(line \d+\): device is cuda:1, but there is no CUDA plug-in "
                                         r"at /no/such\.so; mend that, or take device: cpu")
        other = FILE.read_text(encoding="utf-8").replace("../tests/golden/tiny/llama3", str(MODEL))
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "c.yaml"
            file.write_text(other.replace("cuda:1", "cuda:2"), encoding="utf-8")
            beyond = run("doctor", file, "--cuda-plugin", PLUGIN)
        self.assertEqual(beyond.returncode, 1)
        self.assertRegex(beyond.stdout, r"fault +decode-2 \(line \d+\): device is cuda:2, but there is no GPU 2: "
                                        r"the NVIDIA driver shows this process 2, .*; mend that, or take device: cpu")


if __name__ == "__main__":
    base.PENSTOCK, PLUGIN = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
