#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""deploy/gpu-acceptance.sh with a stand-in for a GPU, and with faults planted in what it runs:

    tests/gpu_acceptance_test.py BUILD_FOLDER

Standard library only.
"""

import copy
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "deploy/gpu"))
import acceptance  # noqa: E402
import roofline  # noqa: E402
import verdicts  # noqa: E402
from up_test import gone  # noqa: E402

BUILD = None
WAIT_S = 120
TINY = ROOT / "tests/golden/tiny/llama3"
PASSES = "echo '[  PASSED  ] 7 tests.'"
# Says a first time, and then nothing more, nor do its children.
HANGS = """echo $$ > "$0.pid"
echo '{"name": "GPU to itself, read and write", "seconds": 0.5, "weights_bytes": 0}'
tail -f /dev/null"""


def says_other(flags, edit):
    """A penstock whose output is edited, by sed, where it is given these flags."""
    return f"""if [[ "$*" == *"{flags}"* ]]; then
  {BUILD}/penstock "$@" | sed '{edit}'
else
  exec {BUILD}/penstock "$@"
fi"""


class Folder:
    """A build folder: the programs of BUILD, but for what is planted: shell scripts by path."""

    def __init__(self, test, planted):
        folder = tempfile.TemporaryDirectory(prefix="penstock-")
        test.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name)
        for name in ("penstock", "bench/gpu_bench", "bench/engine_bench", "tests/cuda_bits_test",
                     "kernels/libpenstock_cuda_emulated.so", *acceptance.KERNEL_TESTS):
            file = self.path / name
            file.parent.mkdir(exist_ok=True)
            if planted.get(name, "") is None:
                continue
            if name in planted:
                file.write_text(f"#!/bin/bash\n{planted[name]}\n", encoding="utf-8")
                file.chmod(0o755)
            else:
                file.symlink_to(BUILD / name)

    def run(self, *args, plugin=True):
        """Exit code, output and the JSON report."""
        if plugin:
            args = ("--cuda-plugin", self.path / "kernels/libpenstock_cuda_emulated.so", *args)
        report = self.path / "report.json"
        done = subprocess.run([ROOT / "deploy/gpu-acceptance.sh", "--build", self.path, "--json", report,
                               *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=WAIT_S, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        return done.returncode, done.stdout + done.stderr, json.loads(report.read_text(encoding="utf-8"))


def steps(report):
    return {step["name"]: step for step in report["steps"]}


class StandInTest(unittest.TestCase):
    def test_all_is_well(self):
        planted = {name: PASSES for name in (*acceptance.KERNEL_TESTS[2:], "tests/cuda_bits_test")}
        code, out, report = Folder(self, planted).run("--model", TINY)
        self.assertEqual(code, 0, out)
        self.assertIn("\nSTAND-IN: ", out)
        self.assertRegex(out.splitlines()[-1], r"^20 passed, 0 failed, 10 skipped \(of a STAND-IN, not of a GPU\)$")
        self.assertRegex(out, r"(?m)^passed +kernels/gpu_cuda_test +[\d.]+ s  [1-9]\d* tests$")
        self.assertTrue(report["stand_in"])
        self.assertIsNone(report["peaks"])
        self.assertEqual((report["passed"], report["failed"], report["skipped"]), (20, 0, 10))
        for name, step in steps(report).items():
            self.assertEqual(step["verdict"], "skipped" if name.startswith("memcheck") else "passed", step)
        self.assertIn("the same bits", steps(report)["answers are the CPU's"]["note"])
        self.assertEqual(steps(report)["a cluster"]["note"], "KV by nccl: the same bits")
        self.assertEqual([pair["transport"] for pair in report["transfers"]], ["nccl"])
        self.assertEqual(len(report["bandwidth"]), 6)
        self.assertEqual(len(report["kernels"]), 33)
        self.assertEqual([r["streams"] for r in report["rates"]], [1, 1, 1, 2])
        self.assertEqual([r["what"] for r in report["rates"]][:2],
                         ["prefill, 9 tokens, exact", "prefill, 9 tokens, fast"])
        for row in report["kernels"] + report["rates"]:
            self.assertGreater(row.get("seconds") or row["tokens_per_s"], 0)
        self.assertEqual([row["name"].split(": ")[-1] for row in report["products"]],
                         ["q, k, v", "attention", "attention out", "gate and up", "down"])
        self.assertRegex(steps(report)["answers of numerics fast"]["note"],
                         r"^nats from the exact: greedy prompt [\d.e-]+, long prompt [\d.e-]+; "
                         r"prefill attention by cuDNN, which agrees with our kernel$")

    def test_faults_have_verdicts(self):
        kernels = iter(acceptance.KERNEL_TESTS)
        planted = {
            next(kernels): "echo '[  FAILED  ] LinearTest.Sums (3 ms)'; exit 1",
            next(kernels): "kill -SEGV $$",
            next(kernels): "echo '[  PASSED  ] 0 tests.'",
            next(kernels): None,
            next(kernels): HANGS,
            next(kernels): PASSES,
            next(kernels): PASSES,
            "tests/cuda_bits_test": "echo skipped: no GPU; exit 77",
            "bench/gpu_bench": HANGS,
        }
        folder = Folder(self, planted)
        code, out, report = folder.run("--model", "/no/such/model", "--step-seconds", 3)
        self.assertEqual(code, 1, out)
        notes = {name: step["note"] for name, step in steps(report).items() if step["verdict"] == "failed"}
        for name, want in zip(acceptance.KERNEL_TESTS, (
                "exit code 1: LinearTest.Sums", "ended by SIGSEGV", "it ran no test", "cmake --build",
                "attention_cuda_test did not end within 3 s and was ended")):
            self.assertIn(want, notes[name])
        self.assertIn("found no GPU", notes["the engine's bits"])
        self.assertIn("gpu_bench did not end within 3 s and was ended (at host to GPU, pinned)", notes["bandwidth"])
        self.assertIn("did not end within 3 s", notes["kernels, Tiny"])
        self.assertIn("/no/such/model", notes["model"])
        self.assertEqual([row["way"] for row in report["bandwidth"]], ["GPU to itself, read and write"])
        self.assertIn("did not end within 3 s", notes["numerics fast, Tiny"])
        self.assertEqual(report["failed"], 10)
        self.assertNotIn("rates", steps(report))
        for name in (acceptance.KERNEL_TESTS[4], "bench/gpu_bench"):
            pid = int((folder.path / f"{name}.pid").read_text(encoding="utf-8"))
            self.assertTrue(gone(pid), f"{name} runs on")

    def test_other_bits_and_other_weights(self):
        planted = {name: PASSES for name in (*acceptance.KERNEL_TESTS, "tests/cuda_bits_test")}
        planted["penstock"] = says_other("--device cuda", r's/"logprob":-/"logprob":-1/')
        planted["bench/gpu_bench"] = f"{BUILD}/bench/gpu_bench \"$@\" | sed 's/weights_bytes\":75776/weights_bytes\":9/'"
        planted["bench/engine_bench"] = "echo no memory >&2; exit 3"
        code, out, report = Folder(self, planted).run("--model", TINY)
        self.assertEqual(code, 1, out)
        by_name = steps(report)
        self.assertRegex(by_name["answers are the CPU's"]["note"],
                         r"^greedy prompt: log-probability of token 0 is -[\d.]+ on the CPU, -1[\d.]+ on the GPU$")
        self.assertIn("Tiny, decode, batch 2: q, k, v: it reads 9 bytes of weights, and the roofline counts 75776",
                      by_name["kernels, Tiny"]["note"])
        self.assertEqual(by_name["rates"]["note"], "engine_bench: exit code 3: no memory")
        self.assertEqual(report["failed"], 3)

    def test_fast_answers_far_off(self):
        planted = {name: PASSES for name in (*acceptance.KERNEL_TESTS, "tests/cuda_bits_test")}
        planted["penstock"] = says_other("--numerics fast", r's/"logprob":-/"logprob":-9/g')
        planted["bench/gpu_bench"] = "[[ \"$*\" == *fast* ]] && echo no plan >&2; exit 4"
        code, out, report = Folder(self, planted).run("--model", TINY)
        self.assertEqual(code, 1, out)
        by_name = steps(report)
        self.assertEqual(by_name["answers are the CPU's"]["verdict"], "passed", out)
        self.assertRegex(by_name["answers of numerics fast"]["note"],
                         r"^greedy prompt: \d+ log-probabilities are up to \d+ nats from the exact ones, "
                         r"at most 0\.5 may be$")
        self.assertIn("gpu_bench: exit code 4", by_name["numerics fast, Tiny"]["note"])

    def test_time_ends(self):
        code, out, report = Folder(self, {"bench/gpu_bench": HANGS, acceptance.KERNEL_TESTS[0]: HANGS}).run(
            "--minutes", 0.07)
        self.assertEqual(code, 1, out)
        self.assertEqual(report["passed"], 1, out)
        self.assertEqual(steps(report)["bandwidth"]["note"], "no time is left of 0.07 minutes")

    def test_ended_from_outside(self):
        folder = Folder(self, {acceptance.KERNEL_TESTS[0]: HANGS})
        started = folder.path / f"{acceptance.KERNEL_TESTS[0]}.pid"
        os.mkfifo(started)
        reader = os.open(started, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        with subprocess.Popen(
                [ROOT / "deploy/gpu-acceptance.sh", "--build", folder.path, "--cuda-plugin",
                 folder.path / "kernels/libpenstock_cuda_emulated.so"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            self.assertTrue(select.select([reader], [], [], WAIT_S)[0], "it never came to the first test")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=WAIT_S)
        self.assertEqual(process.returncode, 130)
        self.assertIn("interrupted\n1 passed, 0 failed, 0 skipped", out)
        self.assertTrue(gone(int(os.read(reader, 100))))

    def test_no_gpu(self):
        folder = Folder(self, {})
        code, out, report = folder.run(plugin=False)
        self.assertEqual(code, 77, out)
        self.assertRegex(out, r"^skipped: no GPU: GPU: none is used: ")
        self.assertEqual(report["steps"], [])
        code, out, _ = folder.run("--cuda-plugin", __file__, plugin=False)
        self.assertEqual(code, 1, out)
        self.assertRegex(out, r"^failed +doctor .*cannot load .*gpu_acceptance_test\.py")

    def test_what_cannot_begin(self):
        for args, want in ((["--build", "/no/such"], "there is no program /no/such/penstock"),
                           (["--build", BUILD, "--minutes", "0"], "--minutes must be above 0 and below 1e6, got 0"),
                           (["--build", BUILD, "--json", "/no/such/x.json"], "there is no folder for /no/such/x.json")):
            done = subprocess.run([ROOT / "deploy/gpu-acceptance.sh", *args], stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=WAIT_S, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(want, done.stderr)


class BenchTest(unittest.TestCase):
    def test_what_is_no_case_is_refused(self):
        linear = {"name": "x", "kernel": "linear", "format": "q4_k", "outputs": [16], "cols": 256, "rows": 1}
        copy_ = {"name": "x", "kernel": "copy", "from": "device", "to": "device", "bytes": 8}
        units = {"name": "x", "kernel": "copy_units", "units": 1, "bytes": 4096, "run_bytes": 64}
        code = {"name": "x", "kernel": "encode_kv", "codec": "planes", "layers": 1, "kv_heads": 1, "head_dim": 64}
        attention = {"name": "x", "kernel": "attention", "qo_heads": 4, "kv_heads": 2, "head_dim": 64, "sequences": 1,
                     "rows": 1, "position": 0}
        for cases, want in (
                ({}, "the cases are not a JSON array"), ([3], "case 1 : it is not an object"),
                ([copy_, {**copy_, "kernel": "paint"}], "case 2 x: there is no kernel paint"),
                ([{**code, "codec": "raw"}], "no device makes copies by raw"),
                ([{**code, "head_dim": 12}], "head_dim is 12, not a multiple of 8"),
                ([{**code, "kv_dtype": "int8"}], "int8"),
                ([{**linear, "format": "q9"}], "there is no format q9"),
                ([{**linear, "cols": 255}], "cols is 255, not a multiple of 256"),
                ([{**linear, "rows": 0}], "rows must be from 1 to 1048576, got 0"),
                ([{**linear, "rows": "1"}], "rows is not a number"),
                ([{**linear, "outputs": []}], "outputs is not a list of numbers"),
                ([{**linear, "add": 1}], "add is not true or false"),
                ([{**linear, "kernel": "gated"}], "gated needs two matrices of one size, got outputs [16]"),
                ([{**linear, "kernel": "gated", "outputs": [16, 32]}], "of one size, got outputs [16, 32]"),
                ([{**linear, "kernel": "embed", "outputs": [16, 16]}], "embed needs one matrix, got outputs [16, 16]"),
                ([{**linear, "kernel": "unpack", "outputs": [16, 16]}], "unpack needs one matrix, got outputs [16, 16]"),
                ([{**attention, "kv_heads": 3}], "qo_heads is 4, not a multiple of kv_heads, 3"),
                ([{**attention, "head_dim": 63}], "63"),
                ([{"name": "x", "kernel": "draw", "cols": 9}], "rows is not a number"),
                ([{"name": "x", "kernel": "draw", "cols": 9, "rows": 1, "filters": 3}],
                 "filters is not true or false"),
                ([{**attention, "kv_dtype": "int9"}], "int9"),
                ([{**attention, "kv_dtype": 8}], "kv_dtype is not a string"),
                ([{**units, "run_bytes": 65}], "bytes is 4096, not a multiple of run_bytes, 65"),
                ([{**units, "units": 0}], "units must be from 1 to 1048576, got 0"),
                ([{**copy_, "to": "moon"}], "to is not device, pinned or pageable"),
                ([{**copy_, "bytes": 1 << 33}], "cannot allocate 8589934592 bytes on the GPU")):
            with self.subTest(want):
                done = subprocess.run([BUILD / "bench/gpu_bench", "--cuda-plugin",
                                       BUILD / "kernels/libpenstock_cuda_emulated.so"], input=json.dumps(cases),
                                      capture_output=True, text=True, timeout=WAIT_S, check=False)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn(want, done.stderr)


class RooflineTest(unittest.TestCase):
    H100 = next(gpu for gpu in roofline.GPUS if gpu.name == "H100 SXM")

    def work(self, load, kernel):
        return next(case.work for case in roofline.cases(roofline.MODELS[0], roofline.LOADS[load])
                    if case.name == kernel)

    def test_gpus_by_name(self):
        for name, want in (("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"), ("NVIDIA H100 80GB HBM3", "H100 SXM"),
                           ("NVIDIA H200", "H200 SXM"), ("NVIDIA B200", "B200"), ("NVIDIA H100 PCIe", None),
                           ("NVIDIA A100-SXM4-40GB", None), ("NVIDIA L40S", None)):
            found = roofline.find_gpu(name)
            self.assertEqual(found and found.name, want, name)

    def test_costs_by_hand(self):
        # 16 sequences of 4,096 tokens: K and V of 8 heads of 128 in F16; q in F32, out in int8 with 8 bytes per 32.
        attention = roofline.cost(self.work(1, "attention"))
        self.assertEqual(attention.bytes, 16 * 4096 * 2 * 8 * 128 * 2 + 16 * 4096 * (4 + 1 + 8 / 32))
        self.assertEqual(attention.f32_ops, 16 * 4096 * 32 * 128 * 2 * 2)
        # In int8: 64 sequences, a byte per element and 2 of scale per token and head; as much is written per token.
        self.assertEqual(roofline.cost(self.work(4, "attention")).bytes,
                         64 * 4096 * 2 * 8 * (128 + 2) + 64 * 4096 * (4 + 1 + 8 / 32))
        self.assertEqual(roofline.cost(self.work(4, "rope and store")).bytes,
                         64 * (4096 * 8 + 8 * 128 * (8 + 4) + 2 * 8 * (128 + 2) + 128 * 4))
        # Each of 2,048 rows sees itself and those before it.
        self.assertEqual(roofline.cost(self.work(3, "attention")).f32_ops, 2048 * 2049 / 2 * 32 * 128 * 2 * 2)
        # 4.625 bits a weight; a float multiplication and two multiply-adds per 32 columns.
        down = roofline.cost(self.work(3, "down"))
        self.assertEqual(down.int8_ops, 2 * 2048 * 4096 * 14336)
        self.assertEqual(down.f32_ops, 2 * 3 * 2048 * 4096 * 14336 / 32)
        self.assertEqual(down.bytes, 4096 * 14336 * 4.625 / 8 + 2048 * (14336 * 1.25 + 4096 * 8))
        self.assertEqual(down.limit(self.H100), "f")
        self.assertEqual(down.seconds(self.H100), down.f32_ops / 67e12)
        unpack = roofline.cost(roofline.unpack_cases(roofline.MODELS[0])[2].work)
        self.assertEqual(unpack.bytes, 4096 * 14336 * (4.625 / 8 + 2))
        self.assertEqual(unpack.limit(self.H100), "m")
        # 64 blocks of 128 KiB in each of 32 layers, read and written; in pages of 16 tokens 32 runs each.
        _, whole, pages, checked = (roofline.cost(case.work)
                                    for case in roofline.move_cases(roofline.MODELS[0], roofline.MOVES))
        self.assertEqual(whole.bytes, 64 * 32 * (2 * 131072 + 24 + 12))
        self.assertEqual(pages.bytes, 64 * 32 * (2 * 131072 + 32 * 24 + 12))
        self.assertEqual(checked.bytes, 64 * 32 * (131072 + 24 + 12))
        self.assertEqual(whole.limit(self.H100), "m")
        # 32 tokens in 32 layers, 8 heads: K and V of 128 F16, and of int8 a scale each.
        int8 = roofline.cost(roofline.code_cases(roofline.MODELS[0])[0].work)
        self.assertEqual(int8.bytes, 32 * 32 * 8 * 2 * (256 + 130))

    def test_verdicts_on_times(self):
        work = self.work(0, "gate and up")
        least = roofline.cost(work).seconds(self.H100)
        counted = roofline.weights_bytes(work)
        for seconds, weights, want in ((least / 0.7, counted, None), (least / 0.05, counted, "less than 7% of what"),
                                       (least / 2, counted, "is less than the 20 us that it must take"),
                                       (least / 0.7, 0, "reads 0 bytes of weights")):
            row = verdicts.judge(work, {"seconds": seconds, "weights_bytes": weights}, self.H100)
            self.assertAlmostEqual(row["share"], least / seconds)
            if want is None:
                self.assertIsNone(row["fault"])
            else:
                self.assertIn(want, row["fault"])
            if weights == counted:
                self.assertIsNone(verdicts.judge(work, {"seconds": seconds, "weights_bytes": weights}, None)["fault"])
        # A launch costs more than such a call.
        norm = verdicts.judge(self.work(0, "norm"), {"seconds": 3e-6, "weights_bytes": 0}, self.H100)
        self.assertLess(norm["share"], 0.01)
        self.assertIsNone(norm["fault"])

    def test_answers_are_compared_whole(self):
        cpu = {"tokens": [1, 2], "text": "ab", "logprobs": [{"logprob": -0.5}, {"logprob": -1.5}], "ttft_ms": 1}
        gpu = {**copy.deepcopy(cpu), "ttft_ms": 2}

        def difference(gpu):
            return verdicts.difference_of(cpu, gpu, "on the CPU", "on the GPU")

        self.assertIsNone(difference(gpu))
        gpu["tokens"][1] = 3
        self.assertEqual(difference(gpu), "token 1 is 2 on the CPU, 3 on the GPU")
        gpu = copy.deepcopy(cpu)
        gpu["logprobs"][0]["logprob"] = -0.25
        self.assertEqual(difference(gpu), "log-probability of token 0 is -0.5 on the CPU, -0.25 on the GPU")
        self.assertIn("text is 'ab' on the CPU", difference({**cpu, "text": "a"}))

    def test_how_far_answers_are_apart(self):
        def says(*tops):
            return {"logprobs": [{"token": next(iter(top)), "top": [{"token": t, "logprob": p} for t, p in top.items()]}
                                 for top in tops]}

        exact = says({1: -0.5, 2: -1.5}, {3: -0.25, 4: -2.0}, {5: -1.0})
        self.assertEqual(verdicts.distance_of(exact, exact), (0.0, 5))
        self.assertEqual(verdicts.distance_of(exact, says({1: -0.75, 9: -1.5}, {3: -0.25}, {5: -1.0})), (0.25, 3))
        # The third token comes after others here.
        self.assertEqual(verdicts.distance_of(exact, says({1: -0.5}, {4: -0.5, 3: -1.0}, {5: -9.0})), (1.5, 3))
        self.assertEqual(verdicts.distance_of(exact, says({7: -0.5})), (0.0, 0))

    def test_every_test_for_a_gpu_is_run(self):
        made = re.findall(r"penstock_gpu_test\((\w+) ([^)]*)\)",
                          (ROOT / "kernels/CMakeLists.txt").read_text(encoding="utf-8"))
        self.assertEqual({f"kernels/{name}" for name, how in made if "EMULATED" not in how},
                         set(acceptance.KERNEL_TESTS))


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main(verbosity=2)
