#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Is this build right on this machine's GPU, and how fast: everything that can only be known where there is one.

    deploy/gpu-acceptance.sh [--build DIR] [--model MODEL] [--cuda-plugin FILE] [--json FILE]
                             [--minutes N] [--step-seconds S]

Of the first GPU that CUDA_VISIBLE_DEVICES shows: what penstock doctor says of it; each kernel against its
specification, and the engine against the CPU's, bit by bit; rates of memory and of the host's link; each kernel
at the shapes of Llama 3 against deploy/gpu/ROOFLINE.md; a model's tokens and log-probabilities beside the CPU's,
and its rates; what numerics fast make of all this, where there is cuBLASLt; a cluster of two workers, on two GPUs
where there are two, whose KV then goes over NCCL; and the kernels under compute-sanitizer where that is installed.

It needs the build folder (`cmake --build build` and `--target penstock_gpu_programs`), the shared libraries that
its programs want (LD_LIBRARY_PATH, if they lie elsewhere) and python3. Each step has a deadline. A stand-in for
a GPU (kernels/libpenstock_cuda_emulated.so) is tried too, at small sizes, and called so.

Exits with 0 when no step failed, 1 when one did, 2 when it cannot begin, 77 where there is no GPU.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile

import roofline
from report import Failed, NoGpu, Report, Skipped, Stopped
from verdicts import difference_of, distance_of, judge, percent

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GPU_PROGRAMS = "`cmake --build build --target penstock_gpu_programs` makes it"
# In the build folder; with _gpu behind where they are for a GPU, and as they are for a stand-in.
KERNEL_TESTS = ("kernels/gpu_cuda_test", "kernels/rows_cuda_test", "kernels/linear_cuda_test",
                "kernels/kv_rows_cuda_test", "kernels/attention_cuda_test", "kernels/units_cuda_test",
                "kernels/sampling_cuda_test", "kernels/kv_encoding_cuda_test",
                "kernels/kv_split_cuda_test", "kernels/unpack_cuda_test")
BITS_TEST = {False: "cuda_bits_test_gpu", True: "tests/cuda_bits_test"}

COPY_FLOOR = 0.5  # Of device memory.
LINK_FLOOR = 0.2  # A virtual machine may have half of the lanes.
# Between fast and exact log-probabilities: far above what 16 bits of an activation change, far below what a wrong
# matrix does.
NATS_MAX = 0.5

PROMPTS = {"greedy": (["--temperature", 0], "The mill stands where the river bends."),
           "sampled": (["--temperature", 1.0, "--top-k", 0, "--top-p", 1], "Once upon a time"),
           "long": (["--temperature", 0.7], "A penstock carries water down to the turbine. ")}


class Acceptance:
    def __init__(self, args):
        self.args = args
        self.build = pathlib.Path(args.build).resolve()
        self.plugin = pathlib.Path(args.cuda_plugin).resolve() if args.cuda_plugin else None
        self.report = Report(args.minutes, args.step_seconds, ROOT)
        self.stand_in, self.gpu_name, self.gpu = False, "", None
        self.model = None  # The file.
        self.gpus, self.nccl = 0, False  # How many can be used, and whether there is NCCL.
        self.lt = None  # What doctor says of cuBLASLt, where there is one.
        self.alone = {}  # What the engine alone says to each prompt: flags and answer.
        self.threads = str(min(8, os.cpu_count() or 1))

    def on_gpu(self):
        plugin = self.plugin or self.build / "libpenstock_cuda.so"
        return ["--cuda-plugin", str(plugin)]

    def program(self, path, how="`cmake --build build` makes it"):
        file = self.build / path
        if not file.is_file():
            raise Failed(f"there is no {file}: {how}")
        return file

    # ---- Steps. Each takes a report.Step and returns a note.

    def doctor(self, step):
        argv = [self.program("penstock"), "doctor"] + (["--cuda-plugin", self.plugin] if self.plugin else [])
        doctor = step.run(argv).out
        self.gpus = len(re.findall(r"(?m)^ok +GPU \d+: .+, what --device ", doctor))
        self.nccl = re.search(r"(?m)^ok +NCCL: \d", doctor) is not None
        lt = re.search(r"(?m)^ok +(cuBLASLt: \d[^,]*)", doctor)
        self.lt = lt and lt.group(1)
        said = [line for line in doctor.splitlines() if re.match(r"\w+ +(CUDA|GPU)\b", line)]
        found = next((m for m in (re.match(r"ok +GPU 0: (.+), compute ([\d.]+), (.+ GiB)", x) for x in said) if m), None)
        if not found:
            why = re.sub(r"^\w+ +", "", said[-1]) if said else "penstock doctor says nothing of a GPU"
            if not said or not said[-1].startswith("ok"):
                raise Failed(why)
            raise NoGpu(why)
        self.gpu_name = found.group(1)
        self.stand_in = self.gpu_name.startswith("stand-in")
        self.gpu = None if self.stand_in else roofline.find_gpu(self.gpu_name)
        self.report.about.update(gpu=self.gpu_name, compute=found.group(2), stand_in=self.stand_in,
                                 peaks=self.gpu.name if self.gpu else None)
        cuda = next((re.sub(r"^ok +CUDA: ", "", line) for line in said if re.match(r"ok +CUDA: ", line)), "")
        return f"{self.gpu_name}, compute {found.group(2)}, {found.group(3)}; {cuda}"

    def test(self, step, path):
        """A GoogleTest program."""
        program = self.program(path, "`cmake --build build` makes it" if self.stand_in else GPU_PROGRAMS)
        done = step.run([program])
        if done.code == 77:
            raise Failed(f"it found no GPU: {done.last_line()}")
        failed = re.findall(r"^\[  FAILED  \] ([\w/.]+)(?=[ ,]|$)", done.out, re.MULTILINE)
        if done.code != 0:
            names = ", ".join(dict.fromkeys(failed))
            raise Failed(f"{done.how()}: {names[:300] or done.last_line()}")
        passed = re.search(r"^\[  PASSED  \] (\d+) tests?\.", done.out, re.MULTILINE)
        if not passed or passed.group(1) == "0":
            raise Failed("it ran no test")
        return f"{passed.group(1)} tests"

    def bits(self, step):
        if not self.stand_in and not (ROOT / "tests/golden/tiny").is_dir():
            raise Skipped(f"there are no models in {ROOT}/tests/golden/tiny")
        return self.test(step, BITS_TEST[self.stand_in])

    def bench(self, step, works, numerics="exact"):
        """Seconds of each, by name, as far as they came; and what went wrong, or None."""
        argv = [self.program("bench/gpu_bench"), *self.on_gpu(), "--numerics", numerics]
        if self.stand_in:
            argv += ["--samples", "1", "--sample-ms", "0", "--round-mib", "1"]
        fault = None
        try:
            done = step.run(argv, json.dumps(works))
            said = done.out
            if done.code != 0:
                fault = f"gpu_bench: {done.how()}: {done.last_line()}"
        except Failed as late:
            said, fault = step.heard, str(late)
        times = {}
        for line in said.splitlines():
            try:
                measured = json.loads(line)
            except ValueError:
                break  # Cut off in the middle.
            if "name" in measured:  # The first is about the GPU.
                times[measured["name"]] = measured
        missing = [work["name"] for work in works if work["name"] not in times]
        if missing and not fault:
            fault = "gpu_bench ended without a time"
        if missing:
            fault += f" (at {missing[0]})"
        return times, fault

    def bandwidth(self, step):
        size = 1 << 20 if self.stand_in else 256 << 20
        memory = self.gpu.memory_bytes_per_s if self.gpu else None
        link = self.gpu.host_bytes_per_s if self.gpu else None
        ways = [  # Name, from, to, bytes moved per byte, peak, least share of it.
            ("GPU to itself, read and write", "device", "device", 2, memory, COPY_FLOOR),
            ("host to GPU, pinned", "pinned", "device", 1, link, LINK_FLOOR),
            ("GPU to host, pinned", "device", "pinned", 1, link, LINK_FLOOR),
            ("both ways at once, pinned", None, None, 2, link and 2 * link, LINK_FLOOR),
            ("host to GPU, pageable", "pageable", "device", 1, link, 0),
            ("GPU to host, pageable", "device", "pageable", 1, link, 0)]
        works = [{"name": name, "kernel": "copy", "from": source, "to": to, "bytes": size} if source else
                 {"name": name, "kernel": "copy_both", "bytes": size} for name, source, to, *_ in ways]
        times, fault = self.bench(step, works)
        rows, slow = [], []
        for name, _, _, moved, peak, floor in ways:
            if name not in times:
                continue
            rate = moved * size / times[name]["seconds"]
            share = rate / peak if peak else None
            rows.append({"way": name, "bytes_per_s": rate, "share": share})
            if share is not None and share < floor:
                slow.append(f"{name}: {rate / 1e9:.1f} GB/s, less than {floor:.0%} of {peak / 1e9:.0f}")
        self.report.table("bandwidth", rows, [("bandwidth", lambda r: r["way"]),
                                              ("GB/s", lambda r: f"{r['bytes_per_s'] / 1e9:.1f}"),
                                              ("of peak", lambda r: percent(r["share"]))])
        if fault or slow:
            raise Failed("; ".join(([fault] if fault else []) + slow))
        return self.peaks_note()

    def kernels(self, step, model, loads, moves):
        """Times of a model's kernels beside the least they can be."""
        cases = [case for load in loads for case in roofline.cases(model, load)] + roofline.move_cases(model, moves)
        cases += roofline.code_cases(model) + roofline.unpack_cases(model)
        times, fault = self.bench(step, [case.work for case in cases])
        rows, faults = [], [fault] if fault else []
        for case in cases:
            name = case.work["name"]
            if name not in times:
                continue
            row = judge(case.work, times[name], self.gpu)
            rows.append(row)
            if row["fault"]:
                faults.append(f"{name}: {row['fault']}")
        self.report.table("kernels", rows, [
            ("kernel", lambda r: r["name"]), ("us", lambda r: f"{r['seconds'] * 1e6:.1f}"),
            ("at least", lambda r: "-" if r["least_seconds"] is None else f"{r['least_seconds'] * 1e6:.2f}"),
            ("share", lambda r: percent(r["share"])), ("by", lambda r: r["limit"] or "-"),
            ("GB/s", lambda r: f"{r['bytes'] / r['seconds'] / 1e9:.0f}"),
            ("int8 TOP/s", lambda r: f"{r['int8_ops'] / r['seconds'] / 1e12:.1f}"),
            ("TFLOP/s", lambda r: f"{r['f32_ops'] / r['seconds'] / 1e12:.2f}")])
        if faults:
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise Failed("; ".join(faults[:3]) + more)
        return f"{len(rows)} calls; {self.peaks_note()}"

    def products(self, step, model, load):
        """What numerics fast makes of a prompt's kernels, beside the exact ones."""
        if not self.lt:
            raise Skipped("there is no cuBLASLt")
        works = [case.work for case in roofline.cases(model, load)
                 if case.work["kernel"] in ("linear", "gated", "attention") and case.work["rows"] > 1]
        exact, fault = self.bench(step, works)
        fast = {}
        if not fault:
            fast, fault = self.bench(step, works, "fast")
        rows = [{"name": name, "exact_seconds": exact[name]["seconds"], "fast_seconds": fast[name]["seconds"]}
                for name in fast]
        self.report.table("products", rows, [
            ("kernel", lambda r: r["name"]), ("exact, us", lambda r: f"{r['exact_seconds'] * 1e6:.1f}"),
            ("fast, us", lambda r: f"{r['fast_seconds'] * 1e6:.1f}"),
            ("exact / fast", lambda r: f"{r['exact_seconds'] / r['fast_seconds']:.2f}")])
        if fault:
            raise Failed(fault)
        return self.lt

    def peaks_note(self):
        if self.stand_in:
            return "a stand-in: its times mean nothing"
        return f"peaks of {self.gpu.name}" if self.gpu else f"no peaks of {self.gpu_name} are known: rates alone"

    def find_model(self, step):
        done = step.run([self.program("penstock"), "inspect"] + [self.args.model or "smollm2"])
        found = re.search(r"^file +(.+?)(?: \([^()]*\))?$", done.out, re.MULTILINE)
        if done.code != 0 or not found:
            if self.args.model:
                raise Failed(done.last_line())
            raise Skipped(f"no model is at hand; `{self.build}/penstock model get smollm2` fetches one")
        self.model = found.group(1)
        return self.model

    def answers(self, step):
        """Tokens and log-probabilities, to the last bit."""
        tokens = 12 if self.stand_in else 64
        for name, (flags, prompt) in PROMPTS.items():
            prompt *= (2 if self.stand_in else 60) if name == "long" else 1
            argv = ["--raw", "--seed", 3, "--ignore-eos", "--json", "--logprobs", 5, "--max-tokens", tokens, *flags,
                    prompt]
            said = []
            for device in (["--device", "cpu"], ["--device", "cuda", *self.on_gpu()]):
                done = step.need([self.program("penstock"), "generate", "--model", self.model, "--threads", self.threads,
                                  *device, *argv])
                said.append(json.loads(done.out))
            if difference := difference_of(*said, "on the CPU", "on the GPU"):
                raise Failed(f"{name} prompt: {difference}")
            self.alone[name] = argv, said[1]
        return f"{len(PROMPTS)} prompts, {tokens} tokens each: the same bits"

    def near(self, step):
        """Answers of numerics fast, which need not be the same."""
        if not self.lt:
            raise Skipped("there is no cuBLASLt")
        notes = []
        for name, (argv, exact) in self.alone.items():
            if name == "sampled":
                continue  # Its tokens part soon, and it says nothing that the others do not.
            done = step.need([self.program("penstock"), "generate", "--model", self.model, "--threads", self.threads,
                              "--device", "cuda", *self.on_gpu(), "--numerics", "fast", *argv])
            apart, compared = distance_of(exact, json.loads(done.out))
            if compared == 0 or not apart <= NATS_MAX:
                raise Failed(f"{name} prompt: {compared} log-probabilities are up to {apart:.3g} nats from the exact "
                             f"ones, at most {NATS_MAX:g} may be")
            notes.append(f"{name} prompt {apart:.2g}")
        return f"nats from the exact: {', '.join(notes)}; {self.attends(step)}"

    def attends(self, step):
        """What doctor says of a prompt's attention in numerics fast."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="penstock-", encoding="utf-8") as file:
            file.write(f"model: {json.dumps(str(self.model))}\n"
                       "prefill: {device: cuda, numerics: fast}\ndecode: {device: cuda, numerics: fast}\n")
            file.flush()
            plugin = ["--cuda-plugin", self.plugin] if self.plugin else []
            said = step.run([self.program("penstock"), "doctor", file.name, *plugin])
        found = re.search(r"(?m)^\w+ +\S+: (prefill attention .*)$", said.out)
        if not found:
            raise Failed(f"doctor says nothing of prefill attention: {said.how()}: {said.last_line()}")
        return found.group(1)

    def cluster(self, step):
        """A prefill and a decode worker answer as the engine alone does. On two GPUs KV goes over NCCL."""
        kind, why = ("nccl", "") if self.gpus > 1 and self.nccl else ("shm", ", through the host: there is one GPU")
        if self.gpus > 1 and not self.nccl:
            why = ", through the host: there is no NCCL"
        limits = f"threads: {self.threads}, context_tokens: {512 if self.stand_in else 4096}, sequences: 4"
        decode = "cuda:1" if self.gpus > 1 else "cuda"
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            file, ready, figures = (os.path.join(folder, name) for name in ("cluster.yaml", "ready.json", "trace.json"))
            with open(file, "w", encoding="utf-8") as text:
                text.write(f"model: {json.dumps(str(self.model))}\npolicy: round-robin\n"
                           f"prefill: {{device: cuda, {limits}}}\ndecode: {{device: '{decode}', {limits}}}\n")
            up = [self.program("penstock"), "up", file, *self.on_gpu(), "--until-eof", "--ready-file", ready]
            with step.beside(up, ready) as said:
                server = ["--server", json.loads(said)["grpc"]]
                for name, (argv, alone) in self.alone.items():
                    done = step.need([self.program("penstock"), "generate", *server, *argv])
                    if difference := difference_of(alone, json.loads(done.out), "alone", "in the cluster", False):
                        raise Failed(f"{name} prompt: {difference}")
                step.need([self.program("penstock"), "trace", *server, "--json", figures])
            with open(figures, encoding="utf-8") as text:
                pairs = json.load(text)["pairs"]
        self.report.table("transfers", pairs, [("transfers", lambda p: f"{p['prefill']} -> {p['decode']}"),
                                               ("by", lambda p: p["transport"]),
                                               ("bytes", lambda p: f"{p['bytes']:,}"),
                                               ("a layer's read, us", lambda p: f"{p['wire']['p50'] / 1e3:,.0f}"),
                                               ("handoff, ms", lambda p: f"{p['whole']['p50'] / 1e6:,.1f}")])
        if [pair["transport"] for pair in pairs] != [kind]:
            raise Failed(f"KV went by {', '.join(pair['transport'] for pair in pairs) or 'nothing'}, not by {kind}")
        return f"KV by {kind}{why}: the same bits"

    def rates(self, step):
        """Of the engine alone, without a cluster."""
        bench = self.program("bench/engine_bench")
        common = ["--model", self.model, "--device", "cuda", *self.on_gpu(), "--threads", self.threads]
        rows = []
        try:
            for numerics in ("exact", "fast") if self.lt else ("exact",):
                done = step.need([bench, "prefill", *common, "--numerics", numerics, "--tokens",
                                  9 if self.stand_in else 1024])
                said = json.loads(done.out)
                rows.append({"what": f"prefill, {said['tokens']:.0f} tokens, {numerics}", "streams": 1,
                             "tokens_per_s": said["tokens_per_s"]})
            sizes = ["--context", 4, "--tokens", 2] if self.stand_in else ["--context", 128, "--tokens", 64]
            for streams in (1, 2) if self.stand_in else (1, 16, 64):
                done = step.need([bench, "decode", *common, *sizes, "--streams", streams])
                rows.append({"what": "decode", "streams": streams,
                             "tokens_per_s": json.loads(done.out)["tokens_per_s"]})
        finally:
            self.report.table("rates", rows, [("rates", lambda r: r["what"]),
                                              ("streams", lambda r: str(r["streams"])),
                                              ("tokens/s", lambda r: f"{r['tokens_per_s']:,.0f}")])
        return self.peaks_note() if self.stand_in else os.path.basename(self.model)

    def sanitizer(self, step, path):
        """The program has passed by itself: one that is not through in time is slow."""
        if self.stand_in:
            raise Skipped("a stand-in")
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if not tool:
            raise Skipped("compute-sanitizer is not installed")
        try:
            done = step.run([tool, "--tool", "memcheck", "--error-exitcode", 9, "--print-limit", 5,
                             self.program(path, GPU_PROGRAMS)])
        except Failed as late:
            raise Skipped(f"{late}; it is slow, and --minutes gives it more") from late
        if done.code != 0:
            errors = [line for line in done.out.splitlines() if line.startswith("=========")]
            raise Failed(f"{done.how()}: {' '.join(errors[:4])[:300] or done.last_line()}")
        return "memcheck: no errors"

    # ---- All of it.

    def run(self):
        report = self.report
        if not report.step("doctor", 60, self.doctor):
            return
        if self.stand_in:
            print("\nSTAND-IN: kernels run emulated on the CPU; nothing below is said of a GPU.\n")
        tests = [path if self.stand_in else path + "_gpu" for path in KERNEL_TESTS]
        good = [path for path in tests if report.step(path, 180, lambda step, path=path: self.test(step, path))]
        report.step("the engine's bits", 240, self.bits)
        report.step("bandwidth", 60, self.bandwidth)
        models, loads, moves, prompt = roofline.MODELS, roofline.LOADS, roofline.MOVES, roofline.PROMPT
        if self.stand_in:
            models, loads, moves = roofline.TINY_MODELS, roofline.TINY_LOADS, roofline.TINY_MOVES
            prompt = roofline.TINY_PROMPT
        for model in models:
            report.step(f"kernels, {model.name}", 120, lambda step, model=model: self.kernels(step, model, loads, moves))
        report.step(f"numerics fast, {models[0].name}", 60, lambda step: self.products(step, models[0], prompt))
        if report.step("model", 30, self.find_model):
            report.step("answers are the CPU's", 180, self.answers)
            if self.alone:
                report.step("answers of numerics fast", 120, self.near)
                report.step("a cluster", 120, self.cluster)
            report.step("rates", 180, self.rates)
        for path in good:
            report.step(f"memcheck {path}", 90, lambda step, path=path: self.sanitizer(step, path), optional=True)


def parse(argv):
    parser = argparse.ArgumentParser(prog="gpu-acceptance.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=ROOT / "build", help="where the programs are (default: build)")
    parser.add_argument("--model", help="as of penstock (default: smollm2, where it was fetched)")
    parser.add_argument("--cuda-plugin", metavar="FILE", help="default: libpenstock_cuda.so in the build folder")
    parser.add_argument("--json", metavar="FILE", help="writes the report there, too")
    parser.add_argument("--minutes", type=float, default=10, help="for everything (default: 10)")
    parser.add_argument("--step-seconds", type=float, default=240, metavar="S",
                        help="for each step, which may take less by itself (default: 240)")
    args = parser.parse_args(argv)
    for flag, value in ("--minutes", args.minutes), ("--step-seconds", args.step_seconds):
        if not 0 < value < 1e6:
            parser.error(f"{flag} must be above 0 and below 1e6, got {value:g}")
    if not (pathlib.Path(args.build) / "penstock").is_file():
        parser.error(f"there is no program {args.build}/penstock: build first, or name --build")
    if args.json and not pathlib.Path(args.json).resolve().parent.is_dir():
        parser.error(f"there is no folder for {args.json}")
    if args.model and os.path.exists(args.model):
        args.model = str(pathlib.Path(args.model).resolve())  # Programs run in the repository's folder.
    return args


def main(argv):
    args = parse(argv)
    acceptance = Acceptance(args)
    report = acceptance.report
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, report.stop)
    try:
        acceptance.run()
        code = 1 if report.count("failed") else 0
    except NoGpu as why:
        print(f"skipped: no GPU: {why}")
        report.about["no_gpu"] = str(why)
        code = 77
    except Stopped:
        print("interrupted")
        code = 130
    if args.json:
        report.write(args.json)
    print(f"{report.summary()}{' (of a STAND-IN, not of a GPU)' if acceptance.stand_in else ''}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
