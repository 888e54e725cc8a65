#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Installs the programs that Penstock is measured against, in .cache/peers.

    ./dev bench peers        installs what is missing (some minutes the first time) and prints where it is

- llama.cpp, built for this machine's CPU from the source package of llama-cpp-python;
- OpenVINO GenAI, from its wheel, in a virtual environment of its own;
- NIXL (of NVIDIA) and Mooncake's transfer engine, from their wheels;
- numpy and gguf, which the float64 reference implementations need.

Versions are pinned here. Each part lies in a folder named after its version and is made once: a file
`complete` says that it is whole. Progress goes to stderr. Standard library only.
"""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "peers"

LLAMA_CPP_PYTHON = "0.3.36"
OPENVINO_GENAI = "2026.4.1.0"
# What moves bytes: the packages of each, with all that they need to do that alone.
WALKERS = {"nixl": ["nixl-cu12==1.5.1", "numpy==2.4.6"],
           "mooncake": ["mooncake-transfer-engine-non-cuda==0.3.13.post1"]}
# What pip needs only to look at the metadata of the source package.
SCIKIT_BUILD_CORE = "1.1.2"
REFERENCE_PACKAGES = ["numpy==2.4.6", "gguf==0.19.0"]
LLAMA_TOOLS = ["llama-bench", "llama-batched-bench"]


class PeerError(Exception):
    """A peer could not be installed; the message says what to do."""


def say(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(command, log, what, cwd=None):
    """Runs `command`, its output in the file `log`; PeerError with the log's end when it fails."""
    with open(log, "ab") as out:
        status = subprocess.run([str(part) for part in command], stdout=out, stderr=out, cwd=cwd,
                                stdin=subprocess.DEVNULL, check=False).returncode
    if status != 0:
        tail = "\n".join(pathlib.Path(log).read_text(errors="replace").splitlines()[-15:])
        raise PeerError(f"{what} failed with status {status}; the end of {log}:\n{tail}")


def require(program, package):
    path = shutil.which(program)
    if path is None:
        raise PeerError(f"{program} is missing: install Debian's package {package}")
    return path


def install_once(folder, make):
    """Calls make(folder) unless an earlier call got to its end. A half-made folder is made anew."""
    complete = folder / "complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # A second caller waits for the first one's work.
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


class Worker:
    """A process that answers each line on its stdin with a line on its stdout."""

    def __init__(self, command, name):
        self.name = name
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"{self.name} ended with status {self.process.wait()}")
        return line.strip()

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"{self.name} ended with status {self.process.wait()}") from None
        return self.read()

    def ask_probe(self, line):
        """The words after llama_probe's "ok"."""
        answer = self.ask(line)
        if not answer.startswith("ok"):
            raise PeerError(f"{self.name}, asked to {line!r}: {answer}")
        return answer.split()[1:]


MODELS = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3-270m": "gemma-3-270m-q4_k_m.gguf"}


def find_model(name):
    """The path of a model's file, fetched by our own program when it is not there."""
    path = ROOT / ".cache" / "models" / MODELS[name]
    if path.exists():
        return path
    penstock = ROOT / "build" / "penstock"
    if not penstock.exists():
        raise PeerError(f"{path} is missing, and so is {penstock} to fetch it: run ./dev build")
    say(f"fetching the model {name}")
    done = subprocess.run([penstock, "model", "get", name], stdout=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        raise PeerError(f"penstock model get {name} failed with status {done.returncode}")
    return pathlib.Path(done.stdout.strip().splitlines()[-1])


def engine_bench(arguments, program=None):
    """Runs our measuring program; the object it prints."""
    program = program or ROOT / "build" / "bench" / "engine_bench"
    if not pathlib.Path(program).exists():
        raise PeerError(f"{program} is missing: run ./dev build")
    done = subprocess.run([str(part) for part in [program, *arguments]], capture_output=True,
                          text=True, check=False)
    if done.returncode != 0:
        raise PeerError(f"{program} {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def make_venv(folder, packages, log):
    run([sys.executable, "-m", "venv", folder], log, "making a virtual environment")
    run([folder / "bin" / "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:",
         *packages], log, f"pip install {' '.join(packages)}")
    return folder / "bin" / "python3"


def make_llama_cpp(folder):
    log = folder / "log.txt"
    cmake, compiler = require("cmake", "cmake"), require("c++", "build-essential")
    require("ninja", "ninja-build")
    say(f"fetching the source of llama-cpp-python {LLAMA_CPP_PYTHON}")
    python = make_venv(folder / "venv", [f"scikit-build-core=={SCIKIT_BUILD_CORE}"], log)
    run([python, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--no-binary", ":all:", "--dest", folder,
         f"llama-cpp-python=={LLAMA_CPP_PYTHON}"], log, "pip download llama-cpp-python")
    archive = folder / f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz"
    run(["tar", "-xzf", archive, "-C", folder], log, f"unpacking {archive}")
    source = folder / f"llama_cpp_python-{LLAMA_CPP_PYTHON}" / "vendor" / "llama.cpp"
    say("building llama.cpp for this CPU (minutes)")
    run([cmake, "-S", source, "-B", folder / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
         "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
         "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_TOOLS=ON"],
        log, "configuring llama.cpp")
    run([cmake, "--build", folder / "build", "-j", str(os.cpu_count()), "--target", *LLAMA_TOOLS],
        log, "building llama.cpp")
    (folder / "source").symlink_to(source.relative_to(folder))
    archive.unlink()
    build_probe(folder, compiler, log)


def build_probe(folder, compiler, log):
    """Our program around libllama, linked with the very libraries that llama-bench is made of."""
    build, source = folder / "build", folder / "source"
    libraries = ["src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a",
                 "ggml/src/libggml-base.a"]
    run([compiler.replace("c++", "cc"), "-O2", "-std=gnu11", "-Wall", "-Wextra", "-c",
         ROOT / "bench" / "peer" / "llama_probe.c", "-I", source / "include",
         "-I", source / "ggml" / "include", "-o", folder / "llama_probe.o"], log, "compiling the probe")
    run([compiler, folder / "llama_probe.o", *[build / library for library in libraries],
         "-fopenmp", "-pthread", "-ldl", "-lm", "-o", folder / "llama_probe"], log, "linking the probe")


class LlamaCpp:
    """Where llama.cpp's programs are; installs them when they are not there."""

    def __init__(self):
        folder = install_once(CACHE / f"llama-cpp-python-{LLAMA_CPP_PYTHON}", make_llama_cpp)
        source, probe = ROOT / "bench" / "peer" / "llama_probe.c", folder / "llama_probe"
        if probe.stat().st_mtime < source.stat().st_mtime:
            build_probe(folder, require("c++", "build-essential"), folder / "log.txt")
        self.probe = probe
        self.bench = folder / "build" / "bin" / "llama-bench"
        self.batched_bench = folder / "build" / "bin" / "llama-batched-bench"


def openvino_python():
    """The Python that has openvino_genai."""

    def make(folder):
        say(f"installing openvino-genai {OPENVINO_GENAI}")
        make_venv(folder / "venv", [f"openvino-genai=={OPENVINO_GENAI}", "numpy"], folder / "log.txt")

    return install_once(CACHE / f"openvino-genai-{OPENVINO_GENAI}", make) / "venv" / "bin" / "python3"


def walker_python(name):
    """The Python that has the transfer library of that name. Without what they need for GPUs."""
    packages = WALKERS[name]

    def make(folder):
        say(f"installing {' '.join(packages)}")
        make_venv(folder / "venv", ["--no-deps", *packages], folder / "log.txt")

    version = packages[0].rpartition("==")[2]
    return install_once(CACHE / f"{name}-{version}", make) / "venv" / "bin" / "python3"


def reference_python():
    """The Python that has numpy and gguf."""

    def make(folder):
        say(f"installing {' '.join(REFERENCE_PACKAGES)}")
        make_venv(folder / "venv", REFERENCE_PACKAGES, folder / "log.txt")

    return install_once(CACHE / "reference-1", make) / "venv" / "bin" / "python3"


def main():
    if len(sys.argv) > 1:
        print(__doc__.strip(), file=sys.stderr)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    try:
        llama = LlamaCpp()
        for name, path in [("llama-bench", llama.bench), ("llama-batched-bench", llama.batched_bench),
                           ("llama_probe", llama.probe), ("openvino-genai", openvino_python()),
                           ("nixl", walker_python("nixl")), ("mooncake", walker_python("mooncake")),
                           ("reference", reference_python())]:
            print(f"{name:20} {path}")
    except PeerError as error:
        print(f"bench/peers.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
