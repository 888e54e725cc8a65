#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the tests of GPU kernels would miss a barrier, a wait, an atomic or a mask: takes each out of the
kernels in turn, and sees a test fail.

    tests/gpu_mutants.py BUILD [--only PATTERN] [--list]    BUILD: a release build folder, in which
                                                            x_cuda_test and x_cuda_test_race are built

Prints a row per mutant; exits with 1 when one was missed. Per mutant the program that checks for races
runs, then, when that saw nothing, the plain one. Takes minutes to hours: each mutant is compiled.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPS = ["rows", "linear", "kv_rows", "kv_encoding", "kv_split", "units", "attention", "sampling"]
CPU_SECONDS_MAX = 120  # Of one run: what loops for ever has failed. The wall's clock knows other load.
WALL_SECONDS_MAX = 3600

# What is taken out, and what stands in its place: (what it is, pattern, replacement).
MUTATIONS = [
    ("no barrier", r"gpu::SyncThreads\(\);", ";"),
    ("no warp barrier", r"gpu::SyncWarp\([^()]*\);", ";"),
    ("no wait", r"gpu::CopyAsyncWait<[^<>]*>\(\);", ";"),
    ("short wait", r"gpu::CopyAsyncWait<([^<>]*)>\(\);", r"gpu::CopyAsyncWait<(\1) + 1>();"),
    ("no commit", r"gpu::CopyAsyncCommit\(\);", ";"),
    ("no atomic", r"gpu::AtomicXor\(([^(),]*), ([^(),]*)\);", r"*(\1) ^= \2;"),
    ("no atomic", r"gpu::AtomicAdd(?:64)?\(([^(),]*), ([^(),]*)\);", r"*(\1) += \2;"),
    ("no guard", r"if \([^;{}]*\) (gpu::CopyAsync16\()", r"\1"),
]

# Mutants that change nothing that could be seen, as (file, what, text of the line), and why.
HARMLESS = {
    ("kernels/attention_cuda_parts.h", "no mask", "gpu::CopyAsync16(to, from, live);"):
        "a key that nobody sees becomes a copy of one that is seen, and no row takes part of it",
    ("kernels/linear_float_few_cuda.cu", "no wait", "gpu::CopyAsyncWait<0>();"):
        "groups without a copy are all that is left",
    ("kernels/linear_float_few_cuda.cu", "short wait", "gpu::CopyAsyncWait<0>();"):
        "groups without a copy are all that is left",
    ("kernels/linear_many_cuda.cu", "no warp barrier",
     "if (kInHalves<format> || (panels > 1 && pair % 4 == 0)) gpu::SyncWarp();"):
        "it orders what the compiler makes, no memory",
    ("kernels/linear_many_cuda.cu", "no mask",
     "if (at < size) gpu::CopyAsync16(to + at, at < bytes ? from + at : from, at < bytes);"):
        "a panel that the matrix has not has outputs that nobody keeps",
    ("kernels/linear_many_cuda.cu", "no mask",
     "if (at < kLevelsAt<format>) gpu::CopyAsync16(to + at, group + skip + at, live);"):
        "a panel that the matrix has not has outputs that nobody keeps",
}


class Mutant:
    """The file at `path` with text[begin:end] replaced."""

    def __init__(self, path, what, text, begin, end, replacement):
        self.path, self.what = path, what
        self.line = text.count("\n", 0, begin) + 1
        self.source = text.split("\n")[self.line - 1].strip()
        self.text = text[:begin] + replacement + text[end:]

    @property
    def name(self):
        return f"{self.path}:{self.line} {self.what}"


def masks(text):
    """Begin and end of the third argument of each gpu::CopyAsync16 that has one."""
    for match in re.finditer(r"gpu::CopyAsync16\(", text):
        depth, commas, at = 1, [], match.end()
        while depth > 0:
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
            if depth == 1 and text[at] == ",":
                commas.append(at + 1)
            at += 1
        if len(commas) == 2:
            yield commas[1], at - 1


def sources_of(op):
    """The kernel files of an op's library and their headers, as paths in the tree."""
    kernels = ROOT / "kernels"
    return [path.relative_to(ROOT) for pattern in (f"{op}_cuda*", f"{op}_*_cuda*")
            for path in sorted(kernels.glob(pattern))
            if path.suffix in (".cu", ".h") and "testing" not in path.name]


def compiled_with(op, path):
    """The kernel files to compile when `path` changes."""
    if path.suffix == ".cu":
        return [path]
    return [other for other in sources_of(op)
            if other.suffix == ".cu" and f'"{path}"' in (ROOT / other).read_text()]


def mutants_of(op):
    found = []
    for path in sources_of(op):
        text = (ROOT / path).read_text()
        for what, pattern, replacement in MUTATIONS:
            found += [Mutant(path, what, text, *match.span(), match.expand(replacement))
                      for match in re.finditer(pattern, text)]
        found += [Mutant(path, "no mask", text, *span, " true") for span in masks(text)]
    return sorted(found, key=lambda mutant: (str(mutant.path), mutant.line))


class Build:
    """Compiles a kernel file and links a test program as the build folder does."""

    def __init__(self, folder):
        self.folder = folder
        entries = json.loads((folder / "compile_commands.json").read_text())
        self.compile = {words[words.index("-o") + 1]: words
                        for words in (shlex.split(entry["command"]) for entry in entries)}
        self.link = {}

    def command(self, op, path, kind):
        """The compiler's command for a kernel file in library <op>_cuda_<kind>."""
        output = f"kernels/CMakeFiles/{op}_cuda_{kind}.dir/simt/{path.stem}.cc.o"
        if output not in self.compile:
            sys.exit(f"{self.folder} does not build {output}")
        return self.compile[output]

    def link_command(self, program):
        if program not in self.link:
            lines = subprocess.run(["ninja", "-t", "commands", program], cwd=self.folder, check=True,
                                   capture_output=True, text=True).stdout.strip().split("\n")
            words = shlex.split(lines[-1])
            if "&&" in words:  # `: && command && :`
                words = words[words.index("&&") + 1:]
                words = words[:words.index("&&")]
            self.link[program] = words
        return self.link[program]

    def make(self, op, mutant, kind, program, folder):
        """Builds `program` with the mutant in place; None, or what the compiler said."""
        changed = folder / mutant.path
        changed.parent.mkdir(parents=True, exist_ok=True)
        changed.write_text(mutant.text)
        objects = []
        for path in compiled_with(op, mutant.path):
            source = changed if path == mutant.path else ROOT / path
            objects.append(str(folder / f"{path.stem}.o"))
            words = [word for word in self.command(op, path, kind) if not word.endswith("ccache")]
            words = words[:words.index("-MD")] if "-MD" in words else words[:words.index("-o")]
            words[1:1] = [f"-I{folder}"]
            words += ["-w", "-O1", "-g0", "-x", "c++", "-c", str(source), "-o", objects[-1]]
            done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return done.stderr
        words = list(self.link_command(f"kernels/{program}"))
        words[words.index("-o") + 1] = str(folder / program)
        first_library = next(i for i, word in enumerate(words) if word.endswith(".a"))
        words[first_library:first_library] = objects  # Their symbols are there before the library's.
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode != 0 else None


def fails(program):
    """Whether the test program fails, or does not end."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_MAX, CPU_SECONDS_MAX))
    try:
        return subprocess.run([program, "--gtest_fail_fast", "--gtest_brief=1"], capture_output=True,
                              timeout=WALL_SECONDS_MAX, preexec_fn=limit, check=False).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def judge(build, op, mutant):
    """Returns how the mutant was found: "race check", "plain run", "" (missed), or "not compiled: ..."."""
    for kind, program, how in (("race", f"{op}_cuda_test_race", "race check"),
                               ("simt", f"{op}_cuda_test", "plain run")):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            error = build.make(op, mutant, kind, program, folder)
            if error is not None:
                return "not compiled: " + error.strip().split("\n")[0]
            if fails(str(folder / program)):
                return how
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--only", default="", help="mutants whose name has this pattern")
    parser.add_argument("--list", action="store_true", help="say what would be taken out")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    mutants = [(op, mutant) for op in OPS for mutant in mutants_of(op)]
    if stale := set(HARMLESS) - {(str(m.path), m.what, m.source) for _, m in mutants}:
        sys.exit("\n".join(f"HARMLESS names what no kernel has: {path} {what}: {source}"
                           for path, what, source in sorted(stale)))
    chosen = [(op, mutant) for op, mutant in mutants if re.search(options.only, mutant.name)]
    if options.list:
        for _, mutant in chosen:
            print(f"{mutant.name}: {mutant.source}")
        return 0
    build = Build(options.build.resolve())
    for op in sorted({op for op, _ in chosen}):
        for program in (f"{op}_cuda_test", f"{op}_cuda_test_race"):
            if fails(str(build.folder / "kernels" / program)):
                sys.exit(f"{program} fails or is not built without any mutant")

    def one(item):
        start = time.monotonic()
        return item, judge(build, *item), time.monotonic() - start

    counts = {"found": 0, "harmless": 0, "missed": 0}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for (_, mutant), how, seconds in pool.map(one, chosen):
            excuse = HARMLESS.get((str(mutant.path), mutant.what, mutant.source))
            if how.startswith("not compiled"):
                kind = "missed"
            elif how:
                kind, how = "found", "found by the " + how
            elif excuse:
                kind, how = "harmless", "harmless: " + excuse
            else:
                kind, how = "missed", "MISSED"
            counts[kind] += 1
            print(f"{mutant.name:64} {how:24} {seconds:4.0f} s", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return 1 if counts["missed"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
